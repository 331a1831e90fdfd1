"""What a run's time went to, over all its attempts, read from events.jsonl.

Each attempt keeps account of its main thread (`clock.py`) and writes it down every few seconds; here attempts are put
together. Every second from the first start to the last sign of life is in exactly one category, so that they add up to
the wall time:

  train        steps that the run's state still rests on: what is left when the lost ones are taken away
  lost         steps that were computed and undone, by a death after the newest checkpoint or by a rollback, together
               with their waits for data. They are computed again, and count as `train` then.
  unaccounted  from a killed attempt's last entry to its last sign of life
  down         from there to the start of the next attempt
  …            init, restore, compile, data_wait, evaluate, save, rollback, other: as the accounts of `clock.py`
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from blobjax.reliability.clock import ACCOUNTS

CATEGORIES = (*ACCOUNTS, "lost", "unaccounted", "down")
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
        """Steps after this one are undone."""
        for stretch in stretches:
            if stretch.last > step:
                many = stretch.last - stretch.first + 1
                share = (stretch.last - max(step, stretch.first - 1)) / many
                for account in _OF_STEPS:
                    lost = stretch.seconds.get(account, 0.0) * share
                    seconds[account] -= lost
                    seconds["lost"] += lost
                    stretch.seconds[account] = stretch.seconds.get(account, 0.0) - lost
                stretch.last = min(stretch.last, step)
        stretches[:] = [stretch for stretch in stretches if stretch.last >= stretch.first]

    def close(attempt: Attempt, last_alive: float | None, before: float) -> None:
        """Ends an attempt of which nothing more is known."""
        if last_alive is not None and not attempt.stop:
            attempt.ended = max(attempt.ended, min(last_alive, before))
        seconds["unaccounted"] += max(attempt.ended - attempt.began - accounted, 0.0)

    for event in events:
        name, time = event.get("event"), event.get("time")
        if not isinstance(name, str) or not isinstance(time, int | float):
            continue
        if name == "start":
            began = float(event.get("began", time))
            if "began" not in event:
                notes.append("an attempt by an earlier version kept no account of its time: it is unaccounted")
            if attempts:
                close(attempts[-1], event.get("last_alive"), began)
                if began < attempts[-1].ended:
                    notes.append(
                        f"attempt {len(attempts) + 1} began before the last sign of life of the one before it by the "
                        "clock of its host: clocks differ, and the time in between is taken as 0"
                    )
                seconds["down"] += max(began - attempts[-1].ended, 0.0)
            attempts.append(Attempt(began, max(float(time), began), event))
            accounted = 0.0
            # Known better once a checkpoint was restored, if one is.
            resumed_at = 0
            go_back_due = True
            continue
        if not attempts:
            continue
        attempt = attempts[-1]
        attempt.ended = max(attempt.ended, float(time))
        if name == "resume":
            resumed_at = attempt.first_step = attempt.last_step = int(event.get("step", 0))
        elif name == "spent":
            if go_back_due and "first_step" in event:
                go_back(resumed_at)
                go_back_due = False
            spent = {account: float(value) for account, value in event.get("seconds", {}).items()}
            for account, value in spent.items():
                seconds[account if account in ACCOUNTS else "other"] += value
            accounted += sum(spent.values())
            if "first_step" in event:
                first, last = int(event["first_step"]), int(event["last_step"])
                stretches.append(_Stretch(first, last, spent))
                attempt.last_step = last
        elif name == "rollback":
            go_back(int(event.get("to_step", 0)))
            attempt.last_step = int(event.get("to_step", 0))
        attempt.stop = event if name == "stop" else {}
    if attempts:
        close(attempts[-1], None, 0.0)
    kept = {name: seconds[name] for name in CATEGORIES if abs(seconds[name]) > 1e-9}
    return Ledger(kept, attempts, notes)
