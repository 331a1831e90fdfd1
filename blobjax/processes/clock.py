"""Where the time of a process goes: at every moment into exactly one account, so that they add up to the clock."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from blobjax.runs.directory import EventLog
from blobjax.runs.ledger import ACCOUNTS

# Between entries of the log. What a killed process had not written down is not known: at most a hundredth of its life,
# within these bounds. A month leaves some 40,000 lines, which `blobjax status` reads in half a second.
_EVERY_SECONDS = (10.0, 60.0)


class Clock:
    """The main thread's time, and the `spent` events that tell of it.

    Args:
      began: when this process began, by `clock`; None: now.
      clock: seconds; injectable for tests.
    """

    def __init__(self, began: float | None = None, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._mark = clock() if began is None else began
        # When this process began, in seconds since 1970: the difference to the events' own clock is taken once.
        self.began = time.time() - (clock() - self._mark)
        self._account = "init"
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._steps: tuple[int, int] | None = None
        self._born = self._written = self._mark

    def switch(self, account: str) -> None:
        """From now on time goes into this account."""
        now = self._clock()
        self._spent[self._account] += now - self._mark
        self._mark, self._account = now, account

    @contextlib.contextmanager
    def on(self, account: str) -> Iterator[None]:
        """Time within goes into this account, and then again where it went before."""
        before = self._account
        self.switch(account)
        try:
            yield
        finally:
            self.switch(before)

    def step(self, step: int, events: EventLog) -> None:
        """A step is done; now and then its time and that of those before it is written down."""
        first = self._steps[0] if self._steps and step > self._steps[1] else step
        self._steps = (first, step)
        now = self._clock()
        shortest, longest = _EVERY_SECONDS
        if now - self._written >= min(max((now - self._born) / 100, shortest), longest):
            self.write(events)

    def write(self, events: EventLog) -> None:
        """Writes down what was spent since the last time: seconds by account, and the steps done with it."""
        self.switch(self._account)
        spent = {name: round(self._spent[name], 6) for name in ACCOUNTS if self._spent[name]}
        facts: dict[str, Any] = {"seconds": spent}
        if self._steps is not None:
            facts["first_step"], facts["last_step"] = self._steps
        events.write("spent", **facts)
        self._spent.clear()
        self._steps, self._written = None, self._clock()
