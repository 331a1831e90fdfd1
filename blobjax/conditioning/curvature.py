"""Two numbers of a whole run that no single block has: how noisy its gradients are, and how curved its loss is.

Sources: the gradient noise scale, McCandlish et al. 2018 (An Empirical Model of Large-Batch Training, appendix A.1);
the edge of stability, Cohen et al. 2021, and that of adaptive optimizers, Cohen et al. 2022.
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
    loss: Callable[[Any], jax.Array], params: Any, key: jax.Array, iterations: int, scale: Any = None
) -> tuple[jax.Array, jax.Array]:
    """The eigenvalue of S H S that is largest in absolute value, by power iteration; H is the loss's Hessian.

    A Hessian-vector product is the forward-mode derivative of the gradient (Pearlmutter 1994), at about the cost of two
    gradients; the Hessian itself is never formed.

    Args:
      loss: a scalar function of the parameters.
      params: float32 arrays.
      key: draws the vector that the iteration starts from.
      iterations: products taken. The error falls by the ratio of the two largest eigenvalues with each.
      scale: the diagonal S, as the parameters; None: ones. With the inverse root of Adam's preconditioner the
        eigenvalue is that of the preconditioned Hessian, whose own is the edge that Adam trains at.

    Returns:
      The eigenvalue (a Rayleigh quotient, float32, with its sign), and how far the last vector is from being an
      eigenvector: |Av − λv| / |λ|, 0 at convergence.
    """

    def scaled(v: Any) -> Any:
        return v if scale is None else jax.tree.map(jnp.multiply, v, scale)

    def product(v: Any) -> Any:
        return scaled(jax.jvp(jax.grad(loss), (params,), (scaled(v),))[1])

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


def adam_scale(nu: Any, taken: jax.Array, beta1: float, beta2: float, epsilon: float, rates: Any, epsilons: Any) -> Any:
    """Inverse root of Adam's preconditioner, that of each parameter over its own learning rate.

    A parameter whose rate is r η and whose epsilon is c ε moves as one of rate η would under the preconditioner
    (1 - β1^t) (sqrt(v / (1 - β2^t)) + c ε) / r (Cohen et al. 2022, section 2, where r = c = 1).

    Args:
      nu: Adam's second moments. Its gradients are divided by c, as a parametrisation shows them to it: v / c².
      taken: int32, steps that Adam has taken.
      rates, epsilons: r and c, as the parameters (`parametrisation.learning_rates`, `parametrisation.epsilons`).
    """
    steps = jnp.maximum(taken, 1).astype(jnp.float32)
    warm1, warm2 = 1 - beta1**steps, 1 - beta2**steps

    def one(nu: jax.Array, r: float, c: float) -> jax.Array:
        return jax.lax.rsqrt(warm1 * c * (jnp.sqrt(nu / warm2) + epsilon) / r)

    return jax.tree.map(one, nu, rates, epsilons)


def adam_edge(learning_rate: jax.typing.ArrayLike, beta1: float) -> jax.typing.ArrayLike:
    """The preconditioned eigenvalue beyond which Adam's steps overshoot (Cohen et al. 2022, section 3): 38 / η."""
    return (2 + 2 * beta1) / ((1 - beta1) * learning_rate)
