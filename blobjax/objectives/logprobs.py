"""Log-probabilities of target tokens: the one quantity that every objective is made of.

The output logits are by far the largest tensor of a small model with a large vocabulary: 8,192 tokens of 128,256 words
are 4 GB in float32, and their gradient is as large. With `compute.loss_chunk_tokens` they are computed, used and
dropped chunk by chunk, and computed once more in the backward pass.

Dims: B batch, T time, C tokens of a row in one chunk (T without chunks), N chunks, D d_model, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from blobjax.compute.sharding import constrain
from blobjax.model import Transformer


class TokenScores(NamedTuple):
    """What the model says of each target; float32 arrays [B, C], nats."""

    target_BC: jax.Array
    """Logit of the target."""
    log_z_BC: jax.Array
    """log Z: logsumexp of the logits over the vocabulary."""
    entropy_BC: jax.Array | None
    """Entropy of the whole prediction; None unless the objective asks for it."""

    @property
    def nats_BC(self) -> jax.Array:
        """-log p(target)."""
        return self.log_z_BC - self.target_BC

    @property
    def log_p_BC(self) -> jax.Array:
        """log p(target)."""
        return self.target_BC - self.log_z_BC


def token_scores(
    model: Transformer, x_BCD: jax.Array, targets_BC: jax.Array, w_DV: jax.Array | None = None, entropy: bool = False
) -> TokenScores:
    """Scores of the targets.

    Args:
      x_BCD: what `model.hidden` returned.
      targets_BC: int32 token ids.
      w_DV: the output projection where `gathered` has laid it out; None: the model's.
      entropy: whether to compute the entropy too.
    """
    logits_BCV = constrain(model.logits(x_BCD, w_DV), ("batch", "time", "vocab"))
    log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    # A masked sum, not a gather: a vocabulary split over devices would be gathered first.
    words_V = jnp.arange(logits_BCV.shape[-1])
    target_BC = jnp.sum(jnp.where(words_V == targets_BC[..., None], logits_BCV, 0), axis=-1)
    if not entropy:
        return TokenScores(target_BC, log_z_BC, None)
    mean_BC = jnp.sum(jax.nn.softmax(logits_BCV, axis=-1) * logits_BCV, axis=-1)
    return TokenScores(target_BC, log_z_BC, log_z_BC - mean_BC)


def n_chunks(rows: int, length: int, chunk_tokens: int) -> int:
    """Into how many equal chunks of at most `chunk_tokens` tokens a [rows, length] batch is cut; 1 where that is 0.

    A chunk holds tokens of every row, so that every device that holds rows works on every chunk. So it is never smaller
    than one token a row.
    """
    if not chunk_tokens:
        return 1
    return next(
        n for n in range(1, length + 1) if length % n == 0 and (rows * length // n <= chunk_tokens or n == length)
    )


def sum_over_chunks(sums_of: Callable[..., Any], arrays_BT: Any, chunks: int) -> Any:
    """sums_of(arrays) of each chunk, added up; computed once more in the backward pass, so that no chunk's logits stay.

    Args:
      sums_of: from a tree of [B, C, …] arrays to a tree of sums over their tokens.
      arrays_BT: the tree of [B, T, …] arrays.
    """
    # Chunk n takes the tokens at n, n + N, n + 2N, …, not a run of them: a time dim split over devices stays split.
    chunks_NBC = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] // chunks, chunks, *x.shape[2:]), 2, 0), arrays_BT
    )

    @jax.checkpoint
    def add(sums: Any, chunk: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, sums_of(*chunk)), None

    first = jax.tree.map(lambda x_NBC: x_NBC[0], chunks_NBC)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(sums_of, *first))
    return jax.lax.scan(add, zeros, chunks_NBC)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def gathered(w_DV: jax.Array, x_BTD: jax.Array, reduction: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Both as they are, w whole along D on every device: once a step, where every chunk would gather it again.

    The gradient of w is whole too. It is summed over chunks on each device and over devices once, in the format
    `reduction`, as those of all other weights; and before the backward pass of the layers begins, which would keep it
    whole otherwise.
    """
    return constrain(w_DV, (None, "vocab")), x_BTD


def _gathered_forward(w_DV: jax.Array, x_BTD: jax.Array, reduction: DTypeLike) -> tuple[Any, None]:
    return gathered(w_DV, x_BTD, reduction), None


def _gathered_backward(
    reduction: DTypeLike, _: None, gradients: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    dw_DV, dx_BTD = gradients
    sum_DV = constrain(constrain(dw_DV.astype(reduction), (None, "vocab")), ("embed", "vocab"))
    sum_DV, dx_BTD = jax.lax.optimization_barrier((sum_DV, dx_BTD))
    return sum_DV.astype(dw_DV.dtype), dx_BTD


gathered.defvjp(_gathered_forward, _gathered_backward)


@jax.custom_vjp
def before_backward(tree: Any) -> Any:
    """The same tree, computed before the backward pass begins.

    The gradients of recomputed chunks do not need the loss. A compiler may leave it for the end of the step and keep
    everything that it is computed from until then.
    """
    return tree


def _before_backward_forward(tree: Any) -> tuple[Any, Any]:
    return tree, tree


def _before_backward_backward(tree: Any, gradients: Any) -> tuple[Any]:
    return (jax.lax.optimization_barrier((gradients, tree))[0],)


before_backward.defvjp(_before_backward_forward, _before_backward_backward)
