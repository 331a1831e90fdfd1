"""Loss scaling: gradients that float16 would flush to zero are computed larger, and brought back in float32.

float16 holds nothing between 0 and 2^-24, and many gradients of activations and weights are smaller. The loss is
multiplied by a scale before it is differentiated, so that everything in the backward pass is larger by as much; the
parameters' gradients are divided by it in float32. Too large a scale overflows to infinity, which is seen in the
gradients: the step is then selected away, as the guard does it (guards.py), and a dynamic scale halved.

flax's DynamicScale differentiates and judges at once, so with gradient accumulation each part of a batch would have
a verdict of its own; it also leaves the selection to its caller. Hence these few lines.

Sources: Micikevicius et al. 2018, section 3.2; the dynamic rule and its numbers, NVIDIA's guide to training with mixed
precision.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from blobjax.config import schema

# The largest power of two whose reciprocal float32 holds without a subnormal. Gradients that are all zero never
# overflow, and an infinite scale would never come back.
_LARGEST = 2.0**126


class LossScaleState(NamedTuple):
    """The wrapped optimizer's state, and the scale."""

    inner: Any
    scale: jax.Array
    """float32, what the next loss is multiplied by before it is differentiated."""
    good: jax.Array
    """int32, steps without overflow since the last that had one, or since the scale last grew."""
    skipped: jax.Array
    """int32, steps that were refused here (not those that a guard refused)."""

    def metrics(self, before: "LossScaleState") -> dict[str, jax.Array]:
        """`loss_scale` of the step, and `skipped`, 1 where it was refused here."""
        return {"loss_scale": before.scale, "skipped": (self.skipped - before.skipped).astype(jnp.float32)}


def loss_scaled(
    optimizer: optax.GradientTransformation, settings: schema.LossScaling, guarded: bool
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, but for steps whose gradients overflowed, and the scale of the next step.

    Its update takes gradients already divided by `scale`, which leaves infinity infinite, and `loss`, the unscaled
    loss as a float32 scalar.

    Args:
      guarded: whether the optimizer is guarded and refuses what is not finite by itself. An overflow that a smaller
        scale can cure is an everyday event, of which the guard hears nothing. What it cannot cure is the guard's: a
        scale that may not fall, or a loss that was not finite before it was scaled.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    dynamic = settings.kind == "dynamic"

    def init(params: Any) -> LossScaleState:
        return LossScaleState(optimizer.init(params), jnp.float32(settings.initial), jnp.int32(0), jnp.int32(0))

    def update(
        grads: Any, state: LossScaleState, params: Any = None, *, loss: jax.Array, **extra: Any
    ) -> tuple[Any, LossScaleState]:
        finite = jnp.isfinite(optax.tree.norm(grads))
        smaller = jnp.maximum(state.scale / 2, settings.floor) if dynamic else state.scale
        curable = ~finite & jnp.isfinite(loss) & (smaller < state.scale)
        taken = ~curable if guarded else finite

        good = jnp.where(finite, state.good + 1, 0)
        grows = good == settings.growth_every if dynamic else jnp.bool(False)
        scale = jnp.where(grows, jnp.minimum(state.scale * 2, _LARGEST), state.scale)
        scale = jnp.where(curable, smaller, scale)

        updates, inner = optimizer.update(grads, state.inner, params, loss=loss, **extra)
        # p + -0.0 is p to the bit, p + 0.0 is not where p is -0.0.
        updates = jax.tree.map(lambda u: jnp.where(taken, u, jnp.full_like(u, -0.0)), updates)
        inner = jax.tree.map(lambda new, old: jnp.where(taken, new, old), inner, state.inner)
        return updates, LossScaleState(inner, scale, jnp.where(grows, 0, good), state.skipped + ~taken)

    return optax.GradientTransformationExtraArgs(init, update)
