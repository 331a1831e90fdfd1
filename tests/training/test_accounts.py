"""The account of time in real runs: killed, told to stop, rolled back, of several processes. It always adds up."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blobjax.checkpointing.files import committed
from blobjax.config import BadInputError
from blobjax.runs.directory import RunDirectory, read_jsonl
from blobjax.runs.ledger import read_ledger
from blobjax.runs.status import lines, status
from blobjax.training import trainer
from tests.tiny import TINY, tiny
from tests.training.test_processes import train as train_processes

TRAIN = [sys.executable, "-m", "blobjax.cli", "train", "laptop", *TINY]


def adds_up(directory: Path) -> dict[str, float]:
    """The seconds by category, after making sure that they are the wall time from the first to the last event."""
    events = list(read_jsonl(directory / "events.jsonl"))
    ledger = read_ledger(events)
    assert ledger.wall_seconds == pytest.approx(events[-1]["time"] - events[0]["began"], abs=0.05)
    assert all(seconds >= 0 for seconds in ledger.seconds.values())
    return ledger.seconds


def test_a_killed_run_that_is_started_again(tmp_path):
    run = RunDirectory(tmp_path / "run")
    command = [*TRAIN, f"logging.run_dir={run.path}", "duration.length=2000 steps", "checkpoint.every=50 steps"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while not committed(run.checkpoints) and time.monotonic() < deadline:
            time.sleep(0.02)
        seen = status(str(run.path))
        process.kill()
    assert (seen["state"], seen["attempts"][0]["end"]) == ("running", "running")
    died = status(str(run.path))
    assert (died["state"], died["length"]) == ("died", 2000)
    time.sleep(1)
    assert subprocess.run([*command, "--allow-config-change", "duration.length=400 steps"]).returncode == 0
    seconds = adds_up(run.path)
    assert seconds["down"] > 0.5
    assert {"init", "compile", "restore", "train", "unaccounted", "down"} <= seconds.keys()
    found = status(str(run.path))
    assert (found["state"], found["step"], found["newest_save"]) == ("finished", 400, 400)
    assert [each["end"] for each in found["attempts"]] == ["died", "finished"]
    assert 0 < found["goodput"] < 1
    assert sum(found["seconds"].values()) == pytest.approx(found["wall_seconds"])
    assert "goodput" in "\n".join(lines(found))


def test_a_run_that_is_told_to_stop_in_time(tmp_path):
    settings = tiny(f"logging.run_dir={tmp_path}", "duration.wall_clock_limit=0.001 seconds")
    assert trainer.train(settings) == trainer.RESUMABLE
    assert status(str(tmp_path))["state"] == "stopped"
    assert trainer.train(tiny(f"logging.run_dir={tmp_path}")) == trainer.FINISHED
    seconds = adds_up(tmp_path)
    assert "lost" not in seconds, "what was saved in time is not lost"
    assert status(str(tmp_path))["reason"] == "finished"


def test_a_rollback_loses_what_it_undoes(tmp_path):
    rollback = "{snapshots: 2, snapshot_every: 3, margin: 1, skip: 2, at_most: 2, sustained: null}"
    settings = tiny(
        f"logging.run_dir={tmp_path}",
        f"conditioning.guard={{window: 4, sigmas: 0, patience: 1, rollback: {rollback}}}",
        "duration.length=24 steps",
        "faults.nan=[208, 240]",
    )
    assert trainer.train(settings) == trainer.FINISHED
    seconds = adds_up(tmp_path)
    assert seconds["lost"] > 0
    assert seconds["rollback"] > 0
    assert status(str(tmp_path))["events"]["rollback"] == 1


def test_process_0_keeps_account_for_several(tmp_path):
    train_processes(tmp_path / "run", "compute.mesh={data: 2}", processes=2, devices=1)
    adds_up(tmp_path / "run")
    assert status(str(tmp_path / "run"))["attempts"][0]["processes"] == 2


def test_a_supervised_run_says_so(tmp_path):
    """Killed once by the test, while it saves its way along; the supervisor starts it again and it finishes."""
    run = RunDirectory(tmp_path / "run")
    command = [*TRAIN, f"logging.run_dir={run.path}", "duration.length=1000 steps", "checkpoint.every=50 steps"]
    with subprocess.Popen([*command, "--restarts", "3"], stderr=subprocess.PIPE, text=True) as supervisor:
        deadline = time.monotonic() + 240
        while not committed(run.checkpoints) and time.monotonic() < deadline:
            time.sleep(0.02)
        (child,) = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
        subprocess.run(["kill", "-9", child], check=True)
        said = supervisor.communicate(timeout=240)[1]
    assert supervisor.returncode == 0, said
    assert "killed by SIGKILL; restart 1 of 3 in 1 s" in said
    attempts = status(str(run.path))["attempts"]
    assert [each["restart"] for each in attempts] == [None, 1]
    assert attempts[0]["end"] == "died (killed by SIGKILL)"
    assert attempts[1]["first_step"] >= 50, "it went on from what was saved"
    adds_up(run.path)


def test_status_of_what_is_no_run(tmp_path):
    with pytest.raises(BadInputError, match="holds no config"):
        status(str(tmp_path))
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "events.jsonl").write_text('{"event": "start", "ti\n[1]\n')
    assert status(str(tmp_path))["state"] == "not begun"
    assert json.dumps(status(str(tmp_path)))
