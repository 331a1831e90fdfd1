"""What wrappers publish of a step, wherever they sit in an optax chain."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blobjax.conditioning import wrappers
from blobjax.conditioning.guards import guarded
from blobjax.conditioning.loss_scaling import loss_scaled
from blobjax.conditioning.qk_clip import qk_clip
from blobjax.config.schema import Guard, LossScaling

GRADS = {"w": jnp.ones(3)}
ATTENTION = {"query": jnp.ones((1, 2, 2, 2)), "key": jnp.ones((1, 2, 2, 2))}
PARAMS = {"blocks": {"attention": ATTENTION}}


def take(optimizer, grads, state, params, **extra):
    """The state after a step, and what the wrappers say of it."""
    _, after = optimizer.update(grads, state, params, **extra)
    return after, {name: float(value) for name, value in wrappers.metrics(state, after).items()}


def test_an_optimizer_without_wrappers_says_nothing():
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    state = optimizer.init(GRADS)
    after, said = take(optimizer, GRADS, state, GRADS)
    assert said == {}
    assert wrappers.refused(after) == 0
    assert wrappers.loss_scale(after) is None


@pytest.mark.parametrize("chained", [False, True])
def test_all_wrappers_speak_and_the_inner_name_counts(chained):
    inner = optax.chain(optax.sgd(0.0), qk_clip(10.0))
    optimizer = loss_scaled(guarded(inner, Guard()), LossScaling(kind="dynamic", initial=8.0), guarded=True)
    if chained:
        optimizer = optax.chain(optimizer)
    logits = {"logits_LH": jnp.array([[20.0, 5.0]])}
    state = optimizer.init(PARAMS)
    assert wrappers.loss_scale(state) == 8

    state, said = take(optimizer, PARAMS, state, PARAMS, loss=jnp.float32(1), **logits)
    assert said == {"loss_scale": 8, "skipped": 0, "skipped_in_a_row": 0, "qk_clipped": 1}
    assert wrappers.refused(state) == 0

    # The guard refuses a loss that was not finite before it was scaled.
    state, said = take(optimizer, PARAMS, state, PARAMS, loss=jnp.float32(np.nan), **logits)
    assert said == {"loss_scale": 8, "skipped": 1, "skipped_in_a_row": 1, "qk_clipped": 0}
    assert wrappers.refused(state) == 1

    # An overflow is refused by loss scaling, and the guard hears nothing of it.
    overflow = {"blocks": {"attention": {name: x * jnp.inf for name, x in ATTENTION.items()}}}
    state, said = take(optimizer, overflow, state, PARAMS, loss=jnp.float32(1), **logits)
    assert said == {"loss_scale": 8, "skipped": 0, "skipped_in_a_row": 1, "qk_clipped": 0}
    assert wrappers.refused(state) == 2
    assert wrappers.loss_scale(state) == 4
