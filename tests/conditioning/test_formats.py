"""Simulated formats: bit for bit what ml_dtypes casts to; clipped beyond it; with the right scales."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from blobjax.conditioning.formats import FORMATS, quantise, round_to, saturated, scale_of

REAL = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "mxfp6_e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp6_e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp4": ml_dtypes.float4_e2m1fn,
}


def values(largest: float) -> np.ndarray:
    """Magnitudes over the whole range and down into the subnormals, halfway points among them."""
    rng = np.random.default_rng(0)
    spread = rng.standard_normal(20_000) * 2.0 ** rng.uniform(-30, np.log2(largest), 20_000)
    grid = np.arange(-64, 65) / 16
    return np.concatenate([np.clip(spread, -largest, largest), grid, [0.0, -0.0, largest, -largest]]).astype(np.float32)


@pytest.mark.parametrize("name", REAL)
def test_elements_are_those_of_the_real_format(name):
    to = FORMATS[name]
    x = values(to.largest)
    wanted = np.clip(x, -to.largest, to.largest).astype(REAL[name]).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(round_to, static_argnums=1)(x, to), wanted)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_beyond_the_range_becomes_the_largest(name):
    to = FORMATS[name]
    beyond = min(to.largest * 1.5, 3.4e38)
    got = round_to(jnp.array([beyond, -beyond, jnp.inf, -jnp.inf, jnp.nan]), to)
    np.testing.assert_array_equal(got, [to.largest, -to.largest, to.largest, -to.largest, np.nan])


def slow_mx(x: np.ndarray, element, rounding: str) -> np.ndarray:
    """One row in blocks of 32, as the specification (floor) or Mishra et al. 2025 (up) have it, in float64."""
    limit = float(ml_dtypes.finfo(element).max)
    out = np.empty_like(x, np.float64)
    for start in range(0, len(x), 32):
        block = x[start : start + 32].astype(np.float64)
        largest = np.abs(block).max()
        exponent = np.floor(np.log2(largest)) - np.floor(np.log2(limit)) if largest else 0
        if rounding == "up" and largest:
            exponent = np.ceil(np.log2(largest / limit))
        scale = 2.0**exponent
        out[start : start + 32] = np.clip(block / scale, -limit, limit).astype(element).astype(np.float64) * scale
    return out


MX = {
    "mxfp8": ml_dtypes.float8_e4m3fn,
    "mxfp6_e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp6_e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp4": ml_dtypes.float4_e2m1fn,
}
ROUNDINGS = ("up", "floor")


def mx(name: str, rounding: str):
    return replace(FORMATS[name], scale_rounding=rounding)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("length", [64, 50])
def test_blocks_share_a_power_of_two(name, length, rounding):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((3, length)) * 10.0 ** rng.uniform(-6, 6, (3, length))).astype(np.float32)
    x[1] = 0
    wanted = np.stack([slow_mx(row, MX[name], rounding) for row in x])
    to = mx(name, rounding)
    np.testing.assert_array_equal(jax.jit(quantise, static_argnums=(1, 2))(x, to, 1), wanted)
    np.testing.assert_array_equal(quantise(x.T, to, 0), wanted.T)
    # As the specification keeps scales: an exponent of eight bits.
    scale = np.asarray(scale_of(jnp.asarray(x), to, 1))
    np.testing.assert_array_equal(scale.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32), scale)


@pytest.mark.parametrize("name", MX)
def test_what_saturates_with_floor_does_not_with_up(name):
    """Blocks whose largest magnitude lies just below, on and above the format's largest, at several powers of two."""
    largest = FORMATS[name].largest
    exponent = np.floor(np.log2(largest))
    half_step = 2.0 ** (exponent - FORMATS[name].mantissa_bits - 1)
    far_above = (largest + half_step + 2.0 ** (exponent + 1)) / 2
    tops = np.float32([largest, np.nextafter(np.float32(largest), np.float32(np.inf)), far_above])
    tops = (tops[:, None] * np.float32(2.0) ** np.arange(-20, 21, 5)).reshape(-1).astype(np.float32)
    x = np.concatenate([tops[:, None], tops[:, None] * np.random.default_rng(2).uniform(-1, 1, (len(tops), 31))], 1)
    x = x.astype(np.float32)
    over = tops[:, None] > np.float32(largest) * np.asarray(scale_of(x, mx(name, "floor"), 1))[:, :1]
    assert 0 < over.sum() < len(tops)
    # Saturated with floor: brought down to the format's largest by more than rounding; with up nothing is.
    assert np.asarray(saturated(x, mx(name, "floor"), 1)).any()
    assert not np.asarray(saturated(x, mx(name, "up"), 1)).any()
    up, floor = (np.asarray(quantise(x, mx(name, rounding), 1)) for rounding in ROUNDINGS)
    assert (np.abs(floor[:, 0] - tops) / tops).max() == pytest.approx(1 - largest / far_above)
    # Half a step of the leading digit.
    assert (np.abs(up[:, 0] - tops) <= tops * 2.0 ** -(FORMATS[name].mantissa_bits + 1)).all()
    # Where nothing was beyond the largest the two are one.
    np.testing.assert_array_equal(floor[~over[:, 0]], up[~over[:, 0]])


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "fp8_e5m2"])
def test_one_scale_puts_the_largest_value_on_the_largest_number(name):
    to = FORMATS[name]
    x = np.random.default_rng(2).standard_normal((8, 16)).astype(np.float32) * 1e-3
    scale = float(scale_of(jnp.asarray(x), to))
    assert scale == pytest.approx(np.abs(x).max() / to.largest, rel=1e-6)
    assert np.abs(quantise(x, to)).max() == pytest.approx(np.abs(x).max(), rel=1e-6)
    assert not np.asarray(saturated(x, to)).any()


def test_int8_has_equal_steps():
    x = np.random.default_rng(3).standard_normal(1000).astype(np.float32)
    scale = np.abs(x).max() / np.float32(127)
    np.testing.assert_allclose(quantise(x, FORMATS["int8"]), np.round(x / scale) * scale, rtol=1e-6)


def test_four_bits_with_a_fine_scale_are_closer_than_with_a_coarse_one():
    x = np.random.default_rng(4).standard_normal((16, 256)).astype(np.float32)
    error = {name: float(np.square(quantise(x, FORMATS[name]) - x).mean()) for name in ("nvfp4", "mxfp4", "mxfp8")}
    assert error["mxfp8"] < error["nvfp4"] < error["mxfp4"]


def test_saturated():
    x = jnp.array([0.0, 65504.0, 65519.0, -65521.0, 1e5, -jnp.inf])
    np.testing.assert_array_equal(saturated(x, FORMATS["float16"]), [False, False, False, True, True, True])
    # A block's power of two rounded down leaves values up to 8 for a largest number of 6.
    block = jnp.array([1.0, 6.9, 7.1, -7.9])
    np.testing.assert_array_equal(saturated(block, mx("mxfp4", "floor")), [False, False, True, True])


@pytest.mark.parametrize("name", FORMATS)
def test_a_single_number_is_a_block_of_one(name):
    x = jnp.float32(0.3)
    assert quantise(x, FORMATS[name], 0).shape == ()
    assert float(quantise(x, FORMATS[name], 0)) == float(quantise(x[None], FORMATS[name], 0)[0])
