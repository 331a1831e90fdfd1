"""Norms against a float64 reference, in both compute dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax.conditioning.norms import LayerNorm, RMSNorm, make_norm
from blobjax.config.schema import Conditioning

EPSILON = 1e-5


def reference(kind, x, gain, bias):
    x = np.asarray(x, np.float64)
    if kind is LayerNorm:
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * gain + bias


@pytest.fixture(scope="module")
def inputs():
    x = jax.random.normal(jax.random.key(0), (5, 7, 48)) * 3 + 1
    gain, bias = jax.random.normal(jax.random.key(1), (2, 48))
    return x, gain, bias


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
# One rounding to the output's format: half a unit in its last place, plus float32's own few.
@pytest.mark.parametrize(("dtype", "relative"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-8)])
def test_against_float64(kind, dtype, relative, inputs):
    x, gain, bias = inputs
    x = x.astype(dtype)
    norm = kind(48, EPSILON)
    norm.gain[...] = gain
    if kind is LayerNorm:
        norm.bias[...] = bias
    got = norm(x)
    wanted = reference(kind, x, np.asarray(gain), np.asarray(bias) if kind is LayerNorm else 0)
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=relative, atol=1e-5)


def test_layernorm_keeps_digits_far_from_zero():
    x = jax.random.normal(jax.random.key(0), (4, 64)) + 1000
    wanted = reference(LayerNorm, x, 1.0, 0.0)
    np.testing.assert_allclose(LayerNorm(64, EPSILON)(x), wanted, atol=1e-3)


def test_config_names_the_norm():
    assert isinstance(make_norm(Conditioning(norm="layernorm"), 8), LayerNorm)
    assert isinstance(make_norm(Conditioning(norm="rmsnorm"), 8), RMSNorm)
