"""Runs the cells of a study: a few workers, each given one cell after another, until every cell has come to an end."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from blobjax.config import BadInputError, Config, dump
from blobjax.config.diff import config_diff
from blobjax.runs.directory import EventLog, RunDirectory, refuse_links, write_atomically
from blobjax.runs.outcome import DONE
from blobjax.studies.cell_progress import Progress
from blobjax.studies.order import Order
from blobjax.studies.results import read
from blobjax.studies.study import THREADS, Cell, ResolvedStudy

# What our own files that mean nothing to others begin with.
_OURS = ".blobjax-"
# What a process can be told of jax only once, before it starts: keys of `compute`.
START = ("virtual_cpu_devices", "cpu_threads", "xla_flags", "compilation_cache")
# Seconds to wait for the workers of a study that was just killed: they save what they are at.
_PATIENCE = 20.0


class Worker:
    """One worker process, from this side. All cells given to it start jax in the same way."""

    def __init__(self, compute: dict[str, Any], environment: dict[str, str], keep_open: IO[str]):
        self.compute = compute
        # A session of its own: Ctrl-C reaches the study alone, which tells its workers.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "blobjax.studies.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",  # of run directories, whatever this machine's locale
            errors="surrogateescape",
            env=os.environ | environment,
            start_new_session=True,
            pass_fds=(keep_open.fileno(),),
        )

    def run(self, cell: Cell) -> dict[str, Any]:
        """The worker's answer; of one that died, a code and an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{cell.config.logging.run_dir}\n")
            self._process.stdin.flush()
            if answer := self._process.stdout.readline():
                return json.loads(answer)
        except (OSError, ValueError):  # it is gone, or was told to end
            pass
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return {"code": 1, "died": True, "error": f"the worker process {how}"}

    def end(self) -> None:
        """Tells it to end; a run under way is saved first."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def kill(self) -> None:
        """Ends it now."""
        self._process.kill()

    def wait(self) -> None:
        """Returns when it has ended."""
        self._process.wait()


class Crew:
    """The workers of a study, each driven by a thread of this process.

    Args:
      plan: the study.
      cells: those to run, in this order.
      jobs: how many at once.
      lock: the study directory's; workers hold on to it, so that nobody starts anew while one of them still saves.
      progress: is told of every cell that begins and ends.
    """

    def __init__(self, plan: ResolvedStudy, cells: list[Cell], jobs: int, lock: IO[str], progress: Progress):
        self._order = Order(plan, cells)
        self._lock = lock
        self._progress = progress
        self._environment = _environment(plan.directory)
        self._stopping = threading.Event()
        self._workers: dict[int, Worker] = {}
        self._error: Exception | None = None
        self._threads = [threading.Thread(target=self._serve, args=(n,), daemon=True) for n in range(jobs)]

    def run(self) -> None:
        """Runs all cells, or as many as there is time for: Ctrl-C ends it early, with what was begun saved.

        Raises:
          BadInputError: a cell's run refused its config, devices or data.
          KeyboardInterrupt: it was interrupted.
        """
        for thread in self._threads:
            thread.start()
        try:
            self._wait()
        except KeyboardInterrupt:
            self._progress.say("stopping: the cells under way are saved (once more to stop at once)")
            self.stop()
            try:
                self._wait()
            except KeyboardInterrupt:
                for worker in list(self._workers.values()):
                    worker.kill()
            raise
        if self._error is not None:
            raise self._error

    def _wait(self) -> None:
        while any(thread.is_alive() for thread in self._threads):
            self._progress.update()
            time.sleep(0.2)

    def stop(self) -> None:
        """Lets no cell begin, and those under way save and stop."""
        self._stopping.set()
        for worker in list(self._workers.values()):
            worker.end()

    def _serve(self, number: int) -> None:
        try:
            self._run_cells(number)
        except Exception as error:
            self._error = error
            self.stop()
        if (last := self._workers.get(number)) is not None:
            last.end()
            last.wait()

    def _run_cells(self, number: int) -> None:
        while (cell := self._next()) is not None:
            prepare(cell)
            if why_not := self._order.unmet(cell):
                note_failure(cell, why_not)
                self._ended(cell)
                continue
            worker = self._worker(number, cell.config)
            if self._stopping.is_set():
                break
            self._progress.begin(cell)
            answer = worker.run(cell)
            if answer.get("died"):
                del self._workers[number]
            refuse(cell, answer)
            if "error" in answer and not self._stopping.is_set():
                note_failure(cell, answer["error"])
            elif answer.get("died"):
                note_end(cell)
            self._ended(cell)

    def _next(self) -> Cell | None:
        """The next cell, once there is one that waits for no other; None: none is left, or the study stops."""
        while self._order.waiting and not self._stopping.is_set():
            if (cell := self._order.take()) is not None:
                return cell
            time.sleep(0.1)
        return None

    def _ended(self, cell: Cell) -> None:
        self._progress.end(read(cell))
        self._order.ended(cell)

    def _worker(self, number: int, config: Config) -> Worker:
        """The thread's worker, or a new one where jax must be started in another way."""
        wanted = start_of(config)
        worker = self._workers.get(number)
        if worker is not None and worker.compute != wanted:
            worker.end()
            worker.wait()
            worker = None
        if worker is None:
            worker = self._workers[number] = Worker(wanted, self._environment, self._lock)
        return worker


def start_of(config: Config) -> dict[str, Any]:
    """What a cell wants of jax that a process can be told only once."""
    return config.compute.model_dump(include=set(START))


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(plan: ResolvedStudy) -> int:
    """As many cells as their threads have cores, at most eight; one where an accelerator would have to be shared."""
    from blobjax.compute import runtime

    threads = max(cell.config.compute.cpu_threads for cell in plan.cells)
    return min(max(cores() // threads, 1), 8) if runtime.platform() == "cpu" else 1


def compilation_cache(directory: Path) -> dict[str, str]:
    """Cells that differ in a learning rate share the programs that initialise and evaluate."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str((directory / f"{_OURS}compiled").resolve()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def _environment(directory: Path) -> dict[str, str]:
    """What workers find in their environment besides ours; what the user set stays."""
    return {name: value for name, value in compilation_cache(directory).items() if name not in os.environ}


def prepare(cell: Cell) -> None:
    """Makes a cell's directory that of its run, so that a worker needs no more than its path."""
    directory = RunDirectory(cell.config.logging.run_dir)
    directory.path.mkdir(parents=True, exist_ok=True)
    write_atomically(directory.config, dump(cell.config))


def refuse(cell: Cell, answer: dict[str, Any]) -> None:
    """Ends the study where a run would not take its config, devices or data: no other cell would be of use.

    Raises:
      BadInputError: with what the run said.
    """
    if answer["code"] == 2:
        raise BadInputError(*(f"cell {cell.name}: {line}" for line in answer["problems"]))


def note_failure(cell: Cell, error: str) -> None:
    """Ends the events of a run that could not end them itself."""
    if read(cell).status in ("waiting", "stopped"):
        with EventLog(RunDirectory(cell.config.logging.run_dir).events) as events:
            events.write("stop", reason=error[:500])


def note_end(cell: Cell) -> None:
    """The same of a run whose process ended with the study, and had not the time to say so."""
    events = read(cell).events
    if events and events[-1]["event"] not in ("stop", "spent"):
        with EventLog(RunDirectory(cell.config.logging.run_dir).events) as log:
            log.write("stop", reason="ended with the study", resumable=True)


# Patterns of what a study writes into its directory.
_WRITTEN = (
    *("study.yaml", "cells", "cells.jsonl", "summary.json", "index.html", "report.html", "confirm"),
    *("fit-*.json", "*.png", f"{_OURS}*"),
)


def check_directory(directory: Path) -> None:
    """Refuses what is neither a study's directory nor empty.

    Raises:
      BadInputError: with what is there.
    """
    if directory.exists() and not directory.is_dir():
        raise BadInputError(f"study directory {directory} is a file; give another with --dir")
    refuse_links(directory, _WRITTEN, "a study")
    refuse_links(directory / "cells", "*", "a study")
    others = directory.is_dir() and [entry for entry in directory.iterdir() if not entry.name.startswith(_OURS)]
    if others and not (directory / "study.yaml").is_file():
        raise BadInputError(f"study directory {directory} is not empty and holds no study; give another with --dir")


def check(plan: ResolvedStudy) -> None:
    """Refuses a directory of something else, and cells that were run with another config.

    Raises:
      BadInputError: with what differs, and what to do.
    """
    check_directory(plan.directory)
    for cell in plan.cells:
        directory = RunDirectory(cell.config.logging.run_dir)
        try:
            previous = directory.previous_config()
        except BadInputError as error:
            what = f"cell {cell.name}: {error.problems[0]}"
            raise BadInputError(f"{what}; remove {directory.path} to do it again") from None
        lines = config_diff(previous, cell.config) if previous is not None else []
        # Stricter than a run is with itself: what is measured must be the same in all cells.
        ours = ("compute.", "logging.", "name:")
        # Of what is said of devices, threads alone are the study's own: they decide the last bits on any CPU.
        if changed := [line for line in lines if line.startswith(THREADS) or not line.startswith(ours)]:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise BadInputError(
                f"cell {cell.name} in {plan.directory} was run with another config ({'; '.join(changed[:3])}{more}); "
                "give --dir for another directory, or remove this one"
            )


def check_grid(plan: ResolvedStudy) -> None:
    """Refuses a directory with cells that are not this grid's: of a study begun with other overrides.

    Raises:
      BadInputError: with one of them, and what to do.
    """
    there = {each.parent.name for each in plan.directory.glob("cells/*/config.yaml")}
    if others := sorted(there - {cell.name for cell in plan.cells}):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise BadInputError(
            f"study directory {plan.directory} holds cells of another grid ({others[0]}{more}); go on with that one by "
            f"`blobjax study {plan.directory}`, or give --dir for this one"
        )


@contextlib.contextmanager
def locked(directory: Path, patience: float = _PATIENCE) -> Iterator[IO[str]]:
    """Holds a study's directory for this process and its workers.

    Raises:
      BadInputError: another study runs there, still after `patience` seconds; or nothing can be written there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{_OURS}lock").touch()
    except OSError as error:
        raise BadInputError(
            f"study directory {directory} cannot be written: {error.strerror or error}; give another with --dir"
        ) from None
    with (directory / f"{_OURS}lock").open("a+", encoding="utf-8") as lock:
        deadline = time.monotonic() + patience
        while not _try(lock):
            if time.monotonic() > deadline:
                raise BadInputError(
                    f"study directory {directory} is in use by another study; wait for it, or give --dir"
                )
            time.sleep(0.2)
        yield lock


def in_use(directory: Path) -> bool:
    """Whether a study runs there now."""
    path = directory / f"{_OURS}lock"
    if not path.is_file():
        return False
    with path.open("a+", encoding="utf-8") as lock:
        return not _try(lock)


def _try(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def unfinished(plan: ResolvedStudy) -> list[Cell]:
    """The cells that have not come to an end; failed ones are tried again."""
    return [cell for cell in plan.cells if read(cell).status not in DONE]
