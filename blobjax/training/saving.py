"""How states are saved, and what follows where storage is slow or fails: training goes on while it can."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
import numpy as np

from blobjax.checkpointing.checkpointer import Checkpointer
from blobjax.checkpointing.files import first_line
from blobjax.config import HaltedError
from blobjax.config.schema import Checkpoint
from blobjax.processes.leaving import within as at_most
from blobjax.processes.timers import everyone
from blobjax.program.state import TrainState
from blobjax.runs.directory import EventLog
from blobjax.training.inputs import Inputs

# So many saves may fail one after the other before the run ends: what it computes is lost if it ends otherwise.
_FAILURES_IN_A_ROW = 3
# How long a run that ends by an error waits for the save in flight; the error is what is waited for.
_PARTING_SECONDS = 60.0
# How long a process that ends at once waits for the storage to say which checkpoints there are.
_LOOK_SECONDS = 1.0

# What a process says when a save is due; the largest of all counts, so that all do the same.
_READY, _CANNOT_WRITE, _WRITING, _OVERDUE = range(4)


SaveRecord = tuple[int, str, float | None, Inputs]
"""What a checkpoint records besides arrays: position in the data stream, in sequences; fingerprint of the data; what
`checkpoint.keep_best` ranks it by, if anything; what else decides how the run goes on from it."""


class Saver:
    """Saves states in the background. Every process does the same, also where only one has trouble.

    Args:
      record: what is recorded of the state at a step, now.
      say: prints a line for the person watching.
      clock: seconds; injectable for tests.

    Attributes:
      standing: whether the run has a checkpoint to go on from.
      finite: whether all parameters of the newest save are.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        policy: Checkpoint,
        events: EventLog,
        record: Callable[[int], SaveRecord],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._checkpointer = checkpointer
        self._stall_seconds = policy.stall_limit.seconds or 0.0
        self._write_limit = policy.write_limit
        self._write_seconds = policy.write_limit.seconds or 0.0
        self._events = events
        self._record = record
        self._say = say
        self._clock = clock
        self.standing = False
        self.finite = True
        self._newest = -1
        self._began = 0.0
        self._in_flight: dict[str, Any] | None = None
        # How the save that ended last did so on this process, until all know; and how many failed in a row.
        self._committed = self._failed = False
        self._failures = 0
        self._given_up = False
        self._failed_on: list[int] = []

    def save(self, step: int, state: TrainState) -> None:
        """Starts a save in the background, or leaves it out where the one before takes too long to be written."""
        if step != self._newest:
            self._save(step, state)

    def save_now(self, step: int, state: TrainState, within: float | None = None) -> None:
        """Saves because there may be no later: waits for the save in flight, then for this one. A collective.

        Args:
          within: seconds it may take altogether; `checkpoint.write_limit` for each of the two where it is not given.

        Raises:
          HaltedError: it could not be saved in time, or at all.
        """
        deadline = self._clock() + within if within is not None else None
        if step != self._newest:
            self._wait(deadline)
            self._save(step, state)
        self._wait(deadline)
        if self._look_all(_READY) == _WRITING:
            raise HaltedError(
                f"step {step} could not be saved within {within or self._write_seconds:g} s; {self._older()}"
            )
        if self._newest != step:
            raise HaltedError(f"step {step} could not be saved; {self._older()}")

    def finish(self) -> None:
        """Waits for the save in flight to be committed or to fail. A collective; raises HaltedError past the limit."""
        self._wait(None)
        if self._look_all(_READY) == _WRITING:
            raise self._too_slow()

    def part(self) -> None:
        """The same for a run that ends by an error, on this process alone: a save under way is worth a while."""
        if not self._given_up:
            self._wait(self._clock() + _PARTING_SECONDS)
            self.look()

    def verify(self, step: int) -> None:
        """Reads a run's last checkpoint as a whole; a bad one goes to the quarantine. A collective.

        Raises:
          HaltedError: it is not what was saved, or cannot be read.
        """
        began = time.monotonic()
        if problem := self._checkpointer.check(step):
            moved_to = self._checkpointer.put_aside(step)
            self._events.write("quarantine", step=step, reason=problem, moved_to=moved_to)
            raise HaltedError(
                f"the last checkpoint, of step {step}, is not what was saved ({problem}): moved to {moved_to}; see to "
                "the storage, and run the same command to go on from the one before it"
            )
        self._events.write("verify", step=step, seconds=time.monotonic() - began)

    def resumable(self) -> bool:
        """Whether the storage holds a checkpoint to go on from at this moment; callable from any thread.

        A save commits in the background, while the main thread may be busy for minutes. Where the storage does not
        answer, the answer is what this process last knew.
        """
        known = [self.standing]

        def look() -> None:
            with suppress(OSError):
                known.append(self._checkpointer.newest_finite() is not None)

        at_most(_LOOK_SECONDS, look)
        return known[-1]

    def undo(self, step: int) -> None:
        """Lets go of every checkpoint after a step, on all processes: the run goes another way from there."""
        self.finish()
        self._checkpointer.delete_after(step)
        self._newest = -1

    def _save(self, step: int, state: TrainState) -> None:
        began, problem, mine = self._clock(), "", _READY
        self._wait(began + self._stall_seconds)
        if self._checkpointer.writing:
            mine = _OVERDUE if began - self._began > self._write_seconds else _WRITING
        elif problem := self._checkpointer.probe(self._stall_seconds):
            mine = _CANNOT_WRITE
        status = self._look_all(mine)
        if status == _OVERDUE:
            raise self._too_slow()
        if status == _WRITING:
            self._leave_out(step)
        elif status == _CANNOT_WRITE:
            self._fail(step, problem or "another process cannot write; it says why")
            self._count()
        else:
            self._in_flight, self._newest, self._began = {"step": step}, step, began
            self.finite = self._checkpointer.save(state, step, *self._record(step))
            self._in_flight["stall_seconds"] = self._clock() - began
            if not self.finite:
                self._in_flight["finite"] = False
                self._say(f"step {step}: saved, but its parameters are not finite: nothing goes on from it")

    def _wait(self, deadline: float | None) -> None:
        """Waits for the save in flight on this process, at most until a deadline, or as long as a save may take."""
        seconds = self._write_seconds if deadline is None else max(deadline - self._clock(), 0.0)
        try:
            self._checkpointer.wait(seconds)
        except Exception as error:
            self._ended(error)

    def look(self) -> None:
        """Writes down what has become of the save in flight, as soon as this process knows it."""
        if self._in_flight is not None and not self._checkpointer.writing:
            self._wait(self._clock())
            self._ended(None)

    def _look_all(self, mine: int) -> int:
        """What holds for all processes; a failed save counts for all once it failed on process 0, which commits it."""
        self.look()
        writing = _WRITING if self._checkpointer.writing else _READY
        known = everyone([max(mine, writing), self._committed, self._failed])
        status, (_, committed, failed) = int(known[:, 0].max()), known[0]
        self._failed_on = np.flatnonzero(known[:, 2]).tolist()
        if status < _WRITING:
            self._committed = self._failed = False
            if committed:
                self._failures = 0
            if failed:
                self._newest = -1
                self._count()
        return status

    def _ended(self, error: Exception | None) -> None:
        """Writes down how the save in flight ended."""
        if self._in_flight is None:
            return
        ended, self._in_flight = self._in_flight, None
        if error is None:
            self._committed = True
            self.standing = self.standing or ended.get("finite", True)
            self._events.write("save", **ended, seconds=self._clock() - self._began)
            return
        self._failed = True
        self._fail(ended["step"], first_line(error))

    def _fail(self, step: int, reason: str) -> None:
        self._events.write("save_failed", step=step, reason=reason)
        line = f"step {step}: not saved: {reason}; {self._older()}"
        if jax.process_index() == 0:
            self._say(line)
        else:  # only process 0 has a terminal, and this one knows the cause
            print(line, file=sys.stderr, flush=True)

    def _count(self) -> None:
        """One more has failed: ends the run when too many did one after the other, on all processes alike."""
        self._failures += 1
        if self._failures >= _FAILURES_IN_A_ROW:
            raise HaltedError(
                f"{self._failures} saves in a row failed; {self._older()}: see to the storage, and run the same "
                "command to go on from there"
            )

    def _leave_out(self, step: int) -> None:
        writing = self._newest
        seconds = self._clock() - self._began
        self._events.write("save_skipped", step=step, writing=writing, seconds=seconds)
        why = "storage is slower than checkpoint.every asks for"
        if self._failed_on:  # the others wait for it in Orbax, five minutes at most
            why = f"process {self._failed_on[0]} could not write its part, and says why"
        self._say(f"step {step}: not saved: that of step {writing} has been in the writing for {seconds:.0f} s: {why}")

    def _too_slow(self) -> HaltedError:
        self._given_up = True
        return HaltedError(
            f"the save of step {self._newest} was not written within {self._write_limit} (checkpoint.write_limit); "
            f"{self._older()}: see to the storage, or raise the limit, and run the same command to go on from there"
        )

    def _older(self) -> str:
        try:
            steps = self._checkpointer.steps()
        except OSError as error:
            return f"no checkpoint can be read: {error.strerror or error}"
        if not self._checkpointer.in_a_run:
            return "the run's directory is gone, and what it held"
        return f"the newest checkpoint is that of step {steps[-1]}" if steps else "there is no checkpoint"
