"""Rounding of 16-bit parameters: exact, unbiased, and in sum what float64 says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from blobjax.conditioning.rounding import in_float32, kahan_summation, round_stochastically, stochastic_rounding


def neighbours(x):
    """The two bfloat16 numbers around each float32."""
    down = np.asarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return down.view(np.float32), (down + np.uint32(0x10000)).view(np.float32)


def test_a_draw_is_a_neighbour_and_the_mean_is_the_number():
    x = np.random.default_rng(0).standard_normal(64).astype(np.float32) * np.float32(3.7)
    draws = 4000
    keys = jax.random.split(jax.random.key(0), draws)
    found = np.asarray(jax.vmap(lambda key: round_stochastically(x, key))(keys), np.float64)
    low, high = neighbours(x)
    assert np.all((found == low) | (found == high))
    # Five standard errors of a mean of draws that are a gap apart.
    share = (np.float64(x) - low) / (np.float64(high) - low)
    allowed = 5 * np.abs(np.float64(high) - low) * np.sqrt(share * (1 - share) / draws)
    assert np.all(np.abs(found.mean(0) - x) <= allowed)


def test_what_needs_no_rounding_comes_back():
    x = jnp.array([0.0, -0.0, 1.0, -1.5, jnp.inf, -jnp.inf, 2.0**-130, 3.0e38], jnp.bfloat16)
    back = round_stochastically(x.astype(jnp.float32), jax.random.key(1))
    assert np.asarray(back).tobytes() == np.asarray(x).tobytes()
    assert np.isnan(round_stochastically(jnp.float32(jnp.nan), jax.random.key(1)))


def steps(transformation, params, updates, n):
    def step(carry, _):
        params, state = carry
        rounded, state = transformation.update(updates, state, params)
        return (optax.apply_updates(params, rounded), state), None

    return jax.jit(lambda: jax.lax.scan(step, (params, transformation.init(params)), length=n)[0][0])()


def test_small_updates_add_up_but_with_nearest():
    """Four thousand updates of 2^-12 on 1: 2 in exact arithmetic, each a sixteenth of what nearest rounding drops."""
    params, update = {"p": jnp.ones((256,), jnp.bfloat16)}, {"p": jnp.full((256,), 2.0**-12)}
    assert np.all(steps(optax.identity(), params, update, 4096)["p"] == 1)
    kahan = np.asarray(steps(kahan_summation(), params, update, 4096)["p"], np.float64)
    np.testing.assert_allclose(kahan, 2, rtol=2**-8)
    drawn = np.asarray(steps(stochastic_rounding(0), params, update, 4096)["p"], np.float64)
    # A step up of 2^-7 has probability 2^-5: over 4096 the deviation is 2^-7 · 11.1, and over 256 numbers a 16th of it.
    assert abs(drawn.mean() - 2) < 5 * 2**-7 * 11.1 / 16
    assert drawn.std() > 2**-7


def test_kahan_keeps_exactly_what_rounding_took():
    rng = np.random.default_rng(0)
    params = {"p": jnp.asarray(rng.standard_normal(1000), jnp.bfloat16)}
    transformation = kahan_summation()
    state = transformation.init(params)
    exact = np.asarray(params["p"], np.float64)
    for _ in range(50):
        update = {"p": jnp.asarray(1e-3 * rng.standard_normal(1000), jnp.float32)}
        exact += np.asarray(update["p"], np.float64)
        rounded, state = jax.jit(transformation.update)(update, state, params)
        params = optax.apply_updates(params, rounded)
    kept = np.asarray(params["p"], np.float64) + np.asarray(state.errors["p"], np.float64)
    # An error is itself rounded to 8 bits: 2^-9 of at most half a gap of 2^-7 between numbers up to 4, fifty times.
    np.testing.assert_allclose(kept, exact, atol=50 * 2**-9 * 2**-7)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e4])
def test_an_update_makes_exactly_the_drawn_number(scale):
    params = jax.random.normal(jax.random.key(0), (4096,)).astype(jnp.bfloat16)
    update = scale * jax.random.normal(jax.random.key(1), (4096,))
    transformation = stochastic_rounding(7)
    rounded, _ = transformation.update({"p": update}, transformation.init({"p": params}), {"p": params})
    after = np.asarray(optax.apply_updates({"p": params}, rounded)["p"], np.float32)
    low, high = neighbours(np.asarray(params, np.float32) + np.asarray(update))
    assert np.all((after == low) | (after == high))


def test_draws_do_not_depend_on_the_devices_and_differ_by_step():
    params = {"p": jax.random.normal(jax.random.key(0), (64, 32)).astype(jnp.bfloat16)}
    update = {"p": 1e-3 * jax.random.normal(jax.random.key(1), (64, 32))}
    transformation = stochastic_rounding(3)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put((update, params), NamedSharding(mesh, PartitionSpec("fsdp")))
    run = jax.jit(lambda u, p, state: transformation.update(u, state, p))
    alone, state = run(update, params, transformation.init(params))
    apart, _ = run(*split, transformation.init(params))
    np.testing.assert_array_equal(alone["p"], apart["p"])
    assert np.any(alone["p"] != run(update, params, state)[0]["p"])


def test_an_optimizer_of_16_bit_parameters_keeps_32_bit_moments():
    params = {"p": jnp.ones((3,), jnp.bfloat16)}
    optimizer = in_float32(optax.adamw(1e-3))
    state = optimizer.init(params)
    updates, state = optimizer.update({"p": jnp.ones((3,), jnp.bfloat16)}, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves((updates, state)) if leaf.ndim} == {jnp.dtype("float32")}
