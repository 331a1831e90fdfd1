"""A real Slurm: a job of two nodes trains, is told to stop, goes back into the queue, resumes and finishes, bitwise."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from blobjax.runs.directory import RunDirectory, read_jsonl
from tests.engines.slurm import missing, slurm
from tests.tiny import TINY
from tests.training.test_resume import assert_same_bits

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm" / "train.sbatch"
SETTINGS = (*TINY, "compute.mesh={data: 4}", "duration.length=300 steps", "checkpoint.every=100 steps")
ENVIRONMENT = {
    "BLOBJAX": f"{sys.executable} -m blobjax.cli",
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "2",
    "PYTHONPATH": str(SCRIPT.parents[2]),
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


def submit(cluster, folder: Path, *settings: str) -> str:
    """Sends a job of two nodes off; returns its number."""
    return cluster(
        *("sbatch", "--parsable", "--nodes=2", f"--output={folder / 'job.log'}"),
        *(str(SCRIPT), "laptop", *SETTINGS, f"logging.run_dir={folder / 'run'}", *settings),
        **ENVIRONMENT,
    )


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    job = cluster.wait(submit(cluster, folder), "COMPLETED", "FAILED")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0"), (folder / "job.log").read_text()
    return folder


def test_two_nodes_are_two_processes_of_one_run(undisturbed):
    (start,) = [event for event in read_jsonl(undisturbed / "run" / "events.jsonl") if event["event"] == "start"]
    assert (start["processes"], start["devices"]) == (2, 4)


def test_told_to_stop_it_goes_back_into_the_queue_and_finishes_as_if_nothing_had_been(cluster, undisturbed, tmp_path):
    number = submit(cluster, tmp_path)
    run = RunDirectory(tmp_path / "run")
    deadline = time.monotonic() + 240
    while sum(1 for _ in read_jsonl(run.metrics)) < 20:
        assert time.monotonic() < deadline, (tmp_path / "job.log").read_text()
        time.sleep(0.1)
    cluster("scancel", "--signal=TERM", number)
    assert cluster.wait(number, "PENDING", "FAILED", "COMPLETED")["JobState"] == "PENDING"
    # Slurm lets two minutes pass before it starts a job again. Some seconds it needs: a node refuses what was signed
    # in the second in which it was told to end the job ("already killed, do not launch"), and the job fails.
    cluster("scontrol", "update", f"job={number}", "StartTime=now+10")
    job = cluster.wait(number, "COMPLETED", "FAILED")
    log = (tmp_path / "job.log").read_text()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), log
    assert "exit 75: back into the queue" in log
    story = ["start", "preempt", "stop", "start", "resume", "stop"]
    assert [event["event"] for event in read_jsonl(run.events) if event["event"] in story] == story
    assert_same_bits(tmp_path / "run", undisturbed / "run")


def test_bad_input_ends_the_job(cluster, tmp_path):
    job = cluster.wait(submit(cluster, tmp_path, "model.d_modle=3"), "FAILED", "COMPLETED")
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
    assert "did you mean 'model.d_model'" in (tmp_path / "job.log").read_text()


def test_a_task_that_fails_ends_the_job_and_does_not_send_it_back(cluster, tmp_path):
    number = submit(cluster, tmp_path, "duration.length=100000 steps")
    run = RunDirectory(tmp_path / "run")
    deadline = time.monotonic() + 240
    while sum(1 for _ in read_jsonl(run.metrics)) < 5:
        assert time.monotonic() < deadline, (tmp_path / "job.log").read_text()
        time.sleep(0.1)
    tasks = [int(line.split()[0]) for line in cluster("scontrol", "listpids", number).splitlines()[1:]]
    trainers = [task for task in tasks if "blobjax.cli" in Path(f"/proc/{task}/cmdline").read_text()]
    os.kill(trainers[0], signal.SIGKILL)
    job = cluster.wait(number, "FAILED", "COMPLETED", "PENDING")
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0"), (tmp_path / "job.log").read_text()


@pytest.mark.parametrize(("first", "second", "code"), [(1, 75, 1), (75, 2, 2), (75, 134, 134)])
def test_only_where_all_tasks_end_with_75_the_job_goes_back(cluster, tmp_path, first, second, code):
    """Tasks that only exit, each with its code."""
    fake = tmp_path / "fake"
    fake.write_text(f"#!/bin/bash\n[ $JAX_PROCESS_ID = 0 ] && exit {first}\nexit {second}\n")
    fake.chmod(0o755)
    number = cluster(
        *("sbatch", "--parsable", "--nodes=2", f"--output={tmp_path / 'job.log'}", str(SCRIPT)), BLOBJAX=str(fake)
    )
    job = cluster.wait(number, "FAILED", "COMPLETED")
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", f"{code}:0", "0")
