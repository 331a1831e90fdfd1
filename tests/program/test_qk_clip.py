"""QK-clip in a run: the next forward pass has the logits it should, on any mesh, and a refused step clips nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.program.batches import global_batches
from blobjax.program.program import make_program
from tests.tiny import tiny

# Within the range of the logits that the first batch makes with the weights as they are drawn.
THRESHOLD = 4.6
# Probing at steps 2, 4 and 6, of which the first is refused. The learning rate moves no weight, and all batches are the
# same but for the poison: what changes is the clip's doing.
POISONED = 2
SETTINGS = (
    f"conditioning.qk_clip={THRESHOLD}",
    "conditioning.qk_norm=false",
    "conditioning.probe_every=2",
    "conditioning.guard={window: 50}",
    "optimizer.learning_rate=1.0e-30",
    "optimizer.weight_decay=0.0",
)


def run(*overrides: str, devices: int = 1):
    """States and metrics of six steps; those of step n at n, the state before the first at 0."""
    settings = tiny(*SETTINGS, *overrides)
    layout = make_layout(settings, jax.devices()[:devices])
    stream = data.open_stream(settings, data.prepare(settings))
    program = make_program(settings, layout, stream.tokens_per_epoch)
    step, state = program.lower_train_step().compile(), program.init()
    batch = next(global_batches(stream, 0, program.batch_sharding, program.shape_BT))
    poisoned = {**batch, "mask": jax.device_put(batch["mask"] * jnp.nan, program.batch_sharding)}
    states, found = [jax.device_get(state)], [{}]
    for i in range(1, 7):
        state, metrics = step(state, poisoned if i == POISONED else batch)
        states.append(jax.device_get(state))
        found.append(jax.device_get(metrics))
    return states, found


@pytest.fixture(scope="module")
def grouped():
    return run("model.n_kv_heads=2")


@pytest.fixture(scope="module", params=[4, 2])
def alone(request, grouped):
    return grouped if request.param == 2 else run()


def logits_LH(metrics):
    return metrics["flow"]["blocks"]["attention_logit_max"]


def clipped(found):
    return [metrics["qk_clipped"] for metrics in found[1:]]


def test_logits_of_the_first_block_come_back_to_the_threshold(alone):
    """Of the first block alone: the second's input is another once the first attends otherwise."""
    _, found = alone
    before, after = logits_LH(found[4])[0], logits_LH(found[6])[0]
    assert (before > THRESHOLD).any()
    assert (before < THRESHOLD).any()
    # γ is exact to a few float32 roundings, and logits are sums of eight products.
    np.testing.assert_allclose(after, np.minimum(before, THRESHOLD), rtol=1e-5)


def test_it_acts_on_probing_steps_alone_and_says_on_how_many_heads(alone):
    states, found = alone
    assert clipped(found)[3] == (logits_LH(found[4]) > THRESHOLD).sum()
    assert [step for step, n in enumerate(clipped(found), start=1) if n] == [
        4,
        *([6] if found[6]["qk_clipped"] else []),
    ]
    weights = [state.params["blocks"]["attention"] for state in states]
    jax.tree.map(np.testing.assert_array_equal, weights[3], weights[0])
    jax.tree.map(np.testing.assert_array_equal, weights[5], weights[4])
    np.testing.assert_array_equal(weights[4]["value"], weights[3]["value"])
    heads = logits_LH(found[4]) > THRESHOLD
    np.testing.assert_array_equal((weights[4]["query"] != weights[3]["query"]).any(axis=(1, 3)), heads)
    shared = weights[4]["key"].shape[2] < heads.shape[1]
    np.testing.assert_array_equal((weights[4]["key"] != weights[3]["key"]).any(axis=(1, 3)), 0 if shared else heads)


def test_a_refused_step_clips_nothing(alone):
    states, found = alone
    assert (logits_LH(found[POISONED]) > THRESHOLD).any(), "it would have clipped"
    assert (found[POISONED]["skipped"], found[POISONED]["qk_clipped"]) == (1, 0)
    before, after = states[POISONED - 1], states[POISONED]
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state.inner, before.opt_state.inner)


def test_it_decides_the_same_when_split(grouped):
    _, found = grouped
    mesh = "compute.mesh={data: 1, fsdp: 4, tensor: 2}"
    _, split = run("model.n_kv_heads=2", "compute.gradient_accumulation=2", mesh, devices=8)
    assert clipped(split) == clipped(found)
    # Float32 sums in another order.
    np.testing.assert_allclose(logits_LH(split[6]), logits_LH(found[6]), rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["muon", "lion"])
def test_any_optimizer_and_format_of_parameters_has_it(optimizer):
    settings = tiny(
        *SETTINGS,
        f"optimizer.name={optimizer}",
        "conditioning.precision=bfloat16_params",
        "conditioning.parameter_rounding=stochastic",
        "conditioning.guard=null",
    )
    program = make_program(settings, make_layout(settings, jax.devices()[:1]), 10_000)
    state, metrics = program.lower_train_step().out_info
    assert metrics["qk_clipped"].shape == ()
    assert {str(p.dtype) for p in jax.tree.leaves(state.params)} == {"bfloat16"}
