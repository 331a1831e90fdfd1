"""Rollbacks in real runs: the same on any mesh, whatever is gone back to, and after a kill at the worst of moments."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from blobjax.checkpointing.checkpointer import Checkpointer
from blobjax.compute.sharding import make_layout
from blobjax.config import BadInputError, HaltedError, dump
from blobjax.runs.directory import read_jsonl
from blobjax.runs.passages import read_passages
from blobjax.training import preflight, trainer
from tests.tiny import TINY, tiny
from tests.training.test_processes import losses
from tests.training.test_processes import train as train_processes
from tests.training.test_resume import assert_same_bits, trajectory

ROLLBACK = "{snapshots: 2, snapshot_every: 3, margin: 1, skip: 2, at_most: 2, sustained: {sigmas: 1000, steps: 3}}"
# Batches of 16: steps 14 and 15 are bad. The second is one too many, step 12 is the last that is trusted.
SETTINGS = (
    "compute.mesh={data: 1, fsdp: 8}",
    f"conditioning.guard={{window: 4, sigmas: 0, patience: 1, rollback: {ROLLBACK}}}",
    "duration.length=24 steps",
    "checkpoint.every=5 steps",
    "faults.nan=[208, 240]",
)
WINDOW = {"first": 192, "last": 272}


def run(directory: Path, *overrides: str) -> Path:
    assert trainer.train(tiny(*SETTINGS, f"logging.run_dir={directory}", *overrides)) == trainer.FINISHED
    return directory


def rollbacks(directory: Path) -> list[tuple]:
    events = read_jsonl(directory / "events.jsonl")
    return [(e["step"], e["to_step"], *e["passed_over"]) for e in events if e["event"] == "rollback"]


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory):
    return run(tmp_path_factory.mktemp("rollback") / "run")


def test_it_goes_back_before_the_trouble_and_passes_over_the_data(rolled_back):
    assert rollbacks(rolled_back) == [(15, 12, 192, 272)]
    (passage,) = read_passages(rolled_back / "passed_over.json")
    assert {name: passage[name] for name in WINDOW} == WINDOW
    steps = [line["step"] for line in read_jsonl(rolled_back / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, 25)), "each step stands once in the history of the run"
    undone = list(read_jsonl(rolled_back / "undone_metrics.jsonl"))
    assert [(line["step"], line["loss"] == "nan") for line in undone] == [(13, False), (14, True), (15, True)]


def test_it_is_the_run_that_was_never_given_that_data(rolled_back, tmp_path):
    """Not one bit is left of the steps that were undone: neither in parameters nor in what the optimizer remembers."""
    directory = tmp_path / "run"
    directory.mkdir()
    overrides = ("faults.nan=null", f"logging.run_dir={directory}")
    (directory / "config.yaml").write_text(dump(tiny(*SETTINGS, *overrides)))
    (directory / "passed_over.json").write_text(json.dumps({"windows": [WINDOW]}))
    run(directory, *overrides)
    assert rollbacks(tmp_path / "run") == []
    assert_same_bits(tmp_path / "run", rolled_back)
    assert trajectory(tmp_path / "run") == trajectory(rolled_back)


@pytest.mark.parametrize(("every", "to_step"), [("5 steps", 10), ("100 steps", 0)], ids=["checkpoint", "initial state"])
def test_without_snapshots_an_older_state_leads_to_the_same(rolled_back, tmp_path, every, to_step):
    run(tmp_path / "run", "conditioning.guard.rollback.snapshots=0", f"checkpoint.every={every}")
    assert rollbacks(tmp_path / "run") == [(15, to_step, 192, 272)]
    assert_same_bits(tmp_path / "run", rolled_back)


def test_checkpoints_of_the_undone_steps_are_gone(tmp_path):
    # Step 14 is saved, refused, before there is trouble; the run halts before it comes there again.
    settings = ("checkpoint.every=7 steps", "faults.nan=[208, 400]", "conditioning.guard.rollback.at_most=1")
    with pytest.raises(HaltedError, match=r"halted at step 14: 2 steps in a row .*after 1 rollback .*the batch itself"):
        run(tmp_path / "run", *settings)
    events = list(read_jsonl(tmp_path / "run" / "events.jsonl"))
    assert [e["step"] for e in events if e["event"] == "save"] == [7, 14]
    assert Checkpointer(tmp_path / "run" / "checkpoints").steps() == [7]
    report = json.loads((tmp_path / "run" / "halt.json").read_text())
    assert (report["step"], report["good_step"]) == (14, 9)
    assert report["probes"]["output"]["log_z_mean"]["bad"] == "nan"
    # The bound is the run's, not the process's: run again, it halts without another rollback.
    with pytest.raises(HaltedError, match="after 1 rollback"):
        run(tmp_path / "run", *settings)
    assert len(rollbacks(tmp_path / "run")) == 1


def test_one_device_decides_as_eight_do(tmp_path, monkeypatch, rolled_back):
    monkeypatch.setattr(preflight, "make_layout", lambda config: make_layout(config, jax.devices()[:1]))
    run(tmp_path / "run", "compute.mesh={data: 1}")
    assert rollbacks(tmp_path / "run") == rollbacks(rolled_back)


def test_two_processes_decide_as_one(tmp_path, rolled_back):
    given = ("compute.mesh={data: 2, fsdp: 4}", *SETTINGS[1:])
    train_processes(tmp_path / "run", *given, processes=2, devices=4)
    assert rollbacks(tmp_path / "run") == rollbacks(rolled_back)
    # Float32 sums in another order, as in test_processes.
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(rolled_back), rtol=1e-5)


KILLED = """
import os, signal
from blobjax import cli
from blobjax.{room} import {module}
inner = {name}
def killed(*given):
    if {when}: os.kill(os.getpid(), signal.SIGKILL)
    inner(*given)
    if {whether}: os.kill(os.getpid(), signal.SIGKILL)
{name} = killed
cli.main()
"""


@pytest.mark.parametrize(
    ("room", "module", "name", "when", "whether"),
    [
        ("training", "recovery", "recovery.Recovery._pass_over", False, True),
        ("runs", "passages", "passages.write_atomically", "'passed_over' in str(given[0])", False),
    ],
    ids=["before the next checkpoint", "before the window is written"],
)
def test_killed_in_a_rollback_and_run_again_is_the_run_that_was_not(
    rolled_back, tmp_path, room, module, name, when, whether
):
    """Neither of the two restarts makes anything of the trouble that the undisturbed run did not make of it."""
    settings = [*TINY, *SETTINGS, "compute.virtual_cpu_devices=8", f"logging.run_dir={tmp_path}/run"]
    script = KILLED.format(room=room, module=module, name=name, when=when, whether=whether)
    killed = subprocess.run(
        [sys.executable, "-c", script, "train", "laptop", *settings], capture_output=True, text=True, timeout=300
    )
    assert killed.returncode == -9, killed.stderr
    assert Checkpointer(tmp_path / "run" / "checkpoints").steps() == [5, 10]
    assert (tmp_path / "run" / "passed_over.json").exists() == whether
    run(tmp_path / "run")
    assert len(rollbacks(tmp_path / "run")) == 1
    assert_same_bits(tmp_path / "run", rolled_back)
    assert trajectory(tmp_path / "run") == trajectory(rolled_back)


def test_a_loss_that_stays_high_is_gone_back_from(tmp_path):
    sustained = "conditioning.guard.rollback.sustained={sigmas: 2, steps: 3}"
    poison = ("faults={nan: null, poison: [272, 336]}", "duration.length=40 steps", "conditioning.guard.patience=10")
    run(tmp_path / "run", sustained, *poison)
    # Steps 18 to 20 are the first three of four poisoned ones, none of which is refused.
    assert rollbacks(tmp_path / "run") == [(20, 15, 256, 352)]
    assert not any(event["event"] == "skip" for event in read_jsonl(tmp_path / "run" / "events.jsonl"))


@pytest.mark.smoke
def test_a_spoilt_record_of_windows_is_refused(tmp_path):
    path = tmp_path / "passed_over.json"
    assert read_passages(path) == []
    for content in ("", "[]", '{"windows": [{"first": 9, "last": 3}]}', '{"windows": [3]}'):
        path.write_text(content)
        with pytest.raises(BadInputError, match=r"passed_over\.json does not hold the windows"):
            read_passages(path)
