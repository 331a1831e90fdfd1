"""The fingerprints of fingerprint.py, by numpy and from parts of an array: for files, where no device is needed.

What both have in common stands here, since this module must not import jax.
"""

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy the names bfloat16, float8_e4m3fn, …
import numpy as np

# Odd, so that multiplying places by one loses nothing: 2^32 over the golden ratio, and a constant of MurmurHash3.
SEEDS = (0x9E3779B1, 0xC2B2AE35)
# Elements taken at once: what numpy makes of them on the way stays in a processor's cache.
_AT_ONCE = 1 << 16


def mix(x: Any) -> Any:
    """The finaliser of MurmurHash3, of uint32 of numpy or jax."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def part(x: np.ndarray, start: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """What one part of an array adds to its fingerprint, uint32 [2]; the sum over all parts is the fingerprint.

    Args:
      x: the part.
      start: where its first element stands in the whole array.
      shape: of the whole array.
    """
    if x.size > _AT_ONCE:
        dim = int(np.argmax(x.shape))
        middle = x.shape[dim] // 2
        there = [*start[:dim], start[dim] + middle, *start[dim + 1 :]]
        halves = np.split(x, [middle], dim)
        return part(halves[0], start, shape) + part(halves[1], there, shape)
    width = min(x.dtype.itemsize, 4)
    per_element = x.dtype.itemsize // width
    words = (
        np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * width}").astype(np.uint32).reshape(*x.shape, per_element)
    )
    # Where each word stands in the whole array, modulo 2^32.
    place = np.arange(per_element, dtype=np.uint32)
    for dim, (first, many) in enumerate(zip(start, x.shape, strict=True)):
        stride = math.prod(shape[dim + 1 :]) * per_element
        along = (np.arange(first, first + many, dtype=np.uint64) * np.uint64(stride % 2**32)).astype(np.uint32)
        place = place + along.reshape(-1, *(1,) * (x.ndim - dim))
    sums = [np.sum(mix(words ^ mix(place * np.uint32(seed) + np.uint32(seed))), dtype=np.uint32) for seed in SEEDS]
    return np.array(sums, np.uint32)


def as_text(sums: np.ndarray) -> str:
    """16 hexadecimal digits."""
    return "".join(f"{int(word):08x}" for word in sums)
