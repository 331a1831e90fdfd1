"""Sequence length warm-up: training begins on short sequences, without another shape and so without another program.

Sequences are cut into pieces, which are documents to attention: the same tokens a step, exactly as if the batch were
that many more sequences of that length. (Rotary embeddings see distances only, so positions need not begin anew.)

Source: Li et al. 2022 (The Stability-Efficiency Dilemma), which throws away what is beyond the length instead.
Dims: B batch, T time.
"""

import jax
import jax.numpy as jnp


def in_pieces(segments_BT: jax.Array, length: jax.Array | int) -> jax.Array:
    """Segments that also begin anew every `length` tokens.

    Args:
      segments_BT: int32 document numbers, which never fall along a row, as those of training windows.
      length: int32, tokens in a piece; at least 1.

    Returns:
      int32 [B, T]. A sum of two numbers that never fall is the same at two places only where both are.
    """
    time_T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)
    return segments_BT + time_T // length
