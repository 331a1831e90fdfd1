"""Next-token prediction: the mean negative log-likelihood of each token given those before it, in nats."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from blobjax.conditioning.losses import z_loss
from blobjax.config.schema import Config
from blobjax.objectives.held_out import by_domain, by_position, perplexity
from blobjax.objectives.logprobs import TokenScores
from blobjax.objectives.objective import Batch, BatchSource, Context, Parts, StreamSource

_INTEGERS = ("tokens", "targets", "segments", "positions", "target_bytes")


class NextToken:
    """Cross-entropy and z-loss, in nats per token that counts."""

    arrays = dict.fromkeys(_INTEGERS, jnp.int32) | {"mask": jnp.float32}
    entropy = False
    watched = ("bits_per_byte", "bits/byte")

    def __init__(self, config: Config):
        self._z_loss = config.conditioning.z_loss

    def parts(self, scores: TokenScores, batch: Batch, total: jax.Array | float) -> Parts:
        """`cross_entropy` and `z_loss`, its coefficient included."""
        mask_BC = batch["mask"]
        return {
            "cross_entropy": jnp.sum(mask_BC * scores.nats_BC) / total,
            "z_loss": self._z_loss * z_loss(scores.log_z_BC, mask_BC, total),
        }

    def metrics(self, parts: Parts, batch: Batch, total: jax.Array) -> Parts:
        """`bits_per_byte`, which compares across tokenizers."""
        bytes_total = jnp.sum(batch["target_bytes"])
        return {"bits_per_byte": parts["cross_entropy"] * total / (bytes_total * math.log(2))}

    def derived(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """`perplexity`."""
        return {"perplexity": perplexity(metrics["cross_entropy"])}

    def sums(self, parts: Parts, batch: Batch) -> Parts:
        """`nats`, `tokens` and `bytes` of the targets that count."""
        tokens, size = jnp.sum(batch["mask"]), jnp.sum(batch["target_bytes"])
        return {"nats": parts["cross_entropy"], "tokens": tokens, "bytes": size.astype(jnp.float32)}

    def source(self, context: Context, steps: Iterable[int]) -> BatchSource:
        """The stream."""
        return StreamSource(context.batches(steps))

    def evaluate(self, context: Context, params: Any) -> dict[str, float]:
        """Held-out loss by domain and, with `evaluation.by_position`, by place in the context."""
        more = by_position(context, params) if context.config.evaluation.by_position else {}
        return by_domain(context, params) | more
