"""The guard: a step whose numbers went bad is refused as a whole, on the device, without asking the host.

Refused means selected away: parameters and optimizer state keep their bits, and the bad numbers enter no statistic. (To
multiply the update by 0 would not do: 0 · NaN is NaN.) Every device takes part in the sums the verdict hangs on, so all
come to the same one.

Source: the skip-step optimizer of OLMo-core (Ai2), whose window and threshold are the defaults.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from blobjax.config import schema


class GuardState(NamedTuple):
    """The guarded optimizer's state, and what the guard knows. Dims: W window."""

    inner: Any
    accepted: jax.Array
    """int32, steps taken."""
    skipped: jax.Array
    """int32, steps refused."""
    losses_W: jax.Array
    norms_W: jax.Array
    """float32, of the last accepted steps; a ring, in which step n stands at n mod W."""


def guarded(optimizer: optax.GradientTransformation, settings: schema.Guard) -> optax.GradientTransformationExtraArgs:
    """The optimizer, but for steps that are not finite or spike. Its update also takes `loss`, a float32 scalar."""
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> GuardState:
        window = jnp.zeros((settings.window,), jnp.float32)
        return GuardState(optimizer.init(params), jnp.int32(0), jnp.int32(0), window, window)

    def spikes(x: jax.Array, window_W: jax.Array, accepted: jax.Array) -> jax.Array:
        if not settings.sigmas:
            return jnp.bool(False)
        limit = jnp.mean(window_W) + settings.sigmas * jnp.std(window_W)
        return (accepted >= settings.window) & (x > limit)

    def update(
        grads: Any, state: GuardState, params: Any = None, *, loss: jax.Array, **extra: Any
    ) -> tuple[Any, GuardState]:
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        spike = spikes(loss, state.losses_W, state.accepted) | spikes(norm, state.norms_W, state.accepted)
        good = finite & ~spike

        updates, inner = optimizer.update(grads, state.inner, params, **extra)
        slot = state.accepted % settings.window
        taken = GuardState(
            inner,
            state.accepted + 1,
            state.skipped,
            state.losses_W.at[slot].set(loss),
            state.norms_W.at[slot].set(norm),
        )
        refused = state._replace(skipped=state.skipped + 1)
        # p + -0.0 is p to the bit, p + 0.0 is not where p is -0.0.
        updates = jax.tree.map(lambda u: jnp.where(good, u, jnp.full_like(u, -0.0)), updates)
        return updates, jax.tree.map(lambda new, old: jnp.where(good, new, old), taken, refused)

    return optax.GradientTransformationExtraArgs(init, update)
