"""Next-token prediction: the mean negative log-likelihood of each token given those before it, in nats.

The output logits are by far the largest tensor of a small model with a large vocabulary: 8,192 tokens of 128,256 words
are 4 GB in float32, and as much again for their gradient. With `compute.loss_chunk_tokens` they are computed, used and
forgotten chunk by chunk, and once more in the backward pass.

Dims: B batch, T time, C tokens of a row in one chunk, N chunks, D d_model, V vocabulary.
"""

import jax
import jax.numpy as jnp

from blobjax.compute.sharding import constrain
from blobjax.conditioning.losses import z_loss
from blobjax.config.schema import Config
from blobjax.model import Transformer

Parts = dict[str, jax.Array]


def loss(
    model: Transformer, batch: dict[str, jax.Array], config: Config, total: jax.Array | float
) -> tuple[jax.Array, Parts]:
    """Sum of the batch's token losses over `total`.

    Args:
      model: the transformer.
      batch: [B, T] arrays `tokens`, `targets`, `segments`, `positions` (int32) and `mask` (float32, 1 where the target
        counts).
      config: whose `conditioning.z_loss` and `compute.loss_chunk_tokens` are read.
      total: targets that count over the whole global batch, so that the losses and gradients of its parts add up.

    Returns:
      The loss, and its parts `cross_entropy` and `z_loss` (coefficient included) that sum to it; float32 scalars, nats.
    """
    x_BTD = model.hidden(batch["tokens"], batch["segments"], batch["positions"])

    def parts_of(x_BCD: jax.Array, targets_BC: jax.Array, mask_BC: jax.Array) -> Parts:
        logits_BCV = constrain(model.logits(x_BCD), ("batch", "time", "vocab"))
        log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
        # A masked sum, not a gather: a vocabulary split over devices would be gathered first.
        words_V = jnp.arange(logits_BCV.shape[-1])
        target_BC = jnp.sum(jnp.where(words_V == targets_BC[..., None], logits_BCV, 0), axis=-1)
        return {
            "cross_entropy": jnp.sum(mask_BC * (log_z_BC - target_BC)) / total,
            "z_loss": config.conditioning.z_loss * z_loss(log_z_BC, mask_BC, total),
        }

    chunks = n_chunks(x_BTD.shape[0], x_BTD.shape[1], config.compute.loss_chunk_tokens)
    if chunks == 1:
        parts = parts_of(x_BTD, batch["targets"], batch["mask"])
    else:
        parts = _sum_over_chunks(parts_of, (x_BTD, batch["targets"], batch["mask"]), chunks)
    return parts["cross_entropy"] + parts["z_loss"], parts


def n_chunks(rows: int, length: int, chunk_tokens: int) -> int:
    """Into how many equal chunks of at most `chunk_tokens` tokens a [rows, length] batch is cut; 1 where that is 0.

    A chunk holds tokens of every row, so that every device that holds rows works on every chunk; so it is never smaller
    than one token a row.
    """
    if not chunk_tokens:
        return 1
    return next(
        n for n in range(1, length + 1) if length % n == 0 and (rows * length // n <= chunk_tokens or n == length)
    )


def _sum_over_chunks(parts_of, arrays_BT: tuple[jax.Array, ...], chunks: int) -> Parts:
    # Chunk n takes the tokens at n, n + N, n + 2N, …, not a run of them: a time dim split over devices stays split.
    chunks_NBC = [
        jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] // chunks, chunks, *x.shape[2:]), 2, 0) for x in arrays_BT
    ]

    @jax.checkpoint
    def add(sums: Parts, chunk: list[jax.Array]) -> tuple[Parts, None]:
        return jax.tree.map(jnp.add, sums, parts_of(*chunk)), None

    zero = {"cross_entropy": jnp.float32(0), "z_loss": jnp.float32(0)}
    return jax.lax.scan(add, zero, chunks_NBC)[0]
