"""Narrow number formats in simulation: values are rounded to what a format can hold and kept in float32.

So a laptop can study what a GPU with such multipliers would compute. A format is its elements and how a group of them
shares a scale:

  none      the elements' own range; what is beyond it becomes the largest
  tensor    one float32 scale for a whole tensor, which puts its largest value on the format's largest
  blocks    as tensor, for each block of values along one dim
  mx        one power of two for each block (OCP Microscaling Formats Specification 1.0, 2023, section 6.3), rounded up
            so that nothing saturates (Mishra et al. 2025, Recipes for Pre-training LLMs with MXFP8), or down as there
  nv        one e4m3 number for each block, and one float32 for the tensor, as NVIDIA's Blackwell has for 4 bits

Values are clipped before they are rounded: a cast alone makes 500 a NaN in float8_e4m3fn and 60,000 infinite in e5m2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from blobjax.config.schema.conditioning import NumberFormat

_TINY = 2.0**-126


@dataclass(frozen=True)
class Format:
    """A number format.

    A magnitude in [2^e, 2^(e+1)) is held in steps of 2^(max(e, min_exponent) - mantissa_bits).
    """

    mantissa_bits: int
    min_exponent: int
    """Exponent of the smallest normal number; below it numbers are subnormal, in equal steps."""
    largest: float
    """Largest finite magnitude."""
    scale: Literal["none", "tensor", "blocks", "mx", "nv"] = "none"
    block: int = 0
    """Values along one dim that share a scale."""
    scale_rounding: Literal["up", "floor"] = "up"
    """Of mx: up to the next power of two that leaves the block within `largest`, or to that which makes the exponents
    of the two equal."""


_E4M3 = Format(3, -6, 448.0)
_E5M2 = Format(2, -14, 57344.0)
_E2M3 = Format(3, 0, 7.5)
_E3M2 = Format(2, -2, 28.0)
_E2M1 = Format(1, 0, 6.0)
# All of int8's numbers are "subnormal": equal steps of one.
_INT8 = Format(7, 7, 127.0)

FORMATS: dict[NumberFormat, Format] = {
    # bfloat16's own subnormals, below 1e-38, are beyond what float32 arithmetic keeps on most devices.
    "bfloat16": Format(7, -119, 3.3895313892515355e38),
    "float16": Format(10, -14, 65504.0),
    "int8": replace(_INT8, scale="tensor"),
    "fp8_e4m3": replace(_E4M3, scale="tensor"),
    "fp8_e5m2": replace(_E5M2, scale="tensor"),
    "mxfp8": replace(_E4M3, scale="mx", block=32),
    "mxfp6_e2m3": replace(_E2M3, scale="mx", block=32),
    "mxfp6_e3m2": replace(_E3M2, scale="mx", block=32),
    "mxfp4": replace(_E2M1, scale="mx", block=32),
    "nvfp4": replace(_E2M1, scale="nv", block=16),
}


def round_to(x: jax.Array, to: Format) -> jax.Array:
    """x rounded to the nearest element of a format, ties to even, its scale left out; NaN stays NaN.

    Args:
      x: float32, any shape.
    """
    x = jnp.clip(x, -to.largest, to.largest)
    step = jnp.maximum(_leading_power(x), 2.0**to.min_exponent) * 2.0**-to.mantissa_bits
    return jnp.round(x / step) * step


def scale_of(x: jax.Array, to: Format, axis: int = -1) -> jax.Array:
    """The scale that each value of x is divided by before it is rounded; broadcasts against x.

    Args:
      x: float32.
      axis: the dim that blocks lie along: that which a matmul sums over. Only formats with blocks read it.
    """
    whole = _scale_of_tensor(x, to)
    if not to.block:
        return whole
    return whole * _by_block(x, to, axis, lambda values, largest: _scale_of_block(largest / whole, to))


def elements(x: jax.Array, to: Format, axis: int = -1) -> tuple[jax.Array, jax.Array]:
    """x as a format would hold it, but for the scale of the whole tensor, which is a factor of its own.

    So what is left of an int8, fp8, mx or nv number has at most eight bits of significand, as bfloat16 has.

    Args:
      x: float32.
      axis: as in `scale_of`.

    Returns:
      float32, the shape of x: elements times the scales of their blocks; and the tensor's scale, a scalar.
    """
    whole = _scale_of_tensor(x, to)
    if not to.block:
        return round_to(x / whole, to), whole

    def rounded(values: jax.Array, largest: jax.Array) -> jax.Array:
        scale = _scale_of_block(largest / whole, to)
        return round_to(values / (whole * scale), to) * scale

    return _by_block(x, to, axis, rounded), whole


def quantise(x: jax.Array, to: Format, axis: int = -1) -> jax.Array:
    """x as a format would hold it, its scales included; the shape and dtype of x, computed in float32."""
    rounded, whole = elements(x.astype(jnp.float32), to, axis)
    return (rounded * whole).astype(x.dtype)


def _scale_of_tensor(x: jax.Array, to: Format) -> jax.Array:
    match to.scale:
        case "tensor":
            return _to_largest(jnp.max(jnp.abs(x)), to.largest)
        case "nv":
            return _to_largest(jnp.max(jnp.abs(x)), to.largest * _E4M3.largest)
        case _:
            return jnp.float32(1)


def _scale_of_block(largest: jax.Array, to: Format) -> jax.Array:
    """The scale of blocks with these largest magnitudes, after the tensor's."""
    match to.scale:
        case "mx":
            # The largest element's exponent becomes the format's largest exponent. (2^-127 is a scale of the
            # specification, and subnormal in float32.)
            floor = jnp.maximum(_leading_power(largest) * 2.0 ** (1 - math.frexp(to.largest)[1]), _TINY)
            # Compared, not divided: a quotient just above a power of two would round onto it.
            return jnp.where(largest > to.largest * floor, 2 * floor, floor) if to.scale_rounding == "up" else floor
        case "nv":
            return _or_one(round_to(largest / to.largest, _E4M3))
        case _:
            return _to_largest(largest, to.largest)


def _to_largest(largest: jax.Array, onto: float) -> jax.Array:
    return _or_one(largest / onto)


def _or_one(scale: jax.Array) -> jax.Array:
    """Zeros, and what is too small to divide by, need no scale."""
    return jnp.where(scale > _TINY, scale, 1)


def _leading_power(x: jax.Array) -> jax.Array:
    """2^e of a magnitude in [2^e, 2^(e+1)): its float32 without sign and mantissa. 0 of a subnormal number.

    By its bits, not by frexp and ldexp: rounding takes a twentieth of the time on a CPU.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0x7F800000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _by_block(x: jax.Array, to: Format, axis: int, of: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """of(values, their largest magnitude) of each block along a dim, in the shape of x; the last block may be short."""
    if x.ndim == 0:
        return _by_block(x[None], to, 0, of)[0]
    axis %= x.ndim
    length = x.shape[axis]
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    padding = [(0, -length % to.block if dim == axis else 0) for dim in range(x.ndim)]
    padded = jnp.pad(x, padding) if length % to.block else x
    blocks = padded.reshape(*before, -1, to.block, *after)
    found = of(blocks, jnp.max(jnp.abs(blocks), axis=axis + 1, keepdims=True))
    whole = jnp.broadcast_to(found, blocks.shape).reshape(padded.shape)
    return jax.lax.slice_in_dim(whole, 0, length, axis=axis)


def saturated(x: jax.Array, to: Format, axis: int = -1) -> jax.Array:
    """Which values overflow: scaled and rounded with any exponent they were beyond the largest; bool, the shape of x.

    So a value that is brought onto the largest by no more than rounding is none (IEEE 754, section 7.4).
    """
    wide = x.astype(jnp.float32)
    half_step = 2.0 ** (max(math.frexp(to.largest)[1] - 1, to.min_exponent) - to.mantissa_bits - 1)
    return jnp.abs(wide) > (to.largest + half_step) * scale_of(wide, to, axis)
