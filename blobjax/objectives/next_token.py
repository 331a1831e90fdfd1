"""Next-token prediction: the mean negative log-likelihood of each token given those before it, in nats.

The output logits are by far the largest tensor of a small model with a large vocabulary: 8,192 tokens of 128,256 words
are 4 GB in float32, and as much again for their gradient. With `compute.loss_chunk_tokens` they are computed, used and
forgotten chunk by chunk, and once more in the backward pass.

Dims: B batch, T time, C tokens of a row in one chunk, N chunks, D d_model, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from blobjax.compute.sharding import constrain
from blobjax.conditioning.flow import Flow
from blobjax.conditioning.losses import z_loss
from blobjax.config.schema import Config
from blobjax.model import Transformer

Parts = dict[str, jax.Array]


class Report(NamedTuple):
    """What there is to say of a batch besides its loss."""

    parts: Parts
    """`cross_entropy` and `z_loss` (coefficient included), which sum to the loss; float32 scalars, nats."""
    flow: dict[str, Flow]
    """Flow probes of the `embedding`, the `blocks` (arrays [L]) and the `output`; empty where none are asked for."""


def loss(
    model: Transformer,
    batch: dict[str, jax.Array],
    config: Config,
    total: jax.Array | float,
    probing: jax.Array | None = None,
) -> tuple[jax.Array, Report]:
    """Sum of the batch's token losses over `total`.

    Args:
      model: the transformer.
      batch: [B, T] arrays `tokens`, `targets`, `segments`, `positions` (int32) and `mask` (float32, 1 where the target
        counts).
      config: whose `conditioning.z_loss` and `compute.loss_chunk_tokens` are read.
      total: targets that count over the whole global batch, so that the losses and gradients of its parts add up.
      probing: bool scalar, whether flow probes measure this batch; None: never.

    Returns:
      The loss, a float32 scalar in nats, and what it is made of.
    """
    x_BTD, flow = model.hidden(batch["tokens"], batch["segments"], batch["positions"], probing)

    chunks = n_chunks(x_BTD.shape[0], x_BTD.shape[1], config.compute.loss_chunk_tokens)
    w_DV = None
    if chunks > 1:
        w_DV, x_BTD = _gathered(model.output_weights(), x_BTD, model.products["output"].gradient)

    def parts_of(x_BCD: jax.Array, targets_BC: jax.Array, mask_BC: jax.Array) -> tuple[Parts, Flow]:
        logits_BCV = constrain(model.logits(x_BCD, w_DV), ("batch", "time", "vocab"))
        log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
        # A masked sum, not a gather: a vocabulary split over devices would be gathered first.
        words_V = jnp.arange(logits_BCV.shape[-1])
        target_BC = jnp.sum(jnp.where(words_V == targets_BC[..., None], logits_BCV, 0), axis=-1)
        parts = {
            "cross_entropy": jnp.sum(mask_BC * (log_z_BC - target_BC)) / total,
            "z_loss": config.conditioning.z_loss * z_loss(log_z_BC, mask_BC, total),
        }
        # One more sum is not worth a condition.
        mean = {} if probing is None else {"log_z_mean": jnp.sum(mask_BC * jax.lax.stop_gradient(log_z_BC)) / total}
        return parts, mean

    if chunks == 1:
        parts, output = parts_of(x_BTD, batch["targets"], batch["mask"])
    else:
        parts, output = _sum_over_chunks(parts_of, (x_BTD, batch["targets"], batch["mask"]), chunks)
        parts = _before_backward(parts)
    return parts["cross_entropy"] + parts["z_loss"], Report(parts, {**flow, "output": output})


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gathered(w_DV: jax.Array, x_BTD: jax.Array, reduction: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Both as they are, w whole along D on every device: once a step, where every chunk would gather it again.

    So is its gradient: summed over chunks on each device, and over devices once, in the format `reduction`, as those of
    all other weights; and before the layers' backward pass begins, through which it would be kept whole otherwise.
    """
    return constrain(w_DV, (None, "vocab")), x_BTD


def _gathered_forward(w_DV: jax.Array, x_BTD: jax.Array, reduction: DTypeLike) -> tuple[Any, None]:
    return _gathered(w_DV, x_BTD, reduction), None


def _gathered_backward(
    reduction: DTypeLike, _: None, gradients: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    dw_DV, dx_BTD = gradients
    sum_DV = constrain(constrain(dw_DV.astype(reduction), (None, "vocab")), ("embed", "vocab"))
    sum_DV, dx_BTD = jax.lax.optimization_barrier((sum_DV, dx_BTD))
    return sum_DV.astype(dw_DV.dtype), dx_BTD


_gathered.defvjp(_gathered_forward, _gathered_backward)


@jax.custom_vjp
def _before_backward(parts: Parts) -> Parts:
    """What it is given, computed before the backward pass begins.

    The gradients of recomputed chunks do not need the loss, and a compiler may leave it for the end of the step, with
    all that it is computed from kept until then.
    """
    return parts


def _before_backward_forward(parts: Parts) -> tuple[Parts, Parts]:
    return parts, parts


def _before_backward_backward(parts: Parts, gradients: Parts) -> tuple[Parts]:
    return (jax.lax.optimization_barrier((gradients, parts))[0],)


_before_backward.defvjp(_before_backward_forward, _before_backward_backward)


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


def _sum_over_chunks(sums_of: Callable[..., Any], arrays_BT: tuple[jax.Array, ...], chunks: int) -> Any:
    # Chunk n takes the tokens at n, n + N, n + 2N, …, not a run of them: a time dim split over devices stays split.
    chunks_NBC = [
        jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] // chunks, chunks, *x.shape[2:]), 2, 0) for x in arrays_BT
    ]

    @jax.checkpoint
    def add(sums: Any, chunk: list[jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, sums_of(*chunk)), None

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(sums_of, *(x[0] for x in chunks_NBC)))
    return jax.lax.scan(add, zeros, chunks_NBC)[0]
