"""Initial weights. They depend on the seed alone: jax's random bits are the same whatever the mesh.

matrices          truncated normal of variance 1 / fan-in, so that a layer keeps the variance of its input
                  (LeCun et al. 1998; as in T5, PaLM and jax's own lecun_normal).
into the stream   the matrices that write to the residual stream, further divided by sqrt(2 n_layers): the stream sums
                  2 n_layers of them (GPT-2, Radford et al. 2019, section 2.3). What else becomes of variances as a
                  model grows: conditioning/parametrisation.py.
embedding         normal of standard deviation 0.02 (GPT-2), tied or not. Tied, it is the output projection too, and a
                  small table keeps the first predictions near uniform: the loss starts at log(vocab_size).
gains             1; biases 0.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

EMBEDDING_STD = 0.02
# Standard deviation of a unit normal cut at ± 2; dividing by it restores unit variance.
TRUNCATED_STD = 0.87962566103423978


def matrix(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    fan_in: int,
    scale: float = 1.0,
) -> nnx.Param:
    """A float32 weight of standard deviation scale / sqrt(fan_in), from a normal cut at two of them.

    Args:
      rngs: gives the key.
      shape, axes: size and logical axis name of each dim.
      fan_in: how many inputs each output sums over.
      scale: what the parametrisation multiplies the deviation by, as for a matrix that writes to the residual stream.
    """
    std = scale / math.sqrt(fan_in) / TRUNCATED_STD
    return nnx.Param(std * jax.random.truncated_normal(rngs.params(), -2, 2, shape, jnp.float32), axes=axes)


def embedding(rngs: nnx.Rngs, vocab_size: int, d_model: int) -> nnx.Param:
    """A float32 [V, D] table."""
    table_VD = EMBEDDING_STD * jax.random.normal(rngs.params(), (vocab_size, d_model), jnp.float32)
    return nnx.Param(table_VD, axes=("vocab", "embed"))
