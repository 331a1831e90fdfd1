"""Ray Train for real: two workers on this machine, one killed on the way; the run ends as if nothing had been."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blobjax.reliability.run_directory import RunDirectory, read_jsonl
from tests.tiny import TINY
from tests.training.test_processes import train as train_processes
from tests.training.test_resume import assert_same_bits

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (make test-engines)"
)

ROOT = Path(__file__).parents[2]
SETTINGS = ("compute.mesh={data: 2}", "duration.length=400 steps", "checkpoint.every=50 steps")
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
}


def start(folder: Path, *settings: str) -> subprocess.Popen:
    options = ["--workers", "2", "--failures", "3", "--storage", str(folder / "ray")]
    command = [sys.executable, str(ROOT / "launch" / "ray_train.py"), *options, "--", "laptop", *TINY, *settings]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [*command, f"logging.run_dir={folder / 'run'}"], env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log
        )


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_a_killed_worker_is_started_again_and_the_run_is_the_undisturbed_one(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with start(tmp_path, *SETTINGS) as driver:
        deadline = time.monotonic() + 400
        while not any(run.checkpoints.glob("[0-9]*")):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        # The lock names process 0 of the run; the worker is what started it.
        trainer = int((run.path / ".blobjax-lock").read_text())
        subprocess.run(["kill", "-9", str(parent(trainer))], check=True)
        assert driver.wait(timeout=400) == 0, (tmp_path / "log").read_text()
    starts = [event["processes"] for event in read_jsonl(run.events) if event["event"] == "start"]
    assert starts == [2, 2]
    train_processes(tmp_path / "other", *SETTINGS, processes=2, devices=1)
    assert_same_bits(run.path, tmp_path / "other")


def test_bad_input_is_not_tried_again(tmp_path):
    with start(tmp_path, "model.d_modle=3") as driver:
        assert driver.wait(timeout=400) == 2, (tmp_path / "log").read_text()
    assert "did you mean 'model.d_model'" in (tmp_path / "log").read_text()
