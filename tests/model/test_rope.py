"""Rotary embeddings against float64, written out from the papers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax.config.schema import Rope, RopeScaling
from blobjax.model.rope import frequencies, rotate, rotation

D_HEAD = 16


def llama3(frequency: float, s: RopeScaling) -> float:
    """One pair's frequency, by the three cases in which Llama 3.1's release has it."""
    wavelength = 2 * math.pi / frequency
    if wavelength < s.original_max_seq_len / s.high_freq_factor:
        return frequency
    if wavelength > s.original_max_seq_len / s.low_freq_factor:
        return frequency / s.factor
    smooth = (s.original_max_seq_len / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    return (1 - smooth) * frequency / s.factor + smooth * frequency


def rotated(x: np.ndarray, position: int, rope: Rope) -> np.ndarray:
    """One head's features at one position, as complex numbers; float64."""
    half = D_HEAD // 2
    base = [rope.theta ** (-2 * i / D_HEAD) for i in range(half)]
    frequency = np.array([llama3(f, rope.scaling) if rope.scaling else f for f in base])
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * frequency)
    return np.concatenate([turned.real, turned.imag])


ROPES = [Rope(), Rope(theta=500_000.0, scaling=RopeScaling(factor=8.0, original_max_seq_len=8192))]


@pytest.mark.parametrize("rope", ROPES, ids=["plain", "llama3"])
def test_against_float64(rope):
    rng = np.random.default_rng(0)
    x_BTHK = rng.standard_normal((2, 5, 3, D_HEAD))
    positions_BT = np.array([[0, 1, 2, 3, 4], [100, 1000, 0, 1, 2000]])
    cos, sin = rotation(rope, D_HEAD, jnp.asarray(positions_BT))
    got = rotate(jnp.asarray(x_BTHK, jnp.float32), cos, sin)
    wanted = np.array(
        [[[rotated(x, p, rope) for x in heads] for heads, p in zip(row, ps, strict=True)]
         for row, ps in zip(x_BTHK, positions_BT, strict=True)]
    )  # fmt: skip
    # An angle of 2,000 radians in float32 is known to 2000 · 2^-24 ≈ 1e-4.
    np.testing.assert_allclose(got, wanted, atol=1e-3)
    np.testing.assert_allclose(got[0], wanted[0], atol=1e-5)


def test_scaling_has_all_three_regimes():
    slow = frequencies(ROPES[1], 128) / frequencies(Rope(theta=500_000.0), 128)
    assert slow[0] == 1
    assert slow[-1] == pytest.approx(1 / 8)
    assert np.any((slow > 1 / 8 + 1e-6) & (slow < 1 - 1e-6))
    assert np.all(np.diff(slow) <= 0)


def test_scores_depend_on_distance_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, D_HEAD))

    def score(i, j):
        return jnp.sum(rotate(q, *at(i)) * rotate(k, *at(j)))

    def at(i):
        return rotation(Rope(), D_HEAD, jnp.array([[i]]))

    np.testing.assert_allclose(score(7, 3), score(107, 103), rtol=1e-4)


def test_bfloat16_stays_bfloat16():
    x = jnp.ones((1, 2, 1, D_HEAD), jnp.bfloat16)
    assert rotate(x, *rotation(Rope(), D_HEAD, jnp.arange(2)[None])).dtype == jnp.bfloat16
