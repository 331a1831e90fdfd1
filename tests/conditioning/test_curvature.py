"""Gradient noise and curvature where both are known: on quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blobjax.conditioning.curvature import adam_edge, adam_scale, noise_estimate, top_eigenvalue


def test_noise_scale_of_a_quadratic_with_known_noise():
    """Loss |x - ξ|²/2 with ξ ~ N(0, diag σ²): a gradient is x - ξ, so G = x and tr Σ = sum σ²."""
    rng = np.random.default_rng(0)
    x = np.array([0.3, -0.2, 0.1, 0.0])
    sigma = np.array([1.0, 2.0, 0.5, 1.5])
    small_batch, big_batch = 4, 64
    estimates = []
    for _ in range(4000):
        gradients = (x - sigma * rng.standard_normal((big_batch // small_batch, small_batch, 4))).mean(axis=1)
        small = np.mean(np.sum(gradients**2, axis=-1))
        big = np.sum(gradients.mean(axis=0) ** 2)
        estimates.append(noise_estimate(small, big, small_batch, big_batch))
    squared, noise = np.array(estimates).T
    # Four standard errors of a mean of 4000.
    within = lambda values: 4 * values.std() / np.sqrt(len(values))  # noqa: E731
    assert np.mean(squared) == pytest.approx(np.sum(x**2), abs=within(squared))
    assert np.mean(noise) == pytest.approx(np.sum(sigma**2), abs=within(noise))
    assert within(squared) < 0.2 * np.sum(x**2)
    # Averages first, then the ratio: single squared gradients are negative as often as not.
    assert np.mean(noise) / np.mean(squared) == pytest.approx(np.sum(sigma**2) / np.sum(x**2), rel=0.2)
    assert np.mean(squared < 0) > 0.1


def quadratic(eigenvalues):
    rng = np.random.default_rng(1)
    basis, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    matrix = (basis * eigenvalues) @ basis.T

    def loss(params):
        x = jnp.concatenate([params["a"], params["b"].ravel()])
        return 0.5 * x @ jnp.asarray(matrix, jnp.float32) @ x

    return matrix, loss, {"a": jnp.ones(2), "b": jnp.ones((2, 2))}


@pytest.mark.parametrize("top", [9.0, -9.0])
def test_top_eigenvalue_with_its_sign(top):
    _, loss, params = quadratic(np.array([top, 4.0, -3.0, 2.0, 1.0, 0.5]))
    found, residual = jax.jit(lambda p: top_eigenvalue(loss, p, jax.random.key(0), 30))(params)
    # The error falls by (4/9)² with each product; what is left is float32.
    assert float(found) == pytest.approx(top, rel=1e-4)
    assert float(residual) < 1e-3


def test_too_few_products_show_in_the_residual():
    _, loss, params = quadratic(np.array([9.0, 8.9, 8.8, 8.7, 8.6, 8.5]))
    assert float(top_eigenvalue(loss, params, jax.random.key(0), 2)[1]) > 1e-3


def test_top_eigenvalue_of_the_preconditioned_hessian():
    matrix, loss, params = quadratic(np.array([9.0, 4.0, 3.0, 2.0, 1.0, 0.5]))
    scale = {"a": jnp.array([0.1, 2.0]), "b": jnp.array([[1.0, 0.5], [3.0, 0.2]])}
    diagonal = np.diag(np.concatenate([np.ravel(s) for s in scale.values()]))
    wanted = np.linalg.eigvalsh(diagonal @ matrix @ diagonal)[-1]
    found, _ = top_eigenvalue(loss, params, jax.random.key(0), 100, scale)
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_adam_overshoots_beyond_its_edge_and_not_below():
    """Where the preconditioned curvature is 1, momentum as Adam has it diverges from the edge's rate on."""
    beta1, reached = 0.9, {}
    for factor in (0.95, 1.05):
        x, momentum = 1.0, 0.0
        for _ in range(400):
            momentum = beta1 * momentum + (1 - beta1) * x
            x -= factor * adam_edge(1.0, beta1) * momentum
        reached[factor] = abs(x)
    assert reached[0.95] < 1e-3
    assert reached[1.05] > 1e3


def test_adam_scale_is_the_inverse_root_of_what_adam_divides_by():
    adam = optax.scale_by_adam(0.9, 0.95, 1e-3)
    params = {"w": jnp.zeros(3)}
    state = adam.init(params)
    for _ in range(4):
        _, state = adam.update({"w": jnp.array([1.0, -2.0, 0.5])}, state)
    # Constant gradients: the corrected second moment is their square.
    wanted = (1 - 0.9**4) * (np.array([1.0, 2.0, 0.5]) + 1e-3)
    ones = {"w": 1.0}
    np.testing.assert_allclose(
        adam_scale(state.nu, state.count, 0.9, 0.95, 1e-3, ones, ones)["w"], wanted**-0.5, rtol=1e-5
    )


def test_adam_scale_of_a_rate_and_an_epsilon_of_its_own():
    adam = optax.scale_by_adam(0.9, 0.95, 1e-3)
    state = adam.init({"w": jnp.zeros(3)})
    gradient, r, c = np.array([1.0, -2.0, 0.5]), 0.25, 0.1
    for _ in range(4):
        _, state = adam.update({"w": jnp.asarray(gradient / c)}, state)
    wanted = (1 - 0.9**4) * (np.abs(gradient) + c * 1e-3) / r
    np.testing.assert_allclose(
        adam_scale(state.nu, state.count, 0.9, 0.95, 1e-3, {"w": r}, {"w": c})["w"], wanted**-0.5, rtol=1e-5
    )
