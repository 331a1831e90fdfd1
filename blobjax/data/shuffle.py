"""A shuffle that keeps nothing: where element i of an epoch lies, computed from (seed, domain, epoch, i).

A Feistel network permutes the smallest even power of two that holds the elements, and walks on while it lands outside
them (Black & Rogaway 2002, "Ciphers with arbitrary finite domains", sections 4 and 5).
Our own rather than Grain's: the order of a run's data must not change with a library's version, an index may be beyond
32 bits, and Grain's walks for milliseconds where there are few elements (docs/data.md).
"""

import hashlib
from functools import lru_cache

# Four rounds do for large halves (Luby & Rackoff 1988). With halves of two or three bits they are visibly uneven (the
# first element of 8 lands with a chi-squared of 18 a degree of freedom); eight rounds on three bits or more are not.
_ROUNDS = 8
_LEAST_HALF = 3
_WORD = (1 << 64) - 1


def shuffled(index: int, size: int, seed: int, name: str) -> int:
    """Element number `index` of an endless sequence of shuffled passes over range(size).

    Args:
      index: from 0; the epoch is index div size.
      size: elements in one pass, at least 1.
      seed: of the run.
      name: of the domain; each has an order of its own.

    Returns:
      In [0, size). Over any one epoch, each exactly once.
    """
    epoch, position = divmod(index, size)
    keys = _round_keys(seed, name, epoch)
    half = max(_LEAST_HALF, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for key in keys:
            left, right = right, left ^ (_scramble(right ^ key) & mask)
        position = left << half | right
        if position < size:
            return position


@lru_cache(maxsize=1024)
def _round_keys(seed: int, name: str, epoch: int) -> tuple[int, ...]:
    digest = hashlib.sha512(f"{seed}/{name}/{epoch}".encode()).digest()
    return tuple(int.from_bytes(digest[8 * r : 8 * r + 8], "big") for r in range(_ROUNDS))


def _scramble(word: int) -> int:
    """64 bits to 64 bits, every bit in reaching every bit out: the finaliser of SplitMix64 (Steele et al. 2014)."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _WORD
    return word ^ word >> 31
