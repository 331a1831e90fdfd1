"""Soft caps and z-loss."""

import jax
import jax.numpy as jnp
import numpy as np

from blobjax.conditioning import soft_cap
from blobjax.conditioning.losses import z_loss


def test_soft_cap_bounds_and_leaves_small_values():
    x = jnp.array([-1e6, -0.01, 0.0, 0.01, 1e6])
    np.testing.assert_allclose(soft_cap(x, 5.0), [-5, -0.01, 0, 0.01, 5], rtol=1e-4)
    assert soft_cap(x, 0.0) is x


def test_z_loss_is_a_masked_mean_whose_parts_add_up():
    log_z = jnp.array([[1.0, -2.0, 3.0], [4.0, 5.0, 6.0]])
    mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert z_loss(log_z, mask, 3) == (1 + 4 + 16) / 3
    assert sum(z_loss(log_z[i], mask[i], 3) for i in range(2)) == (1 + 4 + 16) / 3


def test_z_loss_pulls_the_partition_function_towards_one():
    logits = jnp.array([2.0, 1.0, 0.5])
    gradient = jax.grad(lambda x: z_loss(jax.nn.logsumexp(x), jnp.float32(1), 1))(logits)
    log_z = jax.nn.logsumexp(logits)
    np.testing.assert_allclose(gradient, 2 * log_z * jax.nn.softmax(logits), rtol=1e-5)
