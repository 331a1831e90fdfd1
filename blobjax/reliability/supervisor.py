"""`blobjax train --restarts N`: starts the same command again when it fails, for where no scheduler does.

The supervisor is a process of its own that starts no jax, so that whatever ends a training process leaves it standing.
On several hosts there is one on each; a death on one ends all processes of the run within the heartbeat, and all
supervisors start theirs again.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from blobjax.config import BadInputError
from blobjax.reliability.run_directory import RunDirectory, read_jsonl
from blobjax.reliability.stopping import SIGNALS

# Where a child finds out that it was restarted: how often, and what the one before it ended with.
RESTART, PREVIOUS = "BLOBJAX_RESTART", "BLOBJAX_PREVIOUS_EXIT"
# 0 and 75 are ends that somebody wanted, and bad input is as bad the next time.
_FINAL = (0, 2, 75)
_LONGEST_SECONDS = 60.0
_SEVERAL_SECONDS = 15.0
# Who has lived so long did not fail for what made the one before it fail: the waits begin anew.
_HEALTHY_SECONDS = 600.0
# Loaded here, as little as possible may happen between fork and exec.
_LIBC = ctypes.CDLL(None)


def newest_save(directory: RunDirectory) -> int:
    """The newest step that is saved and not known to hold numbers that are not finite; -1 where there is none."""
    # A process that dies right after a commit had no time to tell; Orbax gives a folder its number once it is whole.
    usable = {int(folder.name): True for folder in directory.checkpoints.glob("*") if folder.name.isdecimal()}
    for event in read_jsonl(directory.events):
        step = event.get("step")
        if event.get("event") in ("save", "restore") and isinstance(step, int):
            # What was said last counts: a step may be saved again.
            usable[step] = event.get("finite") is not False
    return max((step for step, good in usable.items() if good), default=-1)


def supervise_training(arguments: Sequence[str], restarts: int, run_dir: str) -> int:
    """Supervises `blobjax` with these arguments, of which `--restarts N` is taken away; returns the exit code."""
    asked = any(argument.startswith("--num-processes") for argument in arguments)
    several = asked or os.environ.get("JAX_NUM_PROCESSES", "1") != "1"
    return supervise(
        [sys.executable, "-m", "blobjax.cli", *_without_restarts(arguments)],
        restarts,
        progress=lambda: newest_save(RunDirectory(run_dir)),
        # The others may take the heartbeat's 10 s to notice; whoever comes back earlier meets the old run.
        first_wait=_SEVERAL_SECONDS if several else 1.0,
    )


def _without_restarts(arguments: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if argument == "--restarts":
            skip = True
        elif not skip and not argument.startswith("--restarts="):
            kept.append(argument)
        else:
            skip = False
    return kept


def supervise(
    command: Sequence[str],
    restarts: int,
    progress: Callable[[], int],
    first_wait: float = 1.0,
    sleep: Callable[[float], object] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Runs a command, and again when it fails, until it ends otherwise.

    Args:
      command: what to run.
      restarts: at most so many times again.
      progress: a number that grows with what would not be lost. Two failures without growth in between end it: whatever
        is wrong, trying again does not help.
      first_wait: seconds before the first restart; twice as long each time after, up to a minute, until one has lived
        for ten minutes.
      sleep: waits; injectable for tests. A signal ends the wait.
      clock: seconds; likewise.

    Returns:
      The exit code of the last; 128 + the signal if one killed it.
    """
    told = _Signals()
    wait = sleep or told.wait
    done, before, code = 0, progress(), 0
    pause = first_wait
    with told:
        while True:
            environment = {RESTART: str(done), PREVIOUS: str(code)} if done else {}
            began = clock()
            code = told.run(command, environment)
            if code in _FINAL or told.received:
                break
            now, name = progress(), named(code)
            if done >= restarts:
                _say(f"{name}; that was restart {done} of {restarts}" if done else f"{name}; no restarts are left")
                break
            if now <= before and done:
                _say(f"{name}; nothing was saved since the failure before it, so starting again would not help")
                break
            if clock() - began >= _HEALTHY_SECONDS:
                pause = first_wait
            before, done = now, done + 1
            _say(f"{name}; restart {done} of {restarts} in {pause:g} s")
            wait(pause)
            pause = min(2 * pause, _LONGEST_SECONDS)
            if told.received:
                code = 75
                break
    return 128 - code if code < 0 else code


class _Signals:
    """Passes SIGINT, SIGTERM and SIGHUP on to the child, each as often as it comes, but for what is ignored here and so
    by the child; a context manager."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._child: subprocess.Popen | None = None
        self._told = threading.Event()

    def __enter__(self) -> "_Signals":
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._take) for number in heard}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: object) -> None:
        self.received.append(number)
        self._told.set()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def run(self, command: Sequence[str], environment: dict[str, str]) -> int:
        """Runs a child to its end."""
        # A session of its own: a terminal's Ctrl-C comes to it from here, once.
        self._child = subprocess.Popen(
            command, env={**os.environ, **environment}, start_new_session=True, preexec_fn=_end_with_parent
        )
        if self.received:  # between the start and the line above
            self._child.send_signal(self.received[-1])
        return self._child.wait()

    def wait(self, seconds: float) -> None:
        """Waits, or less when told to stop."""
        self._told.wait(seconds)


def _end_with_parent() -> None:
    """Has Linux send this process SIGTERM when its parent dies: else nobody knows of it, and its devices stay taken."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        _LIBC.prctl(set_parent_death_signal, int(signal.SIGTERM))


def named(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    known = {each.value: each.name for each in signal.Signals}
    return f"killed by {known.get(-code, f'signal {-code}')}"  # most of the real-time signals have no name


def _say(line: str) -> None:
    print(f"blobjax: {line}", file=sys.stderr, flush=True)


def restarted() -> dict[str, int] | None:
    """Of a child: which restart it is, and the exit code before it; None where it is none."""
    if RESTART not in os.environ:
        return None
    try:
        return {"restart": int(os.environ[RESTART]), "previous_exit": int(os.environ.get(PREVIOUS, "0"))}
    except ValueError:
        raise BadInputError(
            f"{RESTART}={os.environ[RESTART]!r} is not a number; it is set by --restarts only"
        ) from None
