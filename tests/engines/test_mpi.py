"""Open MPI for real: two ranks on this machine are two processes of one run, and mpirun passes the exit code on."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blobjax.runs.directory import read_jsonl
from tests.tiny import TINY

pytestmark = pytest.mark.skipif(shutil.which("mpirun") is None, reason="Open MPI is not installed (make test-engines)")

ROOT = Path(__file__).parents[2]
# Two ranks on however few cores; root has to insist.
OPTIONS = ["-n", "2", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]


def mpi(*settings: str, **more: str) -> subprocess.CompletedProcess:
    """Runs the script to its end."""
    command, environment = asked(*settings, **more)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def asked(*settings: str, **more: str) -> tuple[list[str], dict[str, str]]:
    """The script's command line and environment, in which a COORDINATOR on loopback stands."""
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
    return command, {**os.environ, **environment}


def test_two_ranks_are_one_run_that_can_be_stopped_and_gone_on_with(tmp_path):
    run = f"logging.run_dir={tmp_path / 'run'}"
    stopped = mpi(run, "duration.wall_clock_limit=0.01 seconds")
    assert stopped.returncode == 75, stopped.stdout + stopped.stderr
    done = mpi(run)
    assert done.returncode == 0, done.stdout + done.stderr
    events = list(read_jsonl(tmp_path / "run" / "events.jsonl"))
    assert [(e["processes"], e["devices"]) for e in events if e["event"] == "start"] == [(2, 4), (2, 4)]
    assert events[-1]["reason"] == "finished"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_the_run_saves(tmp_path, number):
    """mpirun itself would kill its processes a second after it was told."""
    run = tmp_path / "run"
    command, environment = asked(
        f"logging.run_dir={run}", "duration.length=100000 steps", "checkpoint.every=90000 steps"
    )
    with (tmp_path / "log").open("w") as log:
        script = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while sum(1 for _ in read_jsonl(run / "metrics.jsonl")) < 5:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        script.send_signal(number)
        assert script.wait(timeout=120) == 75, (tmp_path / "log").read_text()
    finally:
        if script.poll() is None:
            script.terminate()  # so that it ends what it started
            script.wait(timeout=120)
    names = [event["event"] for event in read_jsonl(run / "events.jsonl")]
    assert {"preempt", "save"} <= set(names)
    assert names[-1] == "stop"
    assert "\x1b[2K" not in (tmp_path / "log").read_text()


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
