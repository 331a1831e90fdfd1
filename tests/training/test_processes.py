"""Two real processes of four devices each over loopback: the same batches and losses as one process of eight."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blobjax.runs.directory import read_jsonl
from tests.tiny import TINY

LOCAL = Path(__file__).parents[2] / "launch" / "local.py"


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in read_jsonl(run_dir / "metrics.jsonl") if "loss" in line]


def with_trouble(trouble: str, run_dir: Path, *overrides: str) -> subprocess.CompletedProcess:
    """Two processes, of which one has trouble with storage (storage_trouble.py)."""
    settings = [*TINY, "compute.mesh={data: 1, fsdp: 2}", f"logging.run_dir={run_dir}", *overrides]
    trainer = [sys.executable, "-m", "tests.checkpointing.storage_trouble", trouble, "train", "laptop", *settings]
    launch = [sys.executable, str(LOCAL), "-n", "2", "-d", "1", "--", *trainer]
    return subprocess.run(launch, capture_output=True, text=True, timeout=300, cwd=LOCAL.parents[1])


def happened(run_dir: Path, *names: str) -> list[tuple[str, int]]:
    found = read_jsonl(run_dir / "events.jsonl")
    return [(event["event"], event["step"]) for event in found if event["event"] in names]


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
    run_dir = tmp_path / "run [2]*"  # the parts of both are found whatever the directory is called
    train(run_dir, "compute.mesh={data: 2, fsdp: 4}", processes=2, devices=4)
    shutil.rmtree(run_dir / "checkpoints" / "12")
    shutil.rmtree(run_dir / "checkpoints" / "8")
    train(run_dir, "compute.mesh={data: 1}", processes=1, devices=1)
    np.testing.assert_allclose(losses(run_dir), losses(one), rtol=1e-5)


def test_what_one_process_cannot_read_all_put_aside(tmp_path, one):
    run_dir = tmp_path / "run"
    shutil.copytree(one, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "12")
    done = with_trouble("read", run_dir)
    assert done.returncode == 0, done.stdout
    assert happened(run_dir, "quarantine") == [("quarantine", 8)]
    assert "[1] checkpoint" in done.stdout
    assert "a bit fell over on the way to this host" in done.stdout
    np.testing.assert_allclose(losses(run_dir), losses(one), rtol=1e-5)
    assert (run_dir / "checkpoints" / "8").is_dir(), "saved anew, by both"


def test_where_one_process_cannot_write_all_stop_after_three_saves(tmp_path):
    done = with_trouble("probe", tmp_path / "run", "checkpoint.every=1 step")
    assert done.returncode == 1, done.stdout
    assert happened(tmp_path / "run", "save", "save_failed") == [("save_failed", step) for step in (1, 2, 3)]
    assert "[1] step 1: not saved: " in done.stdout
    assert "cannot be written: Input/output error" in done.stdout
    assert "Traceback" not in done.stdout


def test_where_one_process_fails_to_write_its_part_none_waits_for_ever(tmp_path):
    limits = ("checkpoint.stall_limit=1 second", "checkpoint.write_limit=3 seconds")
    done = with_trouble("write", tmp_path / "run", "checkpoint.every=1 step", *limits)
    assert done.returncode == 1, done.stdout
    assert "[1] step 1: not saved: ValueError: OUT_OF_RANGE" in done.stdout
    assert "process 1 could not write its part, and says why" in done.stdout
    assert "the save of step 1 was not written within 3 seconds (checkpoint.write_limit)" in done.stdout
    assert ("save_skipped", 2) in happened(tmp_path / "run", "save_skipped")
