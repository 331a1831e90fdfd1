"""Products with weights, each in the number format that the policy gives its place in the model.

Three products come of one: y = x · w forward, and backward dx = g · wᵀ and dw = xᵀ · g. Where there is a matmul format
each of the three rounds its own two operands, with blocks along the dim that it sums over, and sums in float32:

  real        qwix rounds, and the device multiplies 8-bit numbers
  simulated   formats.py rounds, and the device multiplies what is left in float32

Where there is none the operands are cast to the compute format, and dw leaves its product in float32
(`compute.gradient_reduction`): jax's own rule would round it to the format of w, and sum it over devices so.

Gradients pass through the rounding as if it were not there (Bengio et al. 2013, the straight-through estimator).

Dims: T tokens (one dim or more), I features in, O features out.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jax.typing import DTypeLike

from blobjax.compute import accelerators, target
from blobjax.conditioning.formats import FORMATS, Format, elements
from blobjax.conditioning.precision import operand_format, policy
from blobjax.config import BadInputError
from blobjax.config.schema import Config

_REAL = {FORMATS["int8"].largest: jnp.int8, FORMATS["fp8_e4m3"].largest: jnp.float8_e4m3fn}
_REAL[FORMATS["fp8_e5m2"].largest] = jnp.float8_e5m2

Axes = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Rounded:
    """How products round their operands."""

    forward: Format
    gradient: Format
    simulated: bool

    def multiply(self, a: jax.Array, b: jax.Array, axes: Axes, to_a: Format, to_b: Format) -> jax.Array:
        """a · b summed over `axes` of each, both rounded; float32."""
        dims = (axes, ((), ()))
        if not self.simulated:
            a_rounded, b_rounded = _pad(a, axes[0], to_a), _pad(b, axes[1], to_b)
            return qwix.dot_general(_real(a_rounded, axes[0], to_a), _real(b_rounded, axes[1], to_b), dims)
        (a, a_scale), (b, b_scale) = (
            elements(x.astype(jnp.float32), to, over[-1]) for x, over, to in ((a, axes[0], to_a), (b, axes[1], to_b))
        )
        # Elements have at most eight bits of significand: exact in float32, and wherever a device takes float32 for
        # something narrower (TF32, bfloat16). A float32 scale for each block makes them longer than that.
        precision = jax.lax.Precision.HIGHEST if "blocks" in (to_a.scale, to_b.scale) else None
        product = jax.lax.dot_general(a, b, dims, precision=precision)
        return product * (a_scale * b_scale)


def _real(x: jax.Array, axes: tuple[int, ...], to: Format) -> qwix.QArray:
    """x in 8 bits with its scales, which are float32."""
    others = [dim for dim in range(x.ndim) if dim not in axes] if to.block else []
    tiles = {axes[-1]: min(to.block, x.shape[axes[-1]])} if to.block else {}
    return qwix.quantize(x.astype(jnp.float32), _REAL[to.largest], channelwise_axes=others, tiled_axes=tiles)


def _pad(x: jax.Array, axes: tuple[int, ...], to: Format) -> jax.Array:
    """x with zeros at the end of the dim that blocks lie along, which add nothing to a sum: qwix wants whole blocks."""
    dim = axes[-1]
    missing = -x.shape[dim] % min(to.block, x.shape[dim]) if to.block else 0
    return jnp.pad(x, [(0, missing if d == dim else 0) for d in range(x.ndim)]) if missing else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rounded_product(x_TI: jax.Array, w_IO: jax.Array, how: Rounded) -> jax.Array:
    """x · w with rounded operands, forward and backward.

    Args:
      x_TI: any leading dims, any float dtype.
      w_IO: float32.

    Returns:
      [T..., O] float32.
    """
    return how.multiply(x_TI, w_IO, ((x_TI.ndim - 1,), (0,)), how.forward, how.forward)


def _forward(x_TI: jax.Array, w_IO: jax.Array, how: Rounded) -> tuple[jax.Array, Any]:
    return rounded_product(x_TI, w_IO, how), (x_TI, w_IO)


def _backward(how: Rounded, kept: Any, g_TO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_TI, w_IO = kept
    tokens = tuple(range(x_TI.ndim - 1))
    dx_TI = how.multiply(g_TO, w_IO, ((g_TO.ndim - 1,), (1,)), how.gradient, how.forward)
    dw_IO = how.multiply(x_TI, g_TO, (tokens, tokens), how.forward, how.gradient)
    return dx_TI.astype(x_TI.dtype), dw_IO.astype(w_IO.dtype)


rounded_product.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product_of_casts(x_TI: jax.Array, w_IO: jax.Array, n_in: int, result: DTypeLike) -> jax.Array:
    """x · w in the format of x, with a gradient of w that is rounded to no less than float32.

    Args:
      x_TI: a 16-bit format; any leading dims.
      w_IO: float32.
      n_in: how many dims are summed over: the last of x, the first of w.
      result: dtype of what comes back, in which x's gradient is multiplied too.

    Returns:
      [T..., O...].
    """
    return _forward_of_casts(x_TI, w_IO, n_in, result)[0]


def _forward_of_casts(x_TI: jax.Array, w_IO: jax.Array, n_in: int, result: DTypeLike) -> tuple[jax.Array, Any]:
    w_IO = w_IO.astype(x_TI.dtype)
    return jnp.tensordot(x_TI, w_IO, n_in, preferred_element_type=result), (x_TI, w_IO)


def _backward_of_casts(n_in: int, result: DTypeLike, kept: Any, g_TO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_TI, w_IO = kept
    tokens = tuple(range(x_TI.ndim - n_in))
    outputs = tuple(range(len(tokens), g_TO.ndim)), tuple(range(n_in, w_IO.ndim))
    dx_TI = jax.lax.dot_general(g_TO, w_IO, (outputs, ((), ())), preferred_element_type=result)
    dw_IO = jax.lax.dot_general(x_TI, g_TO, ((tokens, tokens), ((), ())), preferred_element_type=jnp.float32)
    return dx_TI.astype(x_TI.dtype), dw_IO


product_of_casts.defvjp(_forward_of_casts, _backward_of_casts)


class Product(nnx.Module):
    """x · w of one place in the model.

    Args:
      path: which place (`Model.products`).

    Raises:
      BadInputError: the device has no units for the format.
    """

    def __init__(self, config: Config, path: str):
        conditioning = config.conditioning
        simulate = conditioning.simulate
        self.policy = policy(conditioning, path)
        self.gradient = gradient_format(config, path)
        matmul = self.policy.matmul
        device = target.device()
        if matmul and matmul.forward == "fp8_e4m3" and not simulate and not has_fp8(device):
            raise BadInputError(
                f"conditioning.precision fp8 needs a device that multiplies fp8, and {device.device_kind} is not known "
                "to; set conditioning.simulate=true"
            )
        self.rounded = (
            Rounded(
                operand_format(matmul.forward, conditioning),
                operand_format(matmul.gradient, conditioning),
                simulate,
            )
            if matmul
            else None
        )

    def __call__(self, x_TI: jax.Array, w_IO: jax.Array, n_in: int = 1, result: DTypeLike | None = None) -> jax.Array:
        """x · w over the last `n_in` dims of x, which are the first of w.

        Args:
          x_TI: activations, any leading dims.
          w_IO: a parameter.
          result: dtype of what comes back; None: that of x.

        Returns:
          [T..., O...].
        """
        result = x_TI.dtype if result is None else result
        if self.rounded is None:
            compute = self.policy.compute
            summed = jnp.promote_types(compute, result)
            x_TI = x_TI.astype(compute)
            if self.gradient != compute:
                return product_of_casts(x_TI, w_IO.astype(self.gradient), n_in, summed).astype(result)
            return jnp.tensordot(x_TI, w_IO.astype(compute), n_in, preferred_element_type=summed).astype(result)
        shape = (*x_TI.shape[: x_TI.ndim - n_in], *w_IO.shape[n_in:])
        features = math.prod(w_IO.shape[:n_in])
        x_TI, w_IO = x_TI.reshape(*x_TI.shape[: x_TI.ndim - n_in], features), w_IO.reshape(features, -1)
        return rounded_product(x_TI, w_IO, self.rounded).reshape(shape).astype(result)


def gradient_format(config: Config, path: str) -> DTypeLike:
    """The format that a weight's gradient leaves its product in, and is summed over devices in.

    Args:
      path: place of the product (`Model.products`).
    """
    used = policy(config.conditioning, path)
    # Products in a matmul format give float32 whatever is asked for.
    asked = config.compute.gradient_reduction == "compute" and used.matmul is None
    return used.compute if asked else used.gradient


def make_products(config: Config, of: str = "") -> nnx.Dict:
    """The products of a layer (`blocks/attention`, `blocks/mlp`), or those that belong to none, by their names."""
    split = (path.rpartition("/") for path in config.model.products)
    return nnx.Dict({name: Product(config, f"{layer}{slash}{name}") for layer, slash, name in split if layer == of})


def has_fp8(device: jax.Device) -> bool:
    """Whether a device multiplies fp8 numbers: NVIDIA's of compute capability 8.9 (Ada) on, and some TPUs."""
    if device.platform == "gpu":
        capability = str(getattr(device, "compute_capability", "0"))
        return "NVIDIA" in device.device_kind and float(capability or 0) >= 8.9
    chip = accelerators.find(device.device_kind)
    return chip is not None and chip.fp8_flops is not None
