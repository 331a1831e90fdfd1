"""When something is due: every so many steps, or every so much time, the same answer on every process."""

import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from blobjax.config import BadInputError, Clockwork, Duration, Durations

# Processes ask process 0 for the time only this often: a broadcast waits for the device.
_AGREE_EVERY = 10


def process_zero_says(flag: bool) -> bool:
    """Process 0's answer on every process; a collective when there are several."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))


def everyone(values: Sequence[int]) -> np.ndarray:
    """These numbers of each process, int32 [processes, numbers]; a collective when there are several."""
    mine = np.asarray(values, np.int32)
    if jax.process_count() == 1:
        return mine[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(mine))


def refuse_together(problem: str) -> None:
    """Returns if no process has a problem; a collective.

    Args:
      problem: this process's, in one line; empty if it has none.

    Raises:
      BadInputError: on every process; those without a problem name the first that has one.
    """
    found = everyone([bool(problem)])[:, 0]
    if found.any():
        elsewhere = f"process {int(np.argmax(found))} cannot go on; its own line says why"
        raise BadInputError(problem or elsewhere)


class Every:
    """Due at multiples of a number of steps, or when a time has passed since it was last due or begun anew.

    Args:
      duration: steps, tokens, … or wall-clock time.
      clockwork: turns the former into steps.
      clock: seconds; injectable for tests.

    Attributes:
      steps: at whose multiples it is due; 0 where it is due by time.
    """

    def __init__(self, duration: Duration, clockwork: Clockwork, clock: Callable[[], float] = time.monotonic):
        self._seconds = duration.seconds
        self.steps = 0 if self._seconds is not None else max(duration.steps(clockwork), 1)
        self._clock = clock
        self._last = clock()

    def due(self, step: int) -> bool:
        """Whether it is due after this step; every process must ask at every step."""
        if self._seconds is None:
            return step % self.steps == 0
        if jax.process_count() > 1 and step % _AGREE_EVERY:
            return False
        now = self._clock()
        if process_zero_says(now - self._last >= self._seconds):
            self._last = now
            return True
        return False

    def begin_anew(self) -> None:
        """Lets a time count from now."""
        self._last = self._clock()


class Earliest:
    """Due whenever any of several durations is; a time then counts from there.

    Args:
      durations: see `Every`.
    """

    def __init__(self, durations: Durations, clockwork: Clockwork, clock: Callable[[], float] = time.monotonic):
        self._all = [Every(each, clockwork, clock) for each in durations.parts]

    def due(self, step: int) -> bool:
        """Whether any is due after this step; every process must ask at every step."""
        # Each is asked, whatever the others say: asking may be a collective.
        due = any([each.due(step) for each in self._all])
        if due:
            for each in self._all:
                each.begin_anew()
        return due
