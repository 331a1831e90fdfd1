"""Two numbers of a whole run that no single block has: how noisy its gradients are, and how curved its loss is.

Sources: the gradient noise scale, McCandlish et al. 2018 (An Empirical Model of Large-Batch Training, appendix A.1);
the edge of stability, Cohen et al. 2021.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class NoiseEstimate(NamedTuple):
    """Unbiased estimates from one step; single ones are so noisy that only averages of many mean anything."""

    squared_gradient: jax.Array
    """float32, of |G|²: the squared norm that the gradient of infinitely many examples would have. May be negative."""
    noise: jax.Array
    """float32, of tr Σ: the summed variance of one example's gradient."""


def noise_estimate(small: jax.Array, big: jax.Array, small_batch: float, big_batch: float) -> NoiseEstimate:
    """Both estimates from squared gradient norms at two batch sizes.

    E|G_B|² = |G|² + tr Σ / B is a line in 1/B; two points on it give its offset and its slope.

    Args:
      small, big: squared norms of the mean gradient over `small_batch` and over `big_batch` examples.
    """
    squared_gradient = (big_batch * big - small_batch * small) / (big_batch - small_batch)
    noise = (small - big) / (1 / small_batch - 1 / big_batch)
    return NoiseEstimate(squared_gradient, noise)


def top_eigenvalue(
    loss: Callable[[Any], jax.Array], params: Any, key: jax.Array, iterations: int
) -> tuple[jax.Array, jax.Array]:
    """The eigenvalue of the loss's Hessian that is largest in absolute value, by power iteration.

    A Hessian-vector product is the forward-mode derivative of the gradient (Pearlmutter 1994), at about the cost of two
    gradients; the Hessian itself is never formed.

    Args:
      loss: a scalar function of the parameters.
      key: draws the vector that the iteration starts from.
      iterations: products taken. The error falls by the ratio of the two largest eigenvalues with each.

    Returns:
      The eigenvalue (a Rayleigh quotient, float32, with its sign), and how far the last vector is from being an
      eigenvector: |Hv − λv| / |λ|, 0 at convergence.
    """

    def product(v: Any) -> Any:
        return jax.jvp(jax.grad(loss), (params,), (v,))[1]

    def unit(v: Any) -> Any:
        norm = optax.tree.norm(v)
        return jax.tree.map(lambda x: x / jnp.where(norm > 0, norm, 1), v)

    def iterate(_: int, v: Any) -> Any:
        return unit(product(v))

    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, leaves, strict=True)]
    first = jax.tree.unflatten(tree, drawn)
    v = jax.lax.fori_loop(0, iterations - 1, iterate, unit(first))
    last = product(v)
    value = optax.tree.vdot(v, last)
    residual = optax.tree.norm(jax.tree.map(lambda h, x: h - value * x, last, v))
    return value, residual / jnp.abs(value)
