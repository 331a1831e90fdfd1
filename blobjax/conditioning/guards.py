"""The guard: a step whose numbers went bad is refused as a whole, on the device, without asking the host.

Refused means selected away: parameters and optimizer state keep their bits, and the bad numbers enter no statistic. (To
multiply the update by 0 would not do: 0 · NaN is NaN.) Every device takes part in the sums the verdict hangs on, so all
come to the same one.

It also counts, for the host to read, how long trouble has lasted: steps in a row that were refused, and steps in a row
whose loss, although accepted, stayed above the best it has been. The counts are part of the optimizer's state, so that
a restart goes on counting.

Source: the skip-step optimizer of OLMo-core (Ai2), whose window and threshold are the defaults.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from blobjax.config import schema


class LevelState(NamedTuple):
    """The level that the loss has reached, and how long it has not kept it."""

    mean: jax.Array
    std: jax.Array
    """float32, of the losses in the window with the lowest mean so far; infinite and 0 before the first is full."""
    troubled: jax.Array
    """int32, steps in a row that were refused or whose loss was too high above that."""


class GuardState(NamedTuple):
    """The guarded optimizer's state, and what the guard knows. Dims: W window."""

    inner: Any
    accepted: jax.Array
    """int32, steps taken."""
    skipped: jax.Array
    """int32, steps refused."""
    skipped_in_a_row: jax.Array
    """int32, steps refused since the last that was accepted."""
    losses_W: jax.Array
    norms_W: jax.Array
    """float32, of the last accepted steps; a ring, in which step n stands at n mod W."""
    level: LevelState | None
    """None where a loss that stays high is no trouble."""

    def metrics(self, before: "GuardState") -> dict[str, jax.Array]:
        """`skipped`, 1 where the step was refused; and how long trouble has lasted, 0 in quiet times.

        `skipped_in_a_row` steps were refused; `troubled` steps were refused or had a loss too high above its level.
        """
        counts = {"skipped": self.skipped - before.skipped, "skipped_in_a_row": self.skipped_in_a_row}
        if self.level is not None:
            counts["troubled"] = self.level.troubled
        return {name: count.astype(jnp.float32) for name, count in counts.items()}


def guarded(optimizer: optax.GradientTransformation, settings: schema.Guard) -> optax.GradientTransformationExtraArgs:
    """The optimizer, but for steps that are not finite or spike. Its update also takes `loss`, a float32 scalar."""
    optimizer = optax.with_extra_args_support(optimizer)
    sustained = settings.rollback.sustained if settings.rollback else None

    def init(params: Any) -> GuardState:
        window = jnp.zeros((settings.window,), jnp.float32)
        none = jnp.int32(0)
        level = LevelState(jnp.float32(jnp.inf), jnp.float32(0), none) if sustained else None
        return GuardState(optimizer.init(params), none, none, none, window, window, level)

    def spikes(x: jax.Array, window_W: jax.Array, accepted: jax.Array) -> jax.Array:
        if not settings.sigmas:
            return jnp.bool(False)
        limit = jnp.mean(window_W) + settings.sigmas * jnp.std(window_W)
        return (accepted >= settings.window) & (x > limit)

    def settle(level: LevelState | None, loss: jax.Array, losses_W: jax.Array, accepted: jax.Array) -> Any:
        """The level after an accepted step, whose loss is in the window already."""
        if sustained is None or level is None:
            return None
        high = loss > level.mean + sustained.sigmas * level.std
        mean, std = jnp.mean(losses_W), jnp.std(losses_W)
        best = (accepted >= settings.window) & (mean < level.mean)
        return LevelState(
            jnp.where(best, mean, level.mean),
            jnp.where(best, std, level.std),
            jnp.where(high, level.troubled + 1, 0),
        )

    def update(
        grads: Any, state: GuardState, params: Any = None, *, loss: jax.Array, **extra: Any
    ) -> tuple[Any, GuardState]:
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        spike = spikes(loss, state.losses_W, state.accepted) | spikes(norm, state.norms_W, state.accepted)
        good = finite & ~spike

        updates, inner = optimizer.update(grads, state.inner, params, **extra)
        slot = state.accepted % settings.window
        losses_W = state.losses_W.at[slot].set(loss)
        taken = GuardState(
            inner,
            state.accepted + 1,
            state.skipped,
            jnp.int32(0),
            losses_W,
            state.norms_W.at[slot].set(norm),
            settle(state.level, loss, losses_W, state.accepted + 1),
        )
        refused = state._replace(
            skipped=state.skipped + 1,
            skipped_in_a_row=state.skipped_in_a_row + 1,
            level=state.level and state.level._replace(troubled=state.level.troubled + 1),
        )
        # p + -0.0 is p to the bit, p + 0.0 is not where p is -0.0.
        updates = jax.tree.map(lambda u: jnp.where(good, u, jnp.full_like(u, -0.0)), updates)
        return updates, jax.tree.map(lambda new, old: jnp.where(good, new, old), taken, refused)

    return optax.GradientTransformationExtraArgs(init, update)
