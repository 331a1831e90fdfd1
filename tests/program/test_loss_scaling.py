"""float16 in a run: what underflows is saved, what overflows is skipped to the bit, and only the scale shows it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blobjax import data
from blobjax.checkpointing.checkpointer import Checkpointer
from blobjax.compute.sharding import make_layout
from blobjax.config.schema import Checkpoint
from blobjax.program.batches import global_batches
from blobjax.program.program import make_program
from blobjax.training.announcements import warnings
from tests.tiny import tiny

FLOAT16 = "conditioning.precision=float16"
# At 2^20 and 2^19 one token's gradients of activations overflow; those of weights are summed in float32, and do not.
DYNAMIC = "conditioning.loss_scaling={kind: dynamic, growth_every: 3, initial: 1048576}"
OVERFLOWS = (2, 5)


def start(*overrides: str, devices: int = 1):
    settings = tiny(f"compute.mesh={{data: 1, fsdp: {devices}}}", *overrides)
    stream = data.open_stream(settings, data.prepare(settings))
    program = make_program(settings, make_layout(settings, jax.devices()[:devices]), stream.tokens_per_epoch)
    batches = global_batches(stream, 0, program.batch_sharding, program.shape_BT)
    return program, program.lower_train_step().compile(), [next(batches) for _ in range(8)]


def one_target(batch, program):
    """The batch with a single token that counts: its gradients, not divided by 512, overflow; its loss does not."""
    mask = jnp.zeros_like(batch["mask"]).at[0, 5].set(1)
    return {**batch, "mask": jax.device_put(mask, program.batch_sharding)}


def train(*overrides: str, devices: int = 1, overflows: tuple[int, ...] = OVERFLOWS):
    """States and metrics after each of eight steps, on the host; the state at the start first."""
    program, step, batches = start(*overrides, devices=devices)
    state = program.init()
    states, seen = [jax.device_get(state)], []
    for i, batch in enumerate(batches):
        state, metrics = step(state, one_target(batch, program) if i in overflows else batch)
        states.append(jax.device_get(state))
        seen.append(jax.device_get(metrics))
    return states, seen


def column(metrics, name) -> np.ndarray:
    return np.array([m[name] for m in metrics])


def assert_same_bits(a, b):
    assert [np.asarray(x).tobytes() for x in jax.tree.leaves(a)] == [
        np.asarray(x).tobytes() for x in jax.tree.leaves(b)
    ]


@pytest.fixture(scope="module")
def dynamic():
    return train(FLOAT16, DYNAMIC)


@pytest.fixture(scope="module")
def float32():
    return train(overflows=())


def test_an_overflowing_step_keeps_every_bit_but_the_scales(dynamic):
    states, metrics = dynamic
    np.testing.assert_array_equal(column(metrics, "skipped"), [0, 0, 1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(np.log2(column(metrics, "loss_scale")), [20, 20, 20, 19, 19, 19, 18, 18])
    for i in OVERFLOWS:
        assert np.isfinite(metrics[i]["loss"])
        assert_same_bits(states[i + 1].params, states[i].params)
        assert_same_bits(states[i + 1].opt_state.inner, states[i].opt_state.inner)


def test_the_schedule_waits_for_skipped_steps(dynamic, float32):
    rates, undisturbed = column(dynamic[1], "learning_rate"), column(float32[1], "learning_rate")
    np.testing.assert_array_equal(rates, undisturbed[[0, 1, 2, 2, 3, 4, 4, 5]])


def test_what_is_reported_is_not_scaled(dynamic, float32):
    for name in ("loss", "cross_entropy", "grad_norm"):
        # Eleven bits of significand through a few layers; before the first overflow the batches are the same.
        np.testing.assert_allclose(column(dynamic[1], name)[:2], column(float32[1], name)[:2], rtol=5e-3)


@pytest.mark.parametrize(
    ("devices", "overrides"),
    [(8, ()), (1, ("compute.gradient_accumulation=4",))],
    ids=["fsdp=8", "gradient accumulation"],
)
def test_one_verdict_whatever_the_devices_and_parts(devices, overrides, dynamic):
    """The overflow is in the rows of one device, or of one part; the others have no gradient at all."""
    states, metrics = train(FLOAT16, DYNAMIC, *overrides, devices=devices)
    for name in ("skipped", "loss_scale", "learning_rate"):
        np.testing.assert_array_equal(column(metrics, name), column(dynamic[1], name))
    for i in OVERFLOWS:
        assert_same_bits(states[i + 1].params, states[i].params)
    for name in ("loss", "grad_norm"):
        a, b = (np.delete(column(m, name), OVERFLOWS) for m in (metrics, dynamic[1]))
        np.testing.assert_allclose(a, b, rtol=5e-3)  # eleven bits, summed in another order


def test_with_a_guard_an_overflow_is_not_its_event(dynamic):
    states, metrics = train(FLOAT16, DYNAMIC, "conditioning.guard={window: 4, patience: 0}")
    assert not column(metrics, "skipped").any()
    for name in ("loss_scale", "learning_rate"):
        np.testing.assert_array_equal(column(metrics, name), column(dynamic[1], name))
    for i in OVERFLOWS:
        assert_same_bits(states[i + 1].params, states[i].params)
        assert_same_bits(states[i + 1].opt_state.inner, states[i].opt_state.inner)
    assert (states[-1].opt_state.skipped, states[-1].opt_state.inner.skipped) == (2, 0)
    assert states[-1].opt_state.inner.accepted == 6


def test_the_scale_survives_a_checkpoint(tmp_path, dynamic):
    program, step, batches = start(FLOAT16, DYNAMIC)
    state = program.init()
    for i in range(4):
        state, _ = step(state, one_target(batches[i], program) if i in OVERFLOWS else batches[i])
    checkpointer = Checkpointer(tmp_path, Checkpoint())
    checkpointer.save(state, step=4, sequences=64, data="text")
    checkpointer.close()
    state, _ = Checkpointer(tmp_path).restore(4, program.state, data="text")
    assert (state.opt_state.scale, state.opt_state.good, state.opt_state.skipped) == (2**19, 1, 1)
    for i in range(4, 8):
        state, _ = step(state, one_target(batches[i], program) if i in OVERFLOWS else batches[i])
    assert_same_bits(jax.device_get(state), dynamic[0][-1])


def flushed(states) -> float:
    """Share of gradients that were zero at every step: where Adam's first moment still is."""
    leaves = jax.tree.leaves(optax.tree.get(states[-1].opt_state, "mu")["blocks"])
    return sum(np.sum(leaf == 0) for leaf in leaves) / sum(leaf.size for leaf in leaves)


def test_small_gradients_are_lost_without_a_scale_and_kept_with_one(float32):
    """On a CPU too: XLA computes products of float16 in float32 there, and must round what comes out."""
    small = "conditioning.loss_multiplier=1.0e-4"
    raw = train(FLOAT16, small, overflows=())
    static = train(FLOAT16, small, "conditioning.loss_scaling={kind: static}", overflows=())
    assert flushed(raw[0]) > 0.5
    assert flushed(static[0]) < 0.01
    assert not column(static[1], "skipped").any()
    # The multiplier is in the gradients and not in the loss.
    np.testing.assert_allclose(column(static[1], "grad_norm")[0], 1e-4 * column(float32[1], "grad_norm")[0], rtol=5e-3)
    np.testing.assert_allclose(column(static[1], "loss")[0], column(float32[1], "loss")[0], rtol=1e-3)


@pytest.mark.parametrize(("overrides", "lines"), [((), 0), ((FLOAT16,), 1), ((FLOAT16, DYNAMIC), 0)])
def test_a_run_without_scaling_is_warned_of(overrides, lines):
    settings = tiny(*overrides)
    found = warnings(make_program(settings, make_layout(settings, jax.devices()[:1]), 10_000))
    assert len(found) == lines
    assert all("float16 without loss scaling" in line for line in found)
