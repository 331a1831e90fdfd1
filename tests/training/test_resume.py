"""Real processes are killed, before the first save and after one, and run again: as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from blobjax.checkpointing.checkpointer import Checkpointer
from blobjax.runs.directory import read_jsonl
from tests.tiny import TINY

# Wall time and its kin differ from run to run; everything else must not.
TIMED = {
    "tokens_per_second",
    "step_seconds",
    "data_wait_seconds",
    "model_flops_utilization",
    "host_memory_peak_bytes",
    "energy_joules",
    "tokens_per_joule",
}


def command(run_dir: Path, *overrides: str) -> list[str]:
    settings = [*TINY, f"logging.run_dir={run_dir}", *overrides]
    return [sys.executable, "-m", "blobjax.cli", "train", "laptop", *settings]


def finish(run_dir: Path, *overrides: str) -> None:
    done = subprocess.run(command(run_dir, *overrides), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def kill_after(run_dir: Path, step: int, *overrides: str) -> None:
    """Starts a run and kills it, without warning, once a step is in its metrics."""
    process = subprocess.Popen(command(run_dir, *overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not any(line["step"] >= step for line in read_jsonl(run_dir / "metrics.jsonl")):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def trajectory(run_dir: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMED} for line in read_jsonl(run_dir / "metrics.jsonl")]


def arrays(run_dir: Path) -> dict[str, np.ndarray]:
    """Every number of the newest checkpoint, read without a model."""
    path = run_dir / "checkpoints" / str(Checkpointer(run_dir / "checkpoints").steps()[-1])
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def abstract(leaf):
        return leaf if isinstance(leaf, int) else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)

    saved = ocp.checkpointables_metadata(path.resolve()).metadata
    loaded = ocp.load_checkpointables(path.resolve(), jax.tree.map(abstract, dict(saved)))
    return {f"{name}/{path}": np.asarray(leaf) for name, item in loaded.items() for path, leaf in item.items()}


def assert_same_bits(a: Path, b: Path) -> None:
    left, right = arrays(a), arrays(b)
    assert left.keys() == right.keys()
    for path in left:
        assert left[path].tobytes() == right[path].tobytes(), path


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("devices", [1, 8])
def test_killed_and_run_again_is_bitwise_the_undisturbed_run(tmp_path, precision, devices):
    overrides = [f"conditioning.precision={precision}", f"compute.virtual_cpu_devices={devices}"]
    if devices == 8:
        overrides.append("compute.mesh={data: 2, fsdp: 2, tensor: 2}")
    if precision == "bfloat16":  # what conditioning remembers of the steps before is part of the state
        overrides += [
            "conditioning.guard={window: 2, sigmas: 1}",
            "conditioning.clip=adagc",
            "conditioning.adagc.warmup=2",
            "conditioning.qk_norm=false",
            "conditioning.qk_clip=4",
            "conditioning.probe_every=2",
            "duration.seq_len_warmup=8 steps",
            "duration.seq_len_start=8",
        ]
    finish(tmp_path / "undisturbed", *overrides)
    # Killed twice: before anything was saved, and right after step 4 began a save that may or may not be committed.
    kill_after(tmp_path / "killed", 1, *overrides)
    kill_after(tmp_path / "killed", 5, *overrides)
    finish(tmp_path / "killed", *overrides)
    assert trajectory(tmp_path / "killed") == trajectory(tmp_path / "undisturbed")
    assert_same_bits(tmp_path / "killed", tmp_path / "undisturbed")
    events = [event["event"] for event in read_jsonl(tmp_path / "killed" / "events.jsonl")]
    assert events.count("start") == 3
    assert events[-1] == "stop"


def test_a_run_goes_on_on_another_mesh_with_the_same_batches(tmp_path):
    finish(tmp_path / "whole")
    finish(tmp_path / "moved")
    # Take the last third away and let eight devices do it again.
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "12")
    finish(tmp_path / "moved", "compute.virtual_cpu_devices=8", "compute.mesh={data: 1, fsdp: 4, context: 2}")
    whole, moved = trajectory(tmp_path / "whole"), trajectory(tmp_path / "moved")
    assert [line["step"] for line in moved] == [line["step"] for line in whole]
    assert moved[:8] == whole[:8], "steps before the move were written once"
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (whole, moved)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_a_time_limit_saves_and_exits_75_and_the_same_command_goes_on(tmp_path):
    run_dir = tmp_path / "run"
    limited = subprocess.run(
        command(run_dir, "duration.length=100000 steps", "duration.wall_clock_limit=1 second"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert limited.returncode == 75, limited.stderr
    events = list(read_jsonl(run_dir / "events.jsonl"))
    assert events[-1]["event"] == "stop"
    assert events[-1]["reason"] == "wall-clock limit"
    stopped = events[-1]["step"]
    assert Checkpointer(run_dir / "checkpoints").steps()[-1] == stopped
    again = subprocess.run(
        command(run_dir, "duration.length=100000 steps", "duration.wall_clock_limit=1 second"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert again.returncode == 75, again.stderr
    assert f"resuming at step {stopped}" in " ".join(again.stdout.split())


def test_a_finished_run_says_so(tmp_path):
    finish(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    done = subprocess.run(command(tmp_path / "run"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert "already finished" in done.stdout
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])["reason"] == "finished"
    assert os.path.isdir(tmp_path / "run" / "tensorboard")
