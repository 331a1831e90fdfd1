"""Norms against a float64 reference, in both compute dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax.conditioning.norms import DyT, LayerNorm, RMSNorm, make_norm, normalise
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


# tanh rounds more than once in float32; in bfloat16 the output's own rounding covers it.
@pytest.mark.parametrize(("dtype", "relative"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-8)])
def test_dyt_against_float64(dtype, relative, inputs):
    x, gain, bias = inputs
    x = x.astype(dtype)
    norm = DyT(48, EPSILON)
    norm.gain[...], norm.bias[...], norm.slope[...] = gain, bias, jnp.float32(0.8)
    got = norm(x)
    squashed = np.tanh(np.float64(np.float32(0.8)) * np.asarray(x, np.float64))
    wanted = squashed * np.asarray(gain, np.float64) + np.asarray(bias, np.float64)
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=relative, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("rmsnorm", RMSNorm), ("layernorm", LayerNorm), ("dyt", DyT)])
def test_config_names_the_norm(name, kind):
    assert isinstance(make_norm(Conditioning(norm=name), 8, "input"), kind)


PLACES = {
    "pre": "input final",
    "post": "stream",
    "sandwich": "input output final",
    "peri": "embedding input output final",
    "none": "",
}


@pytest.mark.parametrize("placement", PLACES)
@pytest.mark.parametrize("embedding_norm", [False, True])
def test_config_says_where(placement, embedding_norm):
    conditioning = Conditioning(norm_placement=placement, embedding_norm=embedding_norm)
    wanted = {*PLACES[placement].split(), *(["embedding"] if embedding_norm else [])}
    places = ("embedding", "input", "output", "stream", "final")
    assert {place for place in places if make_norm(conditioning, 8, place) is not None} == wanted


def test_no_norm_is_the_same_array():
    x = jnp.ones((2, 8))
    assert normalise(None, x) is x
