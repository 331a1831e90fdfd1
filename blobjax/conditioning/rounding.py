"""Parameters in 16 bits: how the sum of a parameter and its update is rounded to the parameter's format.

bfloat16 has 8 bits of significand. An update below 2^-9 of its parameter is rounded away by rounding to the nearest, at
every step, however many there are. Two ways out, each an optax transformation that comes last and turns an update u
into the one that makes p + u, rounded, exactly the wanted number.

Sources: stochastic rounding, Gupta et al. 2015; both for bfloat16 parameters, Zamirai et al. 2020 (Revisiting BFloat16
Training).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer, shown parameters of a narrower format in float32, so that its state and sums are float32 too."""
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Any:
        return optimizer.init(_widen(params))

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return optimizer.update(_widen(grads), state, _widen(params), **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """One of the two bfloat16 numbers next to x, the nearer the likelier, so that the mean over draws is x.

    Args:
      x: float32, any shape. What is not finite, or is a bfloat16 number already, comes back as it is.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 is the upper half of float32: adding to the lower half a random one carries as often as it should.
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    cut = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)


class StochasticState(NamedTuple):
    """Random numbers are a function of the seed and this."""

    updates: jax.Array
    """int32, updates so far."""


def stochastic_rounding(seed: int) -> optax.GradientTransformation:
    """Rounds p + u up or down at random; needs bfloat16 parameters."""

    def update(updates: Any, state: StochasticState, params: Any = None) -> tuple[Any, StochasticState]:
        key = jax.random.fold_in(jax.random.key(seed), state.updates)
        leaves, tree = jax.tree.flatten(updates)
        keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))

        def one(u: jax.Array, p: jax.Array, key: jax.Array) -> jax.Array:
            old = p.astype(jnp.float32)
            return round_stochastically(old + u, key).astype(jnp.float32) - old

        return jax.tree.map(one, updates, params, keys), StochasticState(state.updates + 1)

    return optax.GradientTransformation(lambda params: StochasticState(jnp.zeros((), jnp.int32)), update)


class KahanState(NamedTuple):
    """What rounding has taken away and not yet given back."""

    errors: Any
    """As the parameters, in their format."""


def kahan_summation() -> optax.GradientTransformation:
    """Rounds p + u to the nearest and adds the error to the next u (Kahan 1965)."""

    def update(updates: Any, state: KahanState, params: Any = None) -> tuple[Any, KahanState]:
        def one(u: jax.Array, p: jax.Array, error: jax.Array) -> tuple[jax.Array, jax.Array]:
            old, wanted = p.astype(jnp.float32), u + error.astype(jnp.float32)
            # Not astype alone: XLA may compute x - bfloat16(x) in one go, in float32, and find 0.
            new = jax.lax.reduce_precision(old + wanted, exponent_bits=8, mantissa_bits=7)
            done = new - old
            return done, (wanted - done).astype(p.dtype)

        pairs = jax.tree.map(one, updates, params, state.errors)
        rounded, errors = jax.tree.transpose(jax.tree.structure(updates), None, pairs)
        return rounded, KahanState(errors)

    return optax.GradientTransformation(lambda params: KahanState(optax.tree.zeros_like(params)), update)


def _widen(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
