"""Soft caps: a smooth bound on logits, so that no single score can saturate a softmax.

Source: Gemma 2 (Gemma Team 2024, section 2); the form is that of Bello et al. 2017.
"""

import jax
import jax.numpy as jnp


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """cap · tanh(x / cap): about x where |x| is small, never beyond ± cap; x itself where cap is 0.

    Args:
      x: any shape, any float dtype; computed in that dtype.
      cap: the bound, in the units of x; 0 turns the cap off.
    """
    return cap * jnp.tanh(x / cap) if cap else x
