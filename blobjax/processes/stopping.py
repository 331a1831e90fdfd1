"""Being told to stop: noticed whatever the main thread does, agreed on by all processes, and bounded in time.

A signal handler of Python's runs between two bytecodes of the main thread, so never while that waits in a collective.
Its C half runs at once and writes the signal's number into a pipe (signal.set_wakeup_fd); a thread of ours reads it,
speaks, and keeps the time.

One process of several cannot stop by itself: the others would wait for it in their next collective. jax has the
agreement: multihost_utils.reached_preemption_sync_point, asked by all at every step, is true for all at the same one.
It costs 10 µs and no communication until somebody is told to stop. It is set off by a C handler for SIGTERM that
jax.distributed.initialize installs, and that would swallow the signal. So ours stands in front and calls jax's.
"""

import contextlib
import ctypes
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

from blobjax.processes.leaving import leave, say, within

RESUMABLE = 75
LIMIT = "wall-clock limit"
# What a process is told to stop by: Ctrl-C, a scheduler, a terminal that was closed (an ssh session that broke).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Writing down why may meet a file system that does not answer.
FAREWELL_SECONDS = 1.0


class Stopping:
    """Whether this process, or another of the run, was told to stop.

    Args:
      grace_seconds: after SIGTERM or SIGHUP this process is gone within so long, whatever it hangs in.

    Attributes:
      reason: why this process was told to: SIGINT, SIGTERM, SIGHUP, or the wall-clock limit; empty when it was not.
      resumable: says whether a run that ended now would lose no more than what came after its newest checkpoint; asked
        when this process ends at once. It must answer within a second or so.
      farewell: gets why this process ends at once, and whether the run is resumable; it may write both down.
    """

    def __init__(self, grace_seconds: float):
        self.reason = ""
        self.resumable: Callable[[], bool] = lambda: True
        self.farewell: Callable[[str, bool], None] | None = None
        self._grace = grace_seconds
        self._outlook = "stopping before the first step"
        self._deadline: float | None = None
        self._bounded_by = ""
        self._seen: set[signal.Signals] = set()
        self._begun = False
        self._asked = 0
        self._tell_jax: Callable[[int], None] | None = None
        self._handlers: dict[signal.Signals, object] = {}
        self._pipe: tuple[int, int] | None = None

    def listen(self) -> None:
        """Takes `SIGNALS` until `close`; main thread only. What is ignored (SIGHUP under nohup, Ctrl-C in a shell's job
        in the background) stays ignored."""
        self._pipe = read, write = os.pipe()
        os.set_blocking(write, False)
        self._wakeup_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, _do_nothing)
        threading.Thread(target=self._read, args=(read,), daemon=True).start()

    def close(self) -> None:
        """Puts back what was there before; a grace period under way ends with it."""
        if self._pipe is None:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._pipe[1])  # the thread reads the end, and goes
        self._pipe = None

    def join(self) -> None:
        """Has several processes stop together; to be called once jax.distributed.initialize may have been."""
        import jax

        if self._tell_jax is not None or not jax.distributed.is_initialized():
            return
        self._tell_jax = ctypes.CFUNCTYPE(None, ctypes.c_int)(_c_handler(signal.SIGTERM))
        if signal.SIGTERM in self._handlers:
            signal.signal(signal.SIGTERM, _do_nothing)

    def agreed(self) -> bool:
        """Whether to stop here; asked by every process at the same points of the run, from before the first step on."""
        if not self._begun:
            self._begun, self._outlook = True, "stopping after this step, saving"
        if self._tell_jax is None:
            return bool(self.reason)
        from jax.experimental import multihost_utils

        # Numbers of questions and not of steps: jax looks for the one after the last that any process asked. A run that
        # resumes begins at any step, and a rollback takes steps back.
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)

    @contextlib.contextmanager
    def during(self, outlook: str) -> Iterator[None]:
        """Within, a signal's line says that this is what will happen."""
        before, self._outlook = self._outlook, outlook
        try:
            yield
        finally:
            self._outlook = before

    def request(self, reason: str) -> None:
        """Stops this process, and so all of them, at the next point where all can."""
        if not self.reason:
            self.reason = reason
            if self._tell_jax is not None:
                self._tell_jax(signal.SIGTERM)

    def _read(self, pipe: int) -> None:
        """Waits for signals, and for the end of the grace period, in a thread of its own."""
        while True:
            left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0)
            if not select.select([pipe], [], [], left)[0]:
                of = f"within {self._grace:g} s of {self._bounded_by} (reliability.grace)"
                self._leave(f"not stopped {of}, so it ends now")
            numbers = os.read(pipe, 16)
            if not numbers:
                os.close(pipe)
                return
            for number in numbers:
                if number in SIGNALS:
                    self._take(signal.Signals(number))

    def _take(self, number: signal.Signals) -> None:
        if self._tell_jax is None and not self._begun:
            self._leave(f"{number.name} before the first step, nothing is lost")
        if number in self._seen:
            if number is signal.SIGINT:
                self._leave("interrupted again, so it ends now")
            return
        self._seen.add(number)
        hint = "Ctrl-C again stops now"
        if number is not signal.SIGINT:
            if self._deadline is None:  # a second one prolongs nothing: the grace period goes on from the first
                self._deadline, self._bounded_by = time.monotonic() + self._grace, number.name
            hint = f"gone within {self._grace:g} s"
        say(f"blobjax: {number.name}: {self._outlook}; {hint}")
        self.request(number.name)

    def _leave(self, why: str) -> None:
        resumable = self.resumable()
        if self.farewell is not None:
            within(FAREWELL_SECONDS, self.farewell, why, resumable)
        if resumable:
            leave(RESUMABLE, f"blobjax: {why}; run the same command to go on")
        leave(1, f"blobjax: {why}; no checkpoint was saved yet, so its steps are lost")


def _do_nothing(number: int, frame: object) -> None:
    """The handler's Python half; it must be there for the C half to be."""


def _c_handler(number: signal.Signals) -> int:
    """The address of a signal's handler in C, which Python does not tell of handlers that are not its own."""
    # sigaction(2) puts it first in a struct whose size differs between systems; none has more than this.
    action = (ctypes.c_void_p * 64)()
    if ctypes.CDLL(None, use_errno=True).sigaction(int(number), None, action):
        raise OSError(ctypes.get_errno(), "sigaction")
    return action[0] or 0
