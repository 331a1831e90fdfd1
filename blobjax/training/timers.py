"""When something is due: every so many steps, or every so much time, the same answer on every process."""

import time
from collections.abc import Callable

import jax
import numpy as np

from blobjax.config import Clockwork, Duration

# Processes ask process 0 for the time only this often: a broadcast waits for the device.
_AGREE_EVERY = 10


def process_zero_says(flag: bool) -> bool:
    """Process 0's answer on every process; a collective when there are several."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))


def wait_for_all(name: str) -> None:
    """Returns once every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


class Every:
    """Due at multiples of a number of steps, or when a time has passed since it was last due.

    Args:
      duration: steps, tokens, … or wall-clock time.
      clockwork: turns the former into steps.
      clock: seconds; injectable for tests.
    """

    def __init__(self, duration: Duration, clockwork: Clockwork, clock: Callable[[], float] = time.monotonic):
        self._seconds = duration.seconds
        self._steps = 0 if self._seconds is not None else max(duration.steps(clockwork), 1)
        self._clock = clock
        self._last = clock()

    def due(self, step: int) -> bool:
        """Whether it is due after this step; every process must ask at every step."""
        if self._seconds is None:
            return step % self._steps == 0
        if jax.process_count() > 1 and step % _AGREE_EVERY:
            return False
        now = self._clock()
        if process_zero_says(now - self._last >= self._seconds):
            self._last = now
            return True
        return False
