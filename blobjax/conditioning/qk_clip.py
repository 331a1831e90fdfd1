"""QK-clip: where a head's attention logits grew too large, its query and key weights are scaled back after the update.

The forward pass is left as it is. A soft cap or a norm would change it; this changes the weights, and those of the
heads that need it only.

Source: Kimi K2 (Kimi Team 2025, section 2.1 and algorithm 1).
Dims: L layers, D d_model, H query heads, G key/value heads, K d_head.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class QKClipState(NamedTuple):
    """What QK-clip counts."""

    clipped_heads: jax.Array
    """int32, heads scaled so far, each as often as it was."""

    def metrics(self, before: "QKClipState") -> dict[str, jax.Array]:
        """`qk_clipped`, heads scaled in the step; none in a refused one, whose state is the old one."""
        return {"qk_clipped": (self.clipped_heads - before.clipped_heads).astype(jnp.float32)}


def qk_clip(threshold: float) -> optax.GradientTransformationExtraArgs:
    """Turns an update u into one after which q · k of head h is smaller by γ = threshold / (its largest logit).

    Query and key weights take √γ each. Where a key head serves several query heads it is left alone and the query takes
    all of γ, as the paper does with the key that its heads share: a clip of one head is no business of another.

    It comes last, so that nothing scales its work again, and within a guard, so that a refused step scales nothing. Its
    update also takes `logits_LH`, the largest absolute logit of every head in this step's forward pass; a logit that is
    not finite, or 0 where none was measured, clips nothing.
    """

    def init(params: Any) -> QKClipState:
        return QKClipState(jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: QKClipState, params: Any = None, *, logits_LH: jax.Array, **extra: Any
    ) -> tuple[Any, QKClipState]:
        over_LH = jnp.isfinite(logits_LH) & (logits_LH > threshold)
        gamma_LH = jnp.where(over_LH, threshold / logits_LH, 1.0)
        attention = updates["blocks"]["attention"]

        def scaled(name: str, gamma_LH: jax.Array) -> jax.Array:
            u_LDHK, p_LDHK = attention[name], params["blocks"]["attention"][name]
            gamma_L1H1 = gamma_LH[:, None, :, None]
            # Unclipped heads stay bitwise unchanged.
            return jnp.where(gamma_L1H1 < 1, gamma_L1H1 * (p_LDHK + u_LDHK) - p_LDHK, u_LDHK)

        if attention["key"].shape[2] == logits_LH.shape[1]:
            root_LH = jnp.sqrt(gamma_LH)
            attention = {**attention, "query": scaled("query", root_LH), "key": scaled("key", root_LH)}
        else:
            attention = {**attention, "query": scaled("query", gamma_LH)}
        updates = {**updates, "blocks": {**updates["blocks"], "attention": attention}}
        return updates, QKClipState(state.clipped_heads + jnp.sum(over_LH, dtype=jnp.int32))

    return optax.GradientTransformationExtraArgs(init, update)
