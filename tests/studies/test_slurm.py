"""Cells as jobs: what is asked of the cluster, and jobs that finish, run out of time, die, or outlive their study.

The jobs are made up where only the bookkeeping is looked at; submitit's own local executor runs one for real. A real
Slurm is in tests/engines/test_slurm_study.py.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from blobjax.config import BadInputError
from blobjax.runs.directory import EventLog, RunDirectory
from blobjax.studies import runner, slurm
from blobjax.studies.results import read
from blobjax.studies.study import load_study
from tests.studies.small import write

needs_submitit = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")


class Heard:
    """What a study says of its progress."""

    def __init__(self):
        self.begun: list[str] = []
        self.ended: list[tuple[str, str]] = []
        self.said: list[str] = []

    def begin(self, cell):
        self.begun.append(cell.name)

    def end(self, result):
        self.ended.append((result.cell.name, result.status))

    def say(self, line):
        self.said.append(line)

    def update(self):
        pass


class Job:
    """A job of the made-up cluster: its number, and where its result would be."""

    def __init__(self, folder, job_id):
        self.job_id = job_id
        self.paths = type("Paths", (), {"result_pickle": Path(folder) / f"{job_id}_result"})
        self.cancelled = False

    def result(self):
        return json.loads(self.paths.result_pickle.read_text())

    def cancel(self, check=True):
        self.cancelled = True


class Cluster:
    """Ends each job at once in the way that is next in the list: the answer, and the steps that its run came to."""

    job_class = Job

    def __init__(self, folder: Path, ends: list):
        self.folder, self.ends, self.submitted = folder, ends, []
        folder.mkdir(parents=True, exist_ok=True)

    def submit(self, function, directory, study):
        job = Job(self.folder, str(100 + len(self.submitted)))
        self.submitted.append(Path(directory).name)
        answer, steps, reason = self.ends.pop(0)
        run = RunDirectory(directory)
        with EventLog(run.events) as events:
            events.write("start")
            if reason:
                events.write("stop", reason=reason, step=steps)
        with run.metrics.open("a") as file:
            file.write(json.dumps({"step": steps, "cross_entropy": 2.0}) + "\n")
        if answer is not None:
            job.paths.result_pickle.write_text(json.dumps(answer))
        return job

    def alive(self) -> set[str]:
        return set()


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "_LOOK", 0.0)
    monkeypatch.setattr(slurm, "_ASK", 0.0)
    return load_study(write(tmp_path, grid={"seed": {"key": "seed", "values": [0, 1]}}), [], tmp_path / "study")


def run(plan, *ends, at_once: int = 1):
    cluster, heard = Cluster(slurm.jobs_folder(plan.directory), list(ends)), Heard()
    slurm.Jobs(plan, list(plan.cells), at_once, heard, cluster, cluster.alive).run()
    return cluster, heard


FINISHED = ({"code": 0}, 30, "finished")


def test_each_cell_is_a_job_and_one_whose_time_was_up_is_submitted_again(plan):
    cluster, heard = run(plan, ({"code": 75}, 10, "SIGTERM"), FINISHED, FINISHED)
    assert cluster.submitted == ["0", "1", "0"]
    assert heard.ended == [("1", "finished"), ("0", "finished")]
    assert "0: its time was up at step 10; submitted again" in heard.said


def test_a_job_that_stops_without_getting_on_is_not_submitted_for_ever(plan):
    cluster, heard = run(plan, ({"code": 75}, 0, "SIGTERM"), FINISHED)
    assert cluster.submitted == ["0", "1"]
    assert heard.ended[0] == ("0", "stopped")


def test_a_job_that_vanishes_or_fails_is_a_failed_cell(plan):
    _, heard = run(plan, (None, 12, ""), ({"code": 1, "error": "ValueError: no"}, 3, ""))
    assert heard.ended == [("0", "failed"), ("1", "failed")]
    assert read(plan.cells[0]).reason == "job 100 was killed, or its node failed"
    assert read(plan.cells[1]).reason == "ValueError: no"


def test_a_cell_is_submitted_after_the_one_it_begins_from_and_only_if_that_came_to_its_end(plan, tmp_path):
    grid = {"run": {"trunk": {}, "branch": {"duration.start_from": "trunk@50%"}}}
    for name, end, submitted in (("well", FINISHED, ["trunk", "branch"]), ("ill", (None, 12, ""), ["trunk"])):
        branched = load_study(write(tmp_path, grid=grid), [], tmp_path / name)
        cluster, heard = run(branched, end, FINISHED, at_once=0)
        assert cluster.submitted == submitted
        assert heard.ended[0][0] == "trunk"
        assert heard.ended[1] == ("branch", "finished" if name == "well" else "failed")
    assert read(branched.cells[1]).reason == "it begins from trunk, which is failed"


def test_bad_input_in_one_ends_the_study(plan):
    with pytest.raises(BadInputError, match=r"cell 0: compute\.mesh is wrong"):
        run(plan, ({"code": 2, "problems": ["compute.mesh is wrong"]}, 0, ""))


def test_the_jobs_of_a_study_that_was_killed_are_waited_for_and_not_submitted_twice(plan):
    cluster, heard = Cluster(slurm.jobs_folder(plan.directory), [FINISHED]), Heard()
    runner.prepare(plan.cells[0])
    (plan.directory / ".blobjax-jobs.json").write_text(json.dumps({"0": "7", "1": "8"}))
    looks = iter([{"7"}, {"7"}])
    jobs = slurm.Jobs(plan, list(plan.cells), 0, heard, cluster, lambda: next(looks, set()))
    jobs.run()
    assert cluster.submitted == ["1"]  # of the two only 7 was still there
    assert "0: its job 7 is still there" in heard.said
    assert ("1", "finished") in heard.ended


@needs_submitit
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["partition"], "--slurm partition: expected NAME=VALUE"),
        (["partitoin=gpu"], "Unavailable parameter(s): ['partitoin']"),
    ],
)
def test_what_sbatch_does_not_know_is_refused_before_anything_runs(tmp_path, monkeypatch, given, expected):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(BadInputError) as caught:
        slurm.executor(tmp_path / "study", given)
    assert expected in str(caught.value)
    assert slurm.executor(tmp_path / "study", ["time=120", "gpus-per-node=1"]).parameters["gpus_per_node"] == 1


def test_without_submitit_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "find_spec", lambda name: None)
    with pytest.raises(BadInputError, match=r"pip install 'blobjax\[slurm\]'"):
        slurm.executor(tmp_path, [])


@needs_submitit
def test_a_cell_runs_in_a_job_of_submitit(tmp_path, monkeypatch):
    import submitit

    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    path = write(tmp_path, grid={"seed": {"key": "seed", "values": [0]}})
    plan = load_study(path, ["duration.length=6 steps"], tmp_path / "study")
    executor = submitit.LocalExecutor(slurm.jobs_folder(plan.directory))
    executor.update_parameters(timeout_min=10)
    heard, jobs = Heard(), []
    submit = executor.submit
    executor.submit = lambda *args: jobs.append(submit(*args)) or jobs[-1]
    plan.directory.mkdir(exist_ok=True)
    slurm.Jobs(plan, list(plan.cells), 0, heard, executor, lambda: {j.job_id for j in jobs if not j.done()}).run()
    assert heard.ended == [("0", "finished")]
    assert "6/6" in (plan.directory / "cells" / "0" / "log.txt").read_text()
