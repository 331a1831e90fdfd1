"""Open MPI for real: two ranks on this machine are two processes of one run, and mpirun passes the exit code on."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from blobjax.reliability.run_directory import read_jsonl
from tests.tiny import TINY

pytestmark = pytest.mark.skipif(shutil.which("mpirun") is None, reason="Open MPI is not installed (make test-engines)")

ROOT = Path(__file__).parents[2]
# Two ranks on however few cores; root has to insist.
OPTIONS = ["-n", "2", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]


def mpi(*settings: str, **more: str) -> subprocess.CompletedProcess:
    """Runs the script; `more` of its environment, in which a COORDINATOR on loopback stands."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        "BLOBJAX": f"{sys.executable} -m blobjax.cli",
        "COORDINATOR": coordinator,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "PYTHONPATH": str(ROOT),
        **more,
    }
    command = [str(ROOT / "launch" / "mpi.sh"), *OPTIONS, "--", "laptop", *TINY, "compute.mesh={data: 4}", *settings]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)


def test_two_ranks_are_one_run_that_can_be_stopped_and_gone_on_with(tmp_path):
    run = f"logging.run_dir={tmp_path / 'run'}"
    stopped = mpi(run, "duration.wall_clock_limit=0.01 seconds")
    assert stopped.returncode == 75, stopped.stdout + stopped.stderr
    done = mpi(run)
    assert done.returncode == 0, done.stdout + done.stderr
    events = list(read_jsonl(tmp_path / "run" / "events.jsonl"))
    assert [(e["processes"], e["devices"]) for e in events if e["event"] == "start"] == [(2, 4), (2, 4)]
    assert events[-1]["reason"] == "finished"


def test_the_coordinator_is_where_mpirun_starts_rank_0(tmp_path):
    # What the host calls itself, so that the run listens on loopback and on nothing else.
    hostname = tmp_path / "hostname"
    hostname.write_text("#!/bin/sh\necho 127.0.0.1\n")
    hostname.chmod(0o755)
    run = (f"logging.run_dir={tmp_path / 'run'}", "duration.wall_clock_limit=0.01 seconds")
    stopped = mpi(*run, COORDINATOR="", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert stopped.returncode == 75, stopped.stdout + stopped.stderr
    (start,) = [e for e in read_jsonl(tmp_path / "run" / "events.jsonl") if e["event"] == "start"]
    assert start["processes"] == 2


def test_where_mpirun_starts_nothing_it_says_so(tmp_path):
    refused = mpi(f"logging.run_dir={tmp_path / 'run'}", COORDINATOR="", OMPI_MCA_rmaps="no_such_component")
    assert refused.returncode == 1
    assert "give COORDINATOR=HOST:PORT" in refused.stderr


def test_bad_input_is_exit_code_2(tmp_path):
    refused = mpi(f"logging.run_dir={tmp_path / 'run'}", "model.d_modle=3")
    assert refused.returncode == 2
    assert "did you mean 'model.d_model'" in refused.stdout + refused.stderr


def test_without_a_config_it_says_what_it_needs():
    done = subprocess.run([str(ROOT / "launch" / "mpi.sh"), "-n", "2"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        ["mpi.sh: give mpirun's options, then --, then what blobjax train is to train"],
    )
