"""Normalisation of activations, with statistics in float32 whatever the compute dtype.

Sources: RMSNorm, Zhang & Sennrich 2019; LayerNorm, Ba et al. 2016; DyT, Zhu et al. 2025.
Dims: C the normalised features (d_model, or d_head for QK-norm).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from blobjax.config.schema import Conditioning


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + ε) · gain.

    The mean is not subtracted: Zhang & Sennrich found re-scaling, not re-centring, to be what helps.
    """

    def __init__(self, features: int, epsilon: float):
        # Gains are not sharded: they are too small to be worth a collective.
        self.gain = nnx.Param(jnp.ones((features,), jnp.float32), axes=(None,))
        self.epsilon = epsilon

    def __call__(self, x_C: jax.Array) -> jax.Array:
        """Args: x_C [..., C], any float dtype. Returns the same shape and dtype; computed in float32."""
        x = x_C.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * scale * self.gain[...]).astype(x_C.dtype)


class LayerNorm(nnx.Module):
    """(x - mean(x)) / sqrt(var(x) + ε) · gain + bias."""

    def __init__(self, features: int, epsilon: float):
        self.gain = nnx.Param(jnp.ones((features,), jnp.float32), axes=(None,))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32), axes=(None,))
        self.epsilon = epsilon

    def __call__(self, x_C: jax.Array) -> jax.Array:
        """Args: x_C [..., C], any float dtype. Returns the same shape and dtype; computed in float32."""
        x = x_C.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        # From centred values: E[x²] - E[x]² loses all digits where the mean is large against the spread.
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.epsilon)
        return (centred * scale * self.gain[...] + self.bias[...]).astype(x_C.dtype)


class DyT(nnx.Module):
    """gain · tanh(slope · x) + bias: bounds what is large and leaves the rest alone, with no statistics at all.

    The slope is one learnt number, which starts at 0.5 (Zhu et al. 2025, section 5).
    """

    def __init__(self, features: int, epsilon: float):
        self.gain = nnx.Param(jnp.ones((features,), jnp.float32), axes=(None,))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32), axes=(None,))
        self.slope = nnx.Param(jnp.full((), 0.5, jnp.float32), axes=())

    def __call__(self, x_C: jax.Array) -> jax.Array:
        """Args: x_C [..., C], any float dtype. Returns the same shape and dtype; computed in float32."""
        squashed = jnp.tanh(self.slope[...] * x_C.astype(jnp.float32))
        return (squashed * self.gain[...] + self.bias[...]).astype(x_C.dtype)


Norm = RMSNorm | LayerNorm | DyT

_KINDS: dict[str, type[Norm]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm, "dyt": DyT}


def make_norm(conditioning: Conditioning, features: int, place: str) -> Norm | None:
    """The norm that `conditioning.norm` names, over the last `features` features.

    Args:
      place: `embedding`, `input`, `output`, `stream` or `final`; `conditioning.norm_placement` says which have one.

    Returns:
      The norm, or None where that place has none.
    """
    if place not in conditioning.normed:
        return None
    return _KINDS[conditioning.norm](features, conditioning.norm_epsilon)


def normalise(norm: Norm | None, x_C: jax.Array) -> jax.Array:
    """norm(x), or x itself where there is none."""
    return x_C if norm is None else norm(x_C)
