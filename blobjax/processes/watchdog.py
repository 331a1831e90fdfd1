"""The hang watchdog: a run that makes no progress for too long says where each of its threads stands, and ends.

A collective that waits for a process which will never come, a data source that does not answer, a file system that went
away: none of them is an error to Python, and the devices stay taken for as long as someone pays for them.

A thread watches the main thread, and the timer in C of faulthandler watches that thread: where Python's lock is held
for ever, no thread of Python's runs. A step costs the writing of three attributes, not the 40 µs of setting that timer.
"""

import contextlib
import faulthandler
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from blobjax.processes.leaving import leave, say
from blobjax.runs.directory import EventLog

# Compiling, saving, restoring and evaluating may take so many times longer than a step.
PATIENCE = 10
# How long writing the stacks may take: the file system may be what hangs.
_WRITING_SECONDS = 5
# Between looks at the main thread.
_LONGEST_TICK = 5.0
# Processes that wait for each other come to their limits together; the death of the first would end the others.
_LINGER_SECONDS = 2


class Watchdog:
    """Ends the process with code 1 when `beat` is not called for too long; a context manager that watches from `start`.

    Args:
      limit_seconds: without progress; None: never.
      process: its number among the processes.
    """

    def __init__(self, limit_seconds: float | None, process: int):
        self._limit = limit_seconds
        self._tick = min(limit_seconds / 10, _LONGEST_TICK) if limit_seconds else 0.0
        self._process = process
        self._doing = "starting"
        self._allowed = 0.0
        self._since = 0.0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._stacks: Path | None = None
        self._timer_file: TextIO | None = None
        self._events: EventLog | None = None

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
        if self._timer_file is not None:
            self._timer_file.close()
            Path(self._timer_file.name).unlink(missing_ok=True)

    def start(self, doing: str) -> None:
        """Begins to watch, with patience."""
        if self._limit is not None:
            self._set(doing, self._limit * PATIENCE)
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def write_to(self, directory: Path, events: EventLog) -> None:
        """From now on stacks go to a file hang-PROCESS.txt there, and no longer to stderr."""
        if self._limit is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        self._stacks, self._events = directory / f"hang-{self._process}.txt", events
        # The C timer can only write, so its file is there before it is needed, and gets its name at the next attempt.
        hidden = directory / f".blobjax-hang-{self._process}"
        if hidden.is_file() and hidden.stat().st_size:
            hidden.replace(self._stacks)
        self._timer_file = hidden.open("w", encoding="utf-8")
        self._arm()

    def beat(self, doing: str = "a step") -> None:
        """There was progress."""
        if self._limit is not None:
            self._set(doing, self._limit)

    @contextlib.contextmanager
    def patience(self, doing: str) -> Iterator[None]:
        """More time for what is done within."""
        if self._limit is not None:
            self._set(doing, self._limit * PATIENCE)
            self._arm()
        yield
        if self._limit is not None:
            self.beat()
            self._arm()

    def _set(self, doing: str, allowed: float) -> None:
        self._doing, self._allowed, self._since = doing, allowed, time.monotonic()

    @property
    def _left(self) -> float:
        return self._since + self._allowed - time.monotonic()

    def _arm(self) -> None:
        """Sets the timer in C behind the limit: it comes to nothing while the thread gets to run."""
        if self._thread is not None and self._thread.is_alive():
            faulthandler.dump_traceback_later(
                max(self._left, 0) + 2 * self._tick, exit=True, file=self._timer_file or 2
            )

    def _watch(self) -> None:
        while not self._closed.is_set():
            if self._left <= 0:
                self._end()
            self._arm()
            self._closed.wait(min(self._tick, max(self._left, 0)))

    def _end(self) -> None:
        why = f"no progress for {self._allowed:g} s in {self._doing} (reliability.hang_limit)"
        say(f"blobjax: process {self._process}: {why}; its threads' stacks go to {self._stacks or 'stderr'}")
        # Should the run's file system be what hangs, then they go to stderr after all.
        faulthandler.dump_traceback_later(_WRITING_SECONDS, exit=True, file=2)
        if self._stacks is None:
            faulthandler.dump_traceback(2, all_threads=True)
            leave(1)
        with self._stacks.open("a", encoding="utf-8") as file:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {why}", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        with contextlib.suppress(OSError, ValueError):  # where the events were closed before
            assert self._events is not None
            self._events.write("hang", doing=self._doing, seconds=self._allowed, process=self._process)
        time.sleep(_LINGER_SECONDS)
        leave(1)
