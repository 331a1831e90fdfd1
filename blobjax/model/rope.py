"""Rotary position embeddings: a query's dot product with a key depends on how far apart they are, not on where.

Sources: Su et al. 2021, section 3.2.2; the frequency scaling is Llama 3.1's (Grattafiori et al. 2024, section 3.4.3,
as published with its weights). Feature i is paired with feature i + K/2, not with its neighbour as in the paper: the
same up to a permutation of the columns of the query and key projections, and it needs no interleaving.

Dims: B batch, T time, H heads, K d_head, P = K/2 pairs of features.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from blobjax.config.schema import Rope


def frequencies(rope: Rope, d_head: int) -> np.ndarray:
    """Radians a token by which each pair of features turns; float64 [P].

    With `rope.scaling`, slow pairs (wavelength beyond original_max_seq_len / low_freq_factor) turn `factor` times
    slower, fast pairs (wavelength below original_max_seq_len / high_freq_factor) as before, those between in between.
    """
    frequency_P = rope.theta ** (-np.arange(0, d_head, 2) / d_head)
    if rope.scaling is None:
        return frequency_P
    scaling = rope.scaling
    turns_P = scaling.original_max_seq_len * frequency_P / (2 * math.pi)
    # A factor range of no width would divide by zero; it means a step from one regime to the other.
    width = max(scaling.high_freq_factor - scaling.low_freq_factor, 1e-12)
    unscaled_P = np.clip((turns_P - scaling.low_freq_factor) / width, 0, 1)
    return frequency_P * (unscaled_P + (1 - unscaled_P) / scaling.factor)


def rotation(rope: Rope, d_head: int, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every pair's angle at every position; float32 [B, T, P] each.

    In float32 whatever the compute dtype: bfloat16 cannot tell positions beyond 256 apart.
    """
    frequency_P = jnp.asarray(frequencies(rope, d_head), jnp.float32)
    angle_BTP = positions_BT[..., None].astype(jnp.float32) * frequency_P
    return jnp.cos(angle_BTP), jnp.sin(angle_BTP)


def rotate(x_BTHK: jax.Array, cos_BTP: jax.Array, sin_BTP: jax.Array) -> jax.Array:
    """Turns each pair of features of every head by its angle. Same shape and dtype; computed in float32."""
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTP[:, :, None, :], sin_BTP[:, :, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTHK.dtype)
