"""Runs that begin from another run's checkpoint: bitwise what they would have been from the start, or refused."""

import json
import re
import shutil

import numpy as np
import pytest

from blobjax.checkpointing.checkpointer import Checkpointer
from blobjax.config import BadInputError, Clockwork, dump
from blobjax.runs.directory import read_jsonl
from blobjax.runs.ledger import read_ledger
from blobjax.runs.passages import read_passages
from blobjax.runs.status import status
from blobjax.training import branching
from blobjax.training.trainer import train
from tests.checkpointing.test_checkpoints import data_file, flip
from tests.tiny import tiny
from tests.training.test_resume import assert_same_bits, trajectory

SMALL = ("model.n_layers=1", "optimizer.decay=20%")
BRANCH = ("optimizer.schedule=wsd", "duration.length=10 steps")


def config(run_dir, *overrides):
    return tiny(f"logging.run_dir={run_dir}", *SMALL, *overrides)


def events(run_dir, name):
    return [event for event in read_jsonl(run_dir / "events.jsonl") if event["event"] == name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Beside each other `trunk`, 12 steps at a constant rate with checkpoints 4, 8 and 12, and `direct`, 10 of wsd."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(config(folder / "trunk", "optimizer.schedule=constant")) == 0
    assert train(config(folder / "direct", *BRANCH)) == 0
    return folder


def contents(run_dir):
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def test_a_decayed_branch_is_bitwise_the_run_of_that_length(folder, capsys):
    trunk = contents(folder / "trunk")
    # 80% of ten steps, from where wsd decays.
    assert train(config(folder / "branch", *BRANCH, "duration.start_from=trunk@80%")) == 0
    assert contents(folder / "trunk") == trunk
    assert_same_bits(folder / "branch", folder / "direct")
    assert trajectory(folder / "branch") == [line for line in trajectory(folder / "direct") if line["step"] > 8]
    said = capsys.readouterr().out
    assert f"begins from step 8 of {folder / 'trunk'}" in said
    # The trunk's tokens are none of what this run drew energy for.
    last = [line for line in read_jsonl(folder / "branch" / "metrics.jsonl") if "tokens" in line][-1]
    assert last["tokens"] == 10 * 16 * 32
    assert last["tokens_per_joule"] == pytest.approx(2 * 16 * 32 / last["energy_joules"])
    found = status(str(folder / "branch"))
    assert (found["tokens"], found["own_tokens"]) == (10 * 16 * 32, 2 * 16 * 32)
    amount, unit, rate = re.search(r"energy: ([\d.,]+) (k?J) .*; ([\d.,]+) tokens/J", said).groups()
    whole = float(amount.replace(",", "")) * {"J": 1, "kJ": 1000}[unit] * float(rate.replace(",", ""))
    assert whole == pytest.approx(2 * 16 * 32, rel=0.02)
    (event,) = events(folder / "branch", "branch")
    assert (event["step"], event["sequences"], event["run"]) == (8, 128, str(folder / "trunk"))
    assert event["changed"] == [
        "duration.length: 12 steps -> 10 steps",
        "duration.start_from: None -> trunk@80%",
        "optimizer.schedule: constant -> wsd",
    ]
    (attempt,) = read_ledger(read_jsonl(folder / "branch" / "events.jsonl")).attempts
    assert (attempt.first_step, attempt.last_step) == (8, 10)


def test_an_older_checkpoint_of_the_stable_phase_leads_to_the_same(folder):
    # By a path, from a point between two checkpoints.
    start = f"duration.start_from={folder / 'trunk'}@7 steps"
    assert train(config(folder / "older", *BRANCH, start)) == 0
    assert events(folder / "older", "branch")[0]["step"] == 4
    assert_same_bits(folder / "older", folder / "direct")


def test_killed_before_its_first_save_it_begins_from_the_same_step_again(folder, tmp_path):
    for name in ("trunk", "older"):
        shutil.copytree(folder / name, tmp_path / name)
    run_dir, start = tmp_path / "older", f"duration.start_from={folder / 'trunk'}@7 steps"
    clockwork = Clockwork(512, 1.0, 1, 1000, length=10)
    assert branching.find(config(run_dir, *BRANCH, start), clockwork, begun=False).step == 4
    # The trunk has moved on since.
    shutil.copytree(folder / "trunk" / "checkpoints" / "8", tmp_path / "trunk" / "checkpoints" / "7")
    moved = config(run_dir, *BRANCH, "duration.start_from=trunk@7 steps")
    assert branching.find(moved, clockwork, begun=False).step == 4
    shutil.rmtree(tmp_path / "trunk" / "checkpoints" / "4")
    with pytest.raises(BadInputError, match=r"it began from step 4, whose checkpoint is gone; there are: 7, 8, 12$"):
        branching.find(moved, clockwork, begun=False)
    # With a checkpoint of its own it needs the trunk no more.
    shutil.rmtree(tmp_path / "trunk")
    assert branching.find(moved, clockwork, begun=True).step == 4


def test_a_rollback_goes_back_to_where_the_run_began_and_not_beyond(folder):
    guard = "conditioning.guard={window: 2, sigmas: 1.0e6, patience: 1, rollback: {snapshots: 0, margin: 6, skip: 1}}"
    assert train(config(folder / "guarded", "optimizer.schedule=constant", guard)) == 0
    # The batch of steps 10 and 11, so the last good step would be 3.
    faults = (guard, "faults.nan=[144, 176]", "checkpoint.every=100 steps", "optimizer.schedule=constant")
    assert train(config(folder / "back", *faults, "duration.start_from=guarded@8 steps")) == 0
    (event,) = events(folder / "back", "rollback")
    assert (event["step"], event["to_step"], event["passed_over"][0]) == (11, 8, 128)
    assert Checkpointer(folder / "back" / "checkpoints").steps() == [12]
    losses = [float(line["loss"]) for line in read_jsonl(folder / "back" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 4
    assert np.all(np.isfinite(losses))


def test_what_the_trunk_had_passed_over_by_then_is_passed_over(folder, tmp_path):
    before, after = {"first": 16, "last": 48, "step": 3}, {"first": 400, "last": 500, "step": 11}
    trunk = config(tmp_path / "trunk", "optimizer.schedule=constant")
    (tmp_path / "trunk").mkdir()
    (tmp_path / "trunk" / "config.yaml").write_text(dump(trunk))
    (tmp_path / "trunk" / "passed_over.json").write_text(json.dumps({"windows": [before, after]}))
    assert train(trunk) == 0
    # Its checkpoints have them.
    (tmp_path / "trunk" / "passed_over.json").unlink()
    assert train(config(tmp_path / "branch", *BRANCH, "duration.start_from=trunk@80%")) == 0
    assert read_passages(tmp_path / "branch" / "passed_over.json") == [before]
    # The stream goes on 32 sequences further than without the window.
    lines = trajectory(tmp_path / "branch")
    assert lines[0]["tokens"] == 9 * 512
    (without,) = (line for line in trajectory(folder / "direct") if line["step"] == 9 and "loss" in line)
    assert lines[0]["loss"] != without["loss"]


def test_a_bad_checkpoint_is_refused_and_left_where_it_is(folder, tmp_path):
    shutil.copytree(folder / "trunk", tmp_path / "trunk")
    flip(data_file(tmp_path / "trunk" / "checkpoints" / "8"))
    with pytest.raises(BadInputError, match=r"checkpoint .*/8 is bad \(not what was saved: .*move it away"):
        train(config(tmp_path / "branch", *BRANCH, "duration.start_from=trunk@80%"))
    assert not (tmp_path / "branch" / "config.yaml").exists()
    assert Checkpointer(tmp_path / "trunk" / "checkpoints").steps() == [4, 8, 12]


@pytest.mark.parametrize(
    ("start", "more", "expected"),
    [
        ("trnk@80%", (), r"trnk is not the directory of a run"),
        ("trunk@3 steps", (), r"has no checkpoint up to step 3; there are: 4, 8, 12"),
        ("trunk@12 steps", (), r"is step 12, and the run is only 10 steps long"),
        ("new@80%", (), r"is this run itself"),
        ("trunk@80%", ("model.d_model=64",), r"does not fit this config"),
        ("trunk@80%", ("data.mixture={bible: 1}",), r"was trained on other data"),
    ],
)
def test_what_cannot_be_begun_from_is_refused_in_one_line(folder, start, more, expected):
    with pytest.raises(BadInputError, match=expected) as caught:
        train(config(folder / "new", *BRANCH, *more, f"duration.start_from={start}"))
    assert len(caught.value.problems) == 1
    assert not (folder / "new" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("trunk", "expected a run and a point, such as 'trunk@80%'"),
        ("'@80%'", "expected a run and a point"),
        ("trunk@2", "expected a duration such as"),
        ("trunk@2 minutes", "expected a point after the beginning, in steps, tokens, …, or %, not '2 minutes'"),
        ("trunk@100%", "is the end of this run"),
    ],
)
def test_a_start_is_a_run_and_a_point(start, expected):
    with pytest.raises(BadInputError, match=r"duration\.start_from") as caught:
        tiny(f"duration.start_from={start}")
    assert expected in str(caught.value)


def test_a_start_is_written_as_it_is_read():
    start = tiny("duration.start_from=a@b/c@20 tokens/param").duration.start_from
    assert (start.run, str(start)) == ("a@b/c", "a@b/c@20 tokens/param")
