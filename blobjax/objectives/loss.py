"""The loss of a model on a batch: one forward pass, the scores of its targets, and what the objective makes of them.

Dims: B batch, T time, C tokens of a row in one chunk, D d_model, V vocabulary.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from blobjax.conditioning.flow import Flow
from blobjax.config.schema import Config
from blobjax.model import Transformer
from blobjax.objectives.logprobs import before_backward, gathered, n_chunks, sum_over_chunks, token_scores
from blobjax.objectives.objective import Batch, Objective, Parts


class LossReport(NamedTuple):
    """What there is to say of a batch besides its loss."""

    parts: Parts
    """The objective's parts (coefficients included), which sum to the loss; float32 scalars."""
    flow: dict[str, Flow]
    """Flow probes of the `embedding`, the `blocks` (arrays [L]) and the `output`; empty where none are asked for."""


def loss(
    objective: Objective,
    model: Transformer,
    batch: Batch,
    config: Config,
    total: jax.Array | float,
    probing: jax.Array | None = None,
) -> tuple[jax.Array, LossReport]:
    """The objective's loss of a batch.

    Args:
      batch: [B, T] arrays, those that the objective names.
      config: whose `compute.loss_chunk_tokens` is read.
      total: targets that count over the whole global batch, so that the losses and gradients of its parts add up.
      probing: bool scalar, whether flow probes measure this batch; None: never.

    Returns:
      The loss, a float32 scalar, and what it is made of.
    """
    x_BTD, flow = model.hidden(batch["tokens"], batch["segments"], batch["positions"], probing)

    chunks = n_chunks(x_BTD.shape[0], x_BTD.shape[1], config.compute.loss_chunk_tokens)
    w_DV = None
    if chunks > 1:
        w_DV, x_BTD = gathered(model.output_weights(), x_BTD, model.products["output"].gradient)

    def parts_of(x_BCD: jax.Array, targets_BC: jax.Array, batch: Batch) -> tuple[Parts, Flow]:
        scores = token_scores(model, x_BCD, targets_BC, w_DV, objective.entropy)
        parts = objective.parts(scores, batch, total)
        if probing is None:
            return parts, {}
        # One more sum is not worth a condition.
        log_z_BC = jax.lax.stop_gradient(scores.log_z_BC)
        return parts, {"log_z_mean": jnp.sum(batch["mask"] * log_z_BC) / total}

    if chunks == 1:
        parts, output = parts_of(x_BTD, batch["targets"], batch)
    else:
        parts, output = sum_over_chunks(parts_of, (x_BTD, batch["targets"], batch), chunks)
        parts = before_backward(parts)
    return functools.reduce(operator.add, parts.values()), LossReport(parts, {**flow, "output": output})
