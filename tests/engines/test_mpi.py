"""Open MPI for real: two ranks on this machine are two processes of one run, and mpirun passes the exit code on."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobjax.runs.directory import read_jsonl
from tests.tiny import TINY

pytestmark = pytest.mark.skipif(shutil.which("mpirun") is None, reason="Open MPI is not installed (make test-engines)")

ROOT = Path(__file__).parents[2]
# For starting, compiling and some steps of a tiny run, on a machine that may be very busy.
PATIENCE_SECONDS = 600
# Two ranks on however few cores; root has to insist.
OPTIONS = ["-n", "2", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]


def mpi(*settings: str, **more: str) -> subprocess.CompletedProcess:
    """Runs the script to its end."""
    command, environment = asked(*settings, **more)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


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


@contextlib.contextmanager
def training(folder: Path, *before: str) -> Iterator[subprocess.Popen]:
    """The script, with `before` in front of it, once the run has taken five steps of its many; ended in any case."""
    command, environment = asked(
        f"logging.run_dir={folder / 'run'}",
        "duration.length=100000 steps",
        "checkpoint.every=90000 steps",
        "reliability.grace=110 seconds",
    )
    with (folder / "log").open("w") as log:
        script = subprocess.Popen([*before, *command], env=environment, start_new_session=True, stdout=log, stderr=log)
    try:
        wait_for_steps(script, folder)
        yield script
    finally:
        if script.poll() is None:
            script.terminate()  # so that it ends what it started
            script.wait(timeout=120)


def wait_for_steps(script: subprocess.Popen, folder: Path) -> None:
    """Returns once metrics.jsonl has five more lines."""
    metrics = folder / "run" / "metrics.jsonl"
    wanted = sum(1 for _ in read_jsonl(metrics)) + 5
    deadline = time.monotonic() + PATIENCE_SECONDS
    while sum(1 for _ in read_jsonl(metrics)) < wanted:
        assert script.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)


def check_stopped_and_saved(script: subprocess.Popen, folder: Path) -> None:
    """mpirun itself would kill its processes a second after it was told."""
    assert script.wait(timeout=120) == 75, (folder / "log").read_text()
    events = list(read_jsonl(folder / "run" / "events.jsonl"))
    (preempt,) = [event for event in events if event["event"] == "preempt"]
    assert [event["step"] for event in events if event["event"] == "save"] == [preempt["step"]]
    assert events[-1]["event"] == "stop"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_stop_the_run_saves(tmp_path, number):
    with training(tmp_path) as script:
        script.send_signal(number)
        check_stopped_and_saved(script, tmp_path)
    assert "\x1b[2K" not in (tmp_path / "log").read_text()


def test_under_nohup_the_run_goes_on(tmp_path):
    with training(tmp_path, "sh", "-c", 'trap "" HUP; exec "$@"', "sh") as script:
        script.send_signal(signal.SIGHUP)
        wait_for_steps(script, tmp_path)
        script.terminate()
        check_stopped_and_saved(script, tmp_path)


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
