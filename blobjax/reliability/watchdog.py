"""The hang watchdog: a run that makes no progress for too long says where each of its threads stands, and ends.

A collective that waits for a process which will never come, a data source that does not answer, a file system that went
away: none of them is an error to Python, and the devices stay taken for as long as someone pays for them.

A thread watches the main thread, and the C timer of faulthandler watches that thread: where Python's lock is held for
ever, no thread of Python's runs. Each step costs the writing of one attribute.
"""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from blobjax.reliability.leaving import leave
from blobjax.reliability.run_directory import EventLog

# Compiling, saving, restoring and evaluating may take so many times longer than a step.
PATIENCE = 10
# How long writing the stacks may take: the file system may be what hangs.
_WRITING_SECONDS = 5


class Watchdog:
    """Ends the process with code 1 when `beat` is not called for too long; a context manager that watches from `start`.

    Args:
      limit_seconds: without progress; None: never.
      process: its number among the processes.
    """

    def __init__(self, limit_seconds: float | None, process: int):
        self._limit = limit_seconds
        self._process = process
        self._doing = "starting"
        self._allowed = 0.0
        self._since = 0.0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._stacks: TextIO | None = None
        self._events: EventLog | None = None

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
        if self._stacks is not None:
            empty = os.fstat(self._stacks.fileno()).st_size == 0
            self._stacks.close()
            if empty:
                Path(self._stacks.name).unlink(missing_ok=True)

    def start(self, doing: str) -> None:
        """Begins to watch, with patience."""
        if self._limit is not None:
            self._set(doing, self._limit * PATIENCE)
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def write_to(self, directory: Path, events: EventLog) -> None:
        """From now on stacks go to a file hang-PROCESS.txt there, and no longer to stderr."""
        self._events = events
        if self._limit is not None:
            directory.mkdir(parents=True, exist_ok=True)
            # Open before it is needed, as the C timer can only write. It is removed if nothing was.
            self._stacks = (directory / f"hang-{self._process}.txt").open("a", encoding="utf-8")

    def beat(self, doing: str = "a step") -> None:
        """There was progress."""
        if self._limit is not None:
            self._set(doing, self._limit)

    @contextlib.contextmanager
    def patience(self, doing: str) -> Iterator[None]:
        """More time for what is done within."""
        if self._limit is not None:
            self._set(doing, self._limit * PATIENCE)
        yield
        self.beat()

    def _set(self, doing: str, allowed: float) -> None:
        self._doing, self._allowed, self._since = doing, allowed, time.monotonic()

    def _watch(self) -> None:
        assert self._limit is not None
        tick = min(self._limit / 10, 5.0)
        while True:
            left = self._since + self._allowed - time.monotonic()
            if left <= 0:
                self._end()
            # Comes to nothing while this thread gets to run again and again.
            faulthandler.dump_traceback_later(left + 2 * tick, exit=True, file=self._file())
            if self._closed.wait(min(tick, left)):
                return

    def _file(self) -> Any:
        return 2 if self._stacks is None else self._stacks

    def _end(self) -> None:
        # Should the run's file system be what hangs, then the stacks go to stderr.
        faulthandler.dump_traceback_later(_WRITING_SECONDS, exit=True, file=2)
        where = "above" if self._stacks is None else f"in {self._stacks.name}"
        why = f"no progress for {self._allowed:g} s in {self._doing} (reliability.hang_limit)"
        if self._stacks is not None:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {why}", file=self._stacks, flush=True)
        faulthandler.dump_traceback(self._file(), all_threads=True)
        if self._events is not None:
            self._events.write("hang", doing=self._doing, seconds=self._allowed, process=self._process)
        leave(1, f"blobjax: process {self._process}: {why}; the stacks of its threads are {where}")
