"""The guard in a run: the same verdict on every device, an event for each refused step, and an end to patience."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.config import HaltedError
from blobjax.config.schema import Guard
from blobjax.training.batches import global_batches
from blobjax.training.guard_watch import GuardWatch
from blobjax.training.loop import StepReport
from blobjax.training.program import make_program
from blobjax.training.run_directory import EventLog, RunDirectory, read_jsonl
from blobjax.training.trainer import train as train_run
from tests.tiny import tiny

POISONED = 4


def train(devices: int, poison: bool):
    """Parameters and metrics of nine steps, one of them with a NaN in its batch; or without that one."""
    mesh = "{data: 1, fsdp: 8}" if devices == 8 else "{data: 1}"
    settings = tiny(f"compute.mesh={mesh}", "conditioning.guard={window: 4}")
    layout = make_layout(settings, jax.devices()[:devices])
    stream = data.open_stream(settings, data.prepare(settings))
    program = make_program(settings, layout, stream.tokens_per_epoch)
    step, state = program.lower_train_step().compile(), program.init()
    batches = global_batches(stream, 0, program.batch_sharding, program.shape_BT)
    seen = []
    for i in range(9):
        batch = next(batches)
        if i == POISONED and poison:
            batch = {**batch, "mask": jax.device_put(batch["mask"] * jnp.nan, program.batch_sharding)}
        elif i == POISONED:
            continue
        state, metrics = step(state, batch)
        seen.append(jax.device_get(metrics))
    return jax.device_get(state), seen


@pytest.mark.parametrize("devices", [1, 8])
def test_a_poisoned_batch_leaves_no_trace(devices):
    state, metrics = train(devices, poison=True)
    clean, without = train(devices, poison=False)
    assert [m["skipped"] for m in metrics] == [i == POISONED for i in range(9)]
    assert np.isnan(metrics[POISONED]["loss"])
    jax.tree.map(np.testing.assert_array_equal, state.params, clean.params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state.inner, clean.opt_state.inner)
    del metrics[POISONED]
    assert [m["learning_rate"] for m in metrics] == [m["learning_rate"] for m in without]
    assert (state.step, state.opt_state.accepted, state.opt_state.skipped) == (9, 8, 1)


def test_the_metric_is_there_only_with_a_guard():
    settings = tiny()
    program = make_program(settings, make_layout(settings, jax.devices()[:1]), 10_000)
    assert "skipped" not in program.lower_train_step().out_info[1]


def reports(*verdicts: bool):
    for step, skipped in enumerate(verdicts, start=1):
        metrics = {"skipped": jnp.float32(skipped), "loss": jnp.float32(jnp.nan), "grad_norm": jnp.float32(1)}
        yield StepReport(step, metrics, 1.0, 0.0)


def test_each_refused_step_is_an_event_and_patience_ends(tmp_path):
    said = []
    with EventLog(tmp_path / "events.jsonl") as events:
        watch = GuardWatch(Guard(patience=2), said.append, events)
        for report in reports(True, True, False, True, True):
            watch.report(report)
        with pytest.raises(HaltedError, match="halted at step 6: 3 steps in a row"):
            watch.report(StepReport(6, next(reports(True)).metrics, 1.0, 0.0))
    lines = list(read_jsonl(tmp_path / "events.jsonl"))
    assert [(line["event"], line["step"], line["loss"]) for line in lines] == [
        ("skip", step, "nan") for step in (1, 2, 4, 5, 6)
    ]
    assert said[0] == "step 1 skipped: loss nan, gradient norm 1"


def test_a_run_that_only_refuses_ends_itself_and_says_why(tmp_path):
    # A rate that makes the loss jump, and a guard that takes any rise for a spike.
    settings = tiny(
        f"logging.run_dir={tmp_path}/run",
        "conditioning.guard={window: 2, sigmas: 1.0e-4, patience: 1}",
        "duration.length=200 steps",
        "optimizer.learning_rate=3.0",
        "duration.warmup=0 steps",
    )
    with pytest.raises(HaltedError, match=r"2 steps in a row .*conditioning.guard.patience 1"):
        train_run(settings)
    events = list(read_jsonl(RunDirectory(f"{tmp_path}/run").events))
    assert [event["event"] for event in events[-3:]] == ["skip", "skip", "stop"]
    assert events[-1]["reason"].startswith("HaltedError: halted at step")
