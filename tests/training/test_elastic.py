"""One run moved from machine to machine: other meshes, device counts and process counts, the same batches and losses.

Also restarted on the same ones, by a supervisor beside each of two processes.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from blobjax.checkpointing.files import committed
from blobjax.runs.directory import read_jsonl
from blobjax.runs.status import status
from tests.tiny import TINY
from tests.training.test_accounts import adds_up
from tests.training.test_processes import LOCAL, losses, train
from tests.training.test_resume import assert_same_bits

# Each goes on from where the one before it was ended, after 3, 6 and 9 of 12 steps: processes, devices in each, mesh.
LEGS = [(1, 8, "{fsdp: 8}"), (1, 4, "{fsdp: 2, tensor: 2}"), (1, 1, "{data: 1}"), (2, 4, "{data: 2, fsdp: 4}")]
EVERY = "checkpoint.every=3 steps"
# A mesh decides in which order float32 sums are made, and nothing else. A sum's rounding is some 1e-7 of it, and the
# steps before hand theirs on: 8.5e-7 at most was measured here. Losses of different batches are 3e-4 apart at least.
TOLERANCE = 1e-5


def test_a_run_goes_on_on_other_devices_again_and_again(tmp_path):
    run_dir = tmp_path / "run"
    for leg, (processes, devices, mesh) in enumerate(LEGS):
        # As if it had been ended there: what it did after that is taken away.
        for step in committed(run_dir / "checkpoints"):
            if step > 3 * leg:
                shutil.rmtree(run_dir / "checkpoints" / str(step))
        train(run_dir, EVERY, f"compute.mesh={mesh}", processes=processes, devices=devices)
        if not leg:
            expected = losses(run_dir)  # it ran to the end, undisturbed
    starts = [event for event in read_jsonl(run_dir / "events.jsonl") if event["event"] == "start"]
    assert [(event["processes"], event["devices"]) for event in starts] == [(n, n * d) for n, d, _ in LEGS]
    assert [each["first_step"] for each in status(str(run_dir))["attempts"]] == [0, 3, 6, 9]
    found = losses(run_dir)
    assert len(found) == len(expected) == 12
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    # So a batch of another step would be noticed.
    apart = np.abs(np.subtract.outer(expected, expected)) / np.array(expected)
    assert apart[~np.eye(12, dtype=bool)].min() > 10 * TOLERANCE
    adds_up(run_dir)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process to kill in /proc")
def test_supervisors_of_two_processes_bring_a_killed_run_back(tmp_path):
    settings = ["compute.mesh={data: 2, fsdp: 2}", "duration.length=40 steps", "checkpoint.every=5 steps"]
    train(tmp_path / "undisturbed", *settings, processes=2, devices=2)
    run_dir = tmp_path / "run"
    trainer = [sys.executable, "-m", "blobjax.cli", "train", "laptop", *TINY, f"logging.run_dir={run_dir}", *settings]
    launch = [sys.executable, str(LOCAL), "-n", "2", "-d", "2", "--", *trainer, "--restarts", "3"]
    with subprocess.Popen(launch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launcher:
        deadline = time.monotonic() + 240
        while not committed(run_dir / "checkpoints") and time.monotonic() < deadline:
            time.sleep(0.01)
        (killed,) = children(children(launcher.pid)[0])
        os.kill(killed, 9)
        said = launcher.communicate(timeout=300)[0]
    assert launcher.returncode == 0, said
    # Process 0 was killed, the other ended with it, and each was started again by its own supervisor.
    assert "[0] blobjax: killed by SIGKILL; restart 1 of 3" in said
    assert "[1] blobjax: " in said
    first, second = status(str(run_dir))["attempts"]
    assert (first["end"], second["end"], second["restart"]) == ("died (killed by SIGKILL)", "finished", 1)
    assert second["first_step"] >= 5
    assert losses(run_dir) == losses(tmp_path / "undisturbed")
    assert_same_bits(run_dir, tmp_path / "undisturbed")
    adds_up(run_dir)
