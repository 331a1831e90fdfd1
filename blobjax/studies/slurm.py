"""Cells as jobs of a Slurm cluster, through submitit: one job a cell, each on one node.

The study's own process submits and waits, and may be ended: Ctrl-C cancels what it submitted, and the jobs save first.
Where it is killed its jobs go on, and the same command waits for them instead of submitting them again. A job whose
time is up saves and is submitted again, as long as it gets on.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blobjax.config import BadInputError
from blobjax.config.document import parse_yaml
from blobjax.runs.directory import write_atomically
from blobjax.studies import runner, worker
from blobjax.studies.cell_progress import Progress
from blobjax.studies.order import Order
from blobjax.studies.results import Result, read
from blobjax.studies.study import Cell, ResolvedStudy

# Seconds between looks at files, and at the queue, which is asked of the cluster's one controller.
_LOOK, _ASK = 0.5, 5.0
# Minutes a job may take, where nothing is given.
_MINUTES = 60
_OURS = ".blobjax-"


def executor(directory: Path, parameters: Sequence[str]) -> Any:
    """What submits to Slurm.

    Args:
      directory: the study's, which all nodes must see.
      parameters: `name=value` for sbatch, as submitit calls them: partition=gpu, gpus_per_node=1, time=120.

    Raises:
      BadInputError: submitit or Slurm are not there, or a parameter is none.
    """
    if find_spec("submitit") is None:
        raise BadInputError("--on slurm: submitit is not installed; pip install 'blobjax[slurm]'")
    import submitit

    given: dict[str, Any] = {"time": _MINUTES, "job_name": "blobjax"}
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if not (name and equals):
            raise BadInputError(f"--slurm {parameter}: expected NAME=VALUE, such as partition=gpu")
        given[name.strip().replace("-", "_")] = parse_yaml(value, f"--slurm {name}")
    try:
        made = submitit.SlurmExecutor(folder=jobs_folder(directory))
        made.update_parameters(**given)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise BadInputError(f"--on slurm: {' '.join(str(error).split())}") from None
    return made


def queued() -> set[str]:
    """Numbers of this user's jobs that wait or run.

    Raises:
      OSError, subprocess.SubprocessError: the cluster does not answer.
    """
    asked = ["squeue", "--noheader", f"--user={os.getuid()}", "--format=%A"]
    return set(subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.split())


def jobs_folder(directory: Path) -> Path:
    """Where submitit keeps what it submits and what comes back."""
    return directory.resolve() / f"{_OURS}jobs"


class Jobs:
    """The cells that are to be run, as jobs.

    Args:
      plan: the study.
      cells: those to run, in this order.
      at_once: jobs that wait or run at the same time, at most; 0: all.
      progress: is told of every cell that begins and ends.
      executor: submitit's.
      alive: the numbers of the jobs that have not ended, as far as the cluster knows.
    """

    def __init__(
        self,
        plan: ResolvedStudy,
        cells: list[Cell],
        at_once: int,
        progress: Progress,
        executor: Any,
        alive: Callable[[], set[str]] = queued,
    ):
        self._plan = plan
        self._order = Order(plan, cells)
        self._at_once = at_once or len(cells)
        self._progress = progress
        self._executor = executor
        self._alive = alive
        self._record = plan.directory / f"{_OURS}jobs.json"
        self._jobs: dict[str, tuple[Cell, Any, int]] = {}

    def run(self) -> None:
        """Runs all cells; Ctrl-C cancels the jobs, and what they are at is saved.

        Raises:
          BadInputError: a cell's run refused its config, devices or data.
          KeyboardInterrupt: it was interrupted.
        """
        try:
            self._adopt()
            self._until_done()
        except (KeyboardInterrupt, BadInputError):
            self._progress.say("stopping: jobs are cancelled, those under way are saved")
            self._order.clear()
            self._cancel()
            raise

    def _adopt(self) -> None:
        """Takes over the jobs of a study process that was killed."""
        known = json.loads(self._record.read_text(encoding="utf-8")) if self._record.is_file() else {}
        alive = self._alive() if known else set()
        for cell in [cell for cell in self._order.waiting if known.get(cell.name) in alive]:
            job = self._executor.job_class(jobs_folder(self._plan.directory), known[cell.name])
            self._order.remove(cell)
            self._jobs[cell.name] = (cell, job, _steps(read(cell)))
            self._progress.say(f"{cell.name}: its job {job.job_id} is still there")
            self._progress.begin(cell)

    def _until_done(self) -> None:
        asked, alive = 0.0, None
        while self._order.waiting or self._jobs:
            while len(self._jobs) < self._at_once and (cell := self._order.take()) is not None:
                self._submit(cell)
            if time.monotonic() - asked > _ASK:
                asked, alive = time.monotonic(), self._ask()
            for name, (cell, job, before) in list(self._jobs.items()):
                if job.paths.result_pickle.is_file() or (alive is not None and job.job_id not in alive):
                    del self._jobs[name]
                    self._ended(cell, job, before)
                    asked, alive = time.monotonic(), None
            self._progress.update()
            time.sleep(_LOOK)

    def _ask(self) -> set[str] | None:
        """The jobs that are there; None where the cluster does not answer, which ends nothing."""
        try:
            return self._alive()
        except (OSError, subprocess.SubprocessError):
            return None

    def _submit(self, cell: Cell) -> None:
        runner.prepare(cell)
        if why_not := self._order.unmet(cell):
            runner.note_failure(cell, why_not)
            self._end(read(cell))
            return
        before = _steps(read(cell))
        job = self._executor.submit(worker.run_one, str(Path(cell.config.logging.run_dir).resolve()),
                                    str(self._plan.directory.resolve()))  # fmt: skip
        self._jobs[cell.name] = (cell, job, before)
        # Before anything else: a job that nobody remembers would be submitted twice.
        write_atomically(self._record, json.dumps({name: each.job_id for name, (_, each, _) in self._jobs.items()}))
        self._progress.begin(cell)

    def _ended(self, cell: Cell, job: Any, before: int) -> None:
        answer = _answer(job)
        runner.refuse(cell, answer)
        if "error" in answer:
            runner.note_failure(cell, answer["error"])
        result = read(cell)
        if result.status == "stopped" and _steps(result) > before:
            self._progress.say(f"{cell.name}: its time was up at step {_steps(result)}; submitted again")
            self._order.put_back(cell)
            return
        self._end(result)

    def _end(self, result: Result) -> None:
        self._progress.end(result)
        self._order.ended(result.cell)

    def _cancel(self) -> None:
        """Cancels the jobs and waits until they are gone: one that runs saves first."""
        for _, job, _ in self._jobs.values():
            job.cancel(check=False)
        while (alive := self._ask()) is None or any(job.job_id in alive for _, job, _ in self._jobs.values()):
            time.sleep(1)


def _answer(job: Any) -> dict[str, Any]:
    """What the worker function returned; of a job that ended without a word, a code and an error."""
    if job.paths.result_pickle.is_file():
        try:
            return job.result()
        except Exception as error:
            return {"code": 1, "error": f"job {job.job_id}: {str(error).strip().splitlines()[-1]}"}
    return {"code": 1, "error": f"job {job.job_id} was killed, or its node failed"}


def _steps(result: Result) -> int:
    return max((line["step"] for line in result.metrics), default=0)
