"""Narrow number formats in simulation: values are rounded to what a format can hold and kept in float32.

So a laptop can study what a GPU with such multipliers would compute. A format is its elements and how a group of them
shares a scale:

  none      the elements' own range; what is beyond it becomes the largest
  tensor    one float32 scale for a whole tensor, which puts its largest value on the format's largest
  blocks    as tensor, for each block of values along one dim
  mx        one power of two for each block (OCP Microscaling Formats Specification 1.0, 2023, section 6.3)
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
    # frexp's mantissa is in [1/2, 1), so its exponent is one more than that of the leading bit.
    exponent = jnp.maximum(jnp.frexp(x)[1] - 1, to.min_exponent)
    step = jnp.ldexp(jnp.float32(1), exponent - to.mantissa_bits)
    return jnp.clip(jnp.round(x / step) * step, -to.largest, to.largest)


def scale_of(x: jax.Array, to: Format, axis: int = -1) -> jax.Array:
    """The scale that each value of x is divided by before it is rounded; broadcasts against x.

    Args:
      x: float32.
      axis: the dim that blocks lie along: that which a matmul sums over. Only formats with blocks read it.
    """
    match to.scale:
        case "none":
            return jnp.float32(1)
        case "tensor":
            return _to_largest(jnp.max(jnp.abs(x)), to)
        case "blocks":
            return _over_blocks(x, to.block, axis, lambda largest: _to_largest(largest, to))
        case "mx":
            # The largest element's exponent becomes the format's largest exponent.
            top = jnp.frexp(jnp.float32(to.largest))[1]
            return _over_blocks(x, to.block, axis, lambda largest: _power_of_two(jnp.frexp(largest)[1] - top))
        case "nv":
            whole = _to_largest(jnp.max(jnp.abs(x)) / to.largest, _E4M3)
            return _over_blocks(
                x, to.block, axis, lambda largest: _or_one(round_to(largest / to.largest / whole, _E4M3) * whole)
            )


def quantise(x: jax.Array, to: Format, axis: int = -1) -> jax.Array:
    """x as a format would hold it, its scale included; the shape and dtype of x, computed in float32."""
    wide = x.astype(jnp.float32)
    scale = scale_of(wide, to, axis)
    return (round_to(wide / scale, to) * scale).astype(x.dtype)


def _to_largest(largest: jax.Array, to: Format) -> jax.Array:
    return _or_one(largest / to.largest)


def _or_one(scale: jax.Array) -> jax.Array:
    """Zeros, and what is too small to divide by, need no scale."""
    return jnp.where(scale > _TINY, scale, 1)


def _power_of_two(exponent: jax.Array) -> jax.Array:
    # 2^-127 is a scale of the specification, and subnormal in float32.
    return jnp.ldexp(jnp.float32(1), jnp.maximum(exponent, -126))


def _over_blocks(x: jax.Array, block: int, axis: int, scale: Callable) -> jax.Array:
    """scale(largest magnitude) of each block along a dim, repeated to the shape of x; the last block may be short."""
    moved = jnp.moveaxis(jnp.abs(x), axis, -1)
    length = moved.shape[-1]
    padded = jnp.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, -length % block)])
    largest = jnp.max(padded.reshape(*padded.shape[:-1], -1, block), axis=-1)
    return jnp.moveaxis(jnp.repeat(scale(largest), block, axis=-1)[..., :length], -1, axis)


def saturated(x: jax.Array, to: Format, axis: int = -1) -> jax.Array:
    """Which values overflow: scaled and rounded with any exponent they were beyond the largest; bool, the shape of x.

    So a value that is brought onto the largest by no more than rounding is none (IEEE 754, section 7.4).
    """
    wide = x.astype(jnp.float32)
    half_step = 2.0 ** (max(math.frexp(to.largest)[1] - 1, to.min_exponent) - to.mantissa_bits - 1)
    return jnp.abs(wide) > (to.largest + half_step) * scale_of(wide, to, axis)
