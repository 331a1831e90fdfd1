"""Two real processes of four devices each over loopback: the same batches and losses as one process of eight."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blobjax.reliability.run_directory import read_jsonl
from tests.tiny import TINY

LOCAL = Path(__file__).parents[2] / "launch" / "local.py"


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in read_jsonl(run_dir / "metrics.jsonl") if "loss" in line]


def train(run_dir: Path, *overrides: str, processes: int, devices: int) -> str:
    settings = [*TINY, f"logging.run_dir={run_dir}", *overrides]
    trainer = [sys.executable, "-m", "blobjax.cli", "train", "laptop", *settings]
    launch = [sys.executable, str(LOCAL), "-n", str(processes), "-d", str(devices), "--", *trainer]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("one") / "run"
    train(run_dir, "compute.mesh={data: 2, fsdp: 4}", processes=1, devices=8)
    return run_dir


@pytest.mark.parametrize("mesh", ["{data: 2, fsdp: 4}", "{data: 1, fsdp: 4, context: 2}"])
def test_two_processes_train_as_one(tmp_path, one, mesh):
    run_dir = tmp_path / "run"
    output = train(run_dir, f"compute.mesh={mesh}", processes=2, devices=4)
    np.testing.assert_allclose(losses(run_dir), losses(one), rtol=1e-5)
    # One process writes: every step stands once in the metrics, and the other prints no progress.
    steps = [line["step"] for line in read_jsonl(run_dir / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, 13))
    assert output.count("run directory:") == 1


def test_one_process_goes_on_where_two_stopped(tmp_path, one):
    run_dir = tmp_path / "run"
    train(run_dir, "compute.mesh={data: 2, fsdp: 4}", processes=2, devices=4)
    shutil.rmtree(run_dir / "checkpoints" / "12")
    shutil.rmtree(run_dir / "checkpoints" / "8")
    train(run_dir, "compute.mesh={data: 1}", processes=1, devices=1)
    np.testing.assert_allclose(losses(run_dir), losses(one), rtol=1e-5)
