"""What a run's time went to, over all its attempts, read from events.jsonl.

Each attempt keeps account of its main thread (`clock.py`) and writes it down every few seconds; here attempts are put
together. Every second from the first start to the last sign of life is in exactly one category, so that they add up to
the wall time:

  train        steps that the run's state still rests on: what is left when the lost ones are taken away
  lost         steps that were computed and undone, by a death after the newest checkpoint or by a rollback, together
               with their waits for data. They are computed again, and count as `train` then.
  unaccounted  from an attempt's last entry to its last sign of life: it was killed, or it runs and will tell
  down         from there to the start of the next attempt
  …            init, restore, compile, data_wait, evaluate, save, rollback, sample, other: as the accounts of `clock.py`
"""

import signal
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# The accounts, in the order they come. What is no hook, no wait and no start is `train`: steps on the devices.
ACCOUNTS = ("init", "restore", "compile", "train", "data_wait", "evaluate", "save", "rollback", "sample", "other")
CATEGORIES = (*ACCOUNTS, "lost", "unaccounted", "down")
_LARGEST = 1e18
# What is gone with a step that is undone.
_OF_STEPS = ("train", "data_wait")


@dataclass
class Attempt:
    """One process's life with the run (process 0's, where there are several).

    Attributes:
      began, ended: seconds since 1970; ended is the last sign of life.
      first_step: the step it began after.
      last_step: the last it is known to have done.
      stop: its last event if that is a stop, else empty: it died.
      start: its first event.
    """

    began: float
    ended: float
    start: dict[str, Any]
    first_step: int = 0
    last_step: int = 0
    stop: dict[str, Any] = field(default_factory=dict)


@dataclass
class Ledger:
    """Where the time went.

    Attributes:
      seconds: by category; only those that something went into.
      attempts: in their order.
      notes: what a reader must know of the numbers, a line each.
    """

    seconds: dict[str, float]
    attempts: list[Attempt]
    notes: list[str]

    @property
    def wall_seconds(self) -> float:
        """From the first start to the last sign of life: the sum of all categories."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of the wall time that went into steps that count (Kumar et al., "ML productivity goodput")."""
        return self.seconds.get("train", 0.0) / self.wall_seconds if self.wall_seconds else 0.0


@dataclass
class _Stretch:
    """Steps that were done one after the other, and the seconds they took by account."""

    first: int
    last: int
    seconds: dict[str, float]


def number(value: Any, otherwise: float = 0.0) -> float:
    """A number as it should stand in an event, or `otherwise` where something else does."""
    usual = isinstance(value, int | float) and not isinstance(value, bool)
    # No step, second or count of tokens comes near it.
    return value if usual and -_LARGEST < value < _LARGEST else otherwise


def as_float(value: Any) -> float:
    """A number in a run's files, where those that JSON does not know are text; NaN for what is no number."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def read_ledger(events: Iterable[dict[str, Any]]) -> Ledger:
    """The ledger of a run.

    Args:
      events: of its events.jsonl, in their order; what is not understood is passed over.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    attempts: list[Attempt] = []
    stretches: list[_Stretch] = []
    notes: list[str] = []
    accounted = 0.0

    def go_back(step: int) -> None:
        """Steps after this one are undone. What stands ascends, so they are at the end."""
        while stretches and stretches[-1].last > step:
            stretch = stretches[-1]
            many = stretch.last - stretch.first + 1
            share = (stretch.last - max(step, stretch.first - 1)) / many
            for account in _OF_STEPS:
                lost = stretch.seconds.get(account, 0.0) * share
                seconds[account] -= lost
                seconds["lost"] += lost
                stretch.seconds[account] = stretch.seconds.get(account, 0.0) - lost
            stretch.last = step
            if stretch.last < stretch.first:
                stretches.pop()

    def close(attempt: Attempt, last_alive: float, before: float) -> None:
        """Ends an attempt of which nothing more is known."""
        if not attempt.stop:
            attempt.ended = max(attempt.ended, min(last_alive, before))
        seconds["unaccounted"] += max(attempt.ended - attempt.began - accounted, 0.0)

    def note(line: str) -> None:
        if line not in notes:
            notes.append(line)

    for event in events:
        name, time = event.get("event"), number(event.get("time"), -1.0)
        if not isinstance(name, str) or time < 0:
            continue
        if name == "start":
            began = number(event.get("began"), time)
            if "began" not in event:
                note("an attempt by an earlier version kept no account of its time: it is unaccounted")
            if attempts:
                close(attempts[-1], number(event.get("last_alive")), began)
                if began < attempts[-1].ended:
                    note(
                        f"attempt {len(attempts) + 1} began before the last sign of life of the one before it by the "
                        "clock of its host: clocks differ, and the time in between is taken as 0"
                    )
                seconds["down"] += max(began - attempts[-1].ended, 0.0)
            attempts.append(Attempt(began, max(time, began), event))
            accounted = 0.0
            continue
        if not attempts:
            continue
        attempt = attempts[-1]
        attempt.ended = max(attempt.ended, time)
        # What is spent after it, on a sampled passage, takes nothing back.
        if name != "spent":
            attempt.stop = event if name == "stop" else {}
        if name in ("resume", "branch"):
            attempt.first_step = attempt.last_step = int(number(event.get("step"), attempt.last_step))
            go_back(attempt.first_step)
        elif name == "rollback":
            attempt.last_step = int(number(event.get("to_step"), attempt.last_step))
            go_back(attempt.last_step)
        elif name == "save":
            attempt.last_step = max(attempt.last_step, int(number(event.get("step"))))
        elif name == "spent":
            spent = _seconds(event.get("seconds"))
            for account, value in spent.items():
                seconds[account] += value
            accounted += sum(spent.values())
            first, last = int(number(event.get("first_step"))), int(number(event.get("last_step")))
            if 0 < first <= last:
                # Whatever the reason why they come again: without a checkpoint, there is no `resume`.
                go_back(first - 1)
                stretches.append(_Stretch(first, last, spent))
                attempt.last_step = last
    if attempts:
        close(attempts[-1], 0.0, 0.0)
    kept = {name: seconds[name] for name in CATEGORIES if abs(seconds[name]) > 1e-9}
    return Ledger(kept, attempts, notes)


def _seconds(spent: Any) -> dict[str, float]:
    """What a `spent` event says went into each account; one that is not known here is `other`."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for account, value in spent.items() if isinstance(spent, dict) else ():
        seconds[account if account in ACCOUNTS else "other"] += max(number(value), 0.0)
    return seconds


def exit_in_words(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    known = {each.value: each.name for each in signal.Signals}
    return f"killed by {known.get(-code, f'signal {-code}')}"  # most of the real-time signals have no name
