"""A study whose cells are jobs of a real Slurm: interrupted, its jobs save; the same command finishes them."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blobjax.runs.directory import read_jsonl
from tests.engines.slurm import missing, slurm
from tests.studies.small import BASE, write

_WHY = missing() or ("" if importlib.util.find_spec("submitit") else "submitit is not installed")
pytestmark = pytest.mark.skipif(bool(_WHY), reason=_WHY or "-")

LONG = BASE | {"duration": {"length": "2000 steps", "global_batch_size": 4}, "checkpoint": {"every": "1000 steps"}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


@pytest.fixture
def environment(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(cluster.folder / "slurm.conf"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    paths = [str(Path(__file__).parents[2]), *(path for path in sys.path if (Path(path) / "submitit").is_dir())]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))


def start(folder: Path, seeds: list[int]) -> tuple[list[str], subprocess.Popen]:
    """The command of a study with these cells, and the study, all of whose cells are under way."""
    path = write(folder, base=LONG, grid={"seed": {"key": "seed", "values": seeds}})
    command = [sys.executable, "-m", "blobjax.cli", "study", path, "--dir", str(folder / "study"), "--on", "slurm"]
    process = subprocess.Popen(
        [*command, "--slurm", "time=20"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not all(list(read_jsonl(folder / "study" / "cells" / str(seed) / "metrics.jsonl")) for seed in seeds):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return command, process


def story(cell: Path) -> list[str]:
    told = ("start", "resume", "stop")
    return [event["event"] for event in read_jsonl(cell / "events.jsonl") if event["event"] in told]


RESUMED = ["start", "stop", "start", "resume", "stop"]


def test_cells_are_jobs_and_an_interrupted_study_goes_on(cluster, environment, tmp_path):
    command, process = start(tmp_path, [0, 1])
    assert len(cluster("squeue", "--noheader").splitlines()) == 2
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 75, output + errors
    assert cluster("squeue", "--noheader") == ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [story(tmp_path / "study" / "cells" / name) for name in ("0", "1")] == [RESUMED, RESUMED]
    assert json.loads((tmp_path / "study" / "summary.json").read_text())["cells"] == {"finished": 2}


def test_a_job_whose_time_is_up_saves_and_is_submitted_again(cluster, environment, tmp_path):
    _, process = start(tmp_path, [0])
    # What Slurm sends a while before the end of a job's time.
    cluster("scancel", "--signal=USR2", cluster("squeue", "--noheader", "--format=%A"))
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, output + errors
    assert "submitted again" in output
    assert story(tmp_path / "study" / "cells" / "0") == RESUMED
