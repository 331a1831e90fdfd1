"""launch/ray_train.py on a real Ray: two workers, one of them killed; a run told to stop; bad input."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blobjax.runs.directory import read_jsonl
from tests.tiny import TINY
from tests.training.test_resume import assert_same_bits

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (make test-engines)"
)

LAUNCH = Path(__file__).parents[2] / "launch"
# Long enough for a worker to be killed in the middle.
SETTINGS = (*TINY, "compute.mesh={data: 4}", "duration.length=240 steps", "checkpoint.every=50 steps")


def start(folder: Path, *settings: str, workers: int = 2) -> subprocess.Popen:
    """Starts the launcher; its output goes to FOLDER/log."""
    environment = {
        "HOME": str(folder),  # Ray keeps a token there
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_process_group_cleanup_enabled": "0",  # Ray 2.60 would end a dead worker's processes too
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "PYTHONPATH": str(LAUNCH.parent),
    }
    options = ["-n", str(workers), "--local", "--failures", "1", "--storage", str(folder / "ray")]
    train = ["laptop", *SETTINGS, f"logging.run_dir={folder / 'run'}", *settings]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, str(LAUNCH / "ray_train.py"), *options, "--", *train],
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finish(launcher: subprocess.Popen, folder: Path) -> tuple[int, str]:
    try:
        code = launcher.wait(timeout=300)
    finally:
        launcher.kill()
    return code, (folder / "log").read_text()


def events(folder: Path, *names: str) -> list[dict]:
    return [event for event in read_jsonl(folder / "run" / "events.jsonl") if event["event"] in names]


def parent(process: int) -> int:
    # The fields of stat(5); the second is the name, in parentheses, and may hold spaces.
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def steps(folder: Path) -> int:
    return sum("loss" in line for line in read_jsonl(folder / "run" / "metrics.jsonl"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run by another launcher."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train = [sys.executable, "-m", "blobjax.cli", "train", "laptop", *SETTINGS, f"logging.run_dir={folder / 'run'}"]
    local = [sys.executable, str(LAUNCH / "local.py"), "-n", "2", "-d", "2", "--", *train]
    done = subprocess.run(local, cwd=LAUNCH.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    return folder


def test_a_killed_worker_is_replaced_and_the_run_ends_as_if_nothing_had_been(undisturbed, tmp_path):
    launcher = start(tmp_path)
    deadline = time.monotonic() + 240
    while steps(tmp_path) < 75 and launcher.poll() is None:
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    process_zero = int((tmp_path / "run" / ".blobjax-lock").read_text())
    os.kill(parent(process_zero), signal.SIGKILL)
    code, log = finish(launcher, tmp_path)
    assert code == 0, log
    first, second = events(tmp_path, "start")
    assert (first["processes"], second["processes"]) == (2, 2)
    (resume,) = events(tmp_path, "resume")
    assert 50 <= resume["step"] < 240
    losses = [
        {line["step"]: line["loss"] for line in read_jsonl(folder / "run" / "metrics.jsonl") if "loss" in line}
        for folder in (tmp_path, undisturbed)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 240
    assert_same_bits(tmp_path / "run", undisturbed / "run")


def test_a_process_goes_with_its_worker(tmp_path):
    """One worker, so that nothing but its death can end the process; which else would train on, and hold the run."""
    launcher = start(tmp_path, "compute.mesh={data: 2}", "duration.length=100000 steps", workers=1)
    try:
        deadline = time.monotonic() + 240
        while steps(tmp_path) < 5 and launcher.poll() is None:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        process = int((tmp_path / "run" / ".blobjax-lock").read_text())
        os.kill(parent(process), signal.SIGKILL)
        deadline = time.monotonic() + 20
        while Path(f"/proc/{process}").exists():
            assert time.monotonic() < deadline, "it outlived its worker"
            time.sleep(0.1)
    finally:
        launcher.terminate()
        finish(launcher, tmp_path)


def test_a_run_that_stops_early_is_no_failure_to_ray(tmp_path):
    code, log = finish(start(tmp_path, "duration.wall_clock_limit=0.01 seconds"), tmp_path)
    assert code == 75, log
    assert len(events(tmp_path, "start")) == 1


def test_bad_input_is_not_tried_again(tmp_path):
    code, log = finish(start(tmp_path, "model.d_modle=3"), tmp_path)
    assert code == 2, log
    assert "did you mean 'model.d_model'" in log


def test_a_run_that_keeps_failing_ends(tmp_path):
    # The guard halts at the first step: exit 1, each time it is started.
    halting = ("faults.nan=[0, 1000]", "conditioning.guard={patience: 0}")
    code, log = finish(start(tmp_path, *halting), tmp_path)
    assert code == 1, log
    assert log.count("process 0 of the run ended with 1") >= 1
    assert len(events(tmp_path, "start")) == 2
