"""z-loss: keeps the output softmax's partition function near one.

Source: PaLM (Chowdhery et al. 2022, section 5); what it cures at small scale: Wortsman et al. 2023, section 3.1.
Dims: B batch, T time.
"""

import jax
import jax.numpy as jnp


def z_loss(log_z_BT: jax.Array, mask_BT: jax.Array, total: jax.Array | float) -> jax.Array:
    """Sum of (log Z)^2 over the unmasked tokens, divided by `total`; before its coefficient.

    Args:
      log_z_BT: logsumexp of each token's logits, float32, in nats; any shape.
      mask_BT: 1 where a token counts, 0 elsewhere; the same shape.
      total: tokens that count over the whole global batch, of which these may be a part: so parts add up to the mean.

    Returns:
      Scalar float32, in nats squared.
    """
    return jnp.sum(mask_BT * jnp.square(log_z_BT)) / total
