"""The guard in a run: the same verdict on every device, an event for each refused step, and an end to patience."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.config import HaltedError
from blobjax.config.schema import Guard, Rollback, Sustained
from blobjax.program.batches import global_batches
from blobjax.program.program import make_program
from blobjax.runs.directory import EventLog, RunDirectory, read_jsonl
from blobjax.training.loop import StepReport
from blobjax.training.trainer import train as train_run
from blobjax.training.trouble import GuardWatch, Trouble
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


def reports(in_a_row: str, troubled: str = ""):
    """Reports of steps with these counts, a digit each."""
    for step, refused in enumerate(map(int, in_a_row), start=1):
        counts = {"skipped": refused > 0, "skipped_in_a_row": refused}
        if troubled:
            counts["troubled"] = int(troubled[step - 1])
        metrics = {**counts, "loss": jnp.nan, "grad_norm": 1}
        yield StepReport(step, {name: jnp.float32(value) for name, value in metrics.items()}, 1.0, 0.0, 0.0)


def test_each_refused_step_is_an_event_and_patience_ends(tmp_path):
    said = []
    with EventLog(tmp_path / "events.jsonl") as events:
        watch = GuardWatch(Guard(patience=2), said.append, events)
        *patient, last = reports("120123")
        for report in patient:
            watch.report(report)
            assert watch.calm == (report.step == 3)
        with pytest.raises(Trouble, match="3 steps in a row") as trouble:
            watch.report(last)
        assert (trouble.value.step, trouble.value.first) == (6, 4)
    lines = list(read_jsonl(tmp_path / "events.jsonl"))
    assert [(line["event"], line["step"], line["loss"]) for line in lines] == [
        ("skip", step, "nan") for step in (1, 2, 4, 5, 6)
    ]
    assert said[0] == "step 1 skipped: loss nan, gradient norm 1"


def test_a_loss_that_stays_high_is_trouble_from_its_beginning_on(tmp_path):
    guard = Guard(patience=2, rollback=Rollback(sustained=Sustained(steps=4)))
    with EventLog(tmp_path / "events.jsonl") as events:
        watch = GuardWatch(guard, lambda line: None, events)
        *patient, last = reports("0001001000", "1201230123")
        for report in [*patient, last]:
            watch.report(report)
        (fourth,) = list(reports("0", "4"))
        with pytest.raises(Trouble, match="for 4 steps in a row the loss was") as trouble:
            watch.report(StepReport(11, fourth.metrics, 1.0, 0.0, 0.0))
        assert (trouble.value.step, trouble.value.first) == (11, 8)


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
    told = [event["event"] for event in events if event["event"] != "spent"]
    assert told[-3:] == ["skip", "skip", "stop"]
    assert events[-1]["reason"].startswith("HaltedError: halted at step")
    assert "first bad numbers: " in events[-1]["reason"]
