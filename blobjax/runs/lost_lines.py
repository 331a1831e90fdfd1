"""What a run wrote down and its files no longer have: they were deleted or cut between attempts, or a disk was full.

Training needs none of it, but whoever reads a curve, a goodput or a price should know that a part is missing.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from blobjax.runs.energy import account_lost
from blobjax.runs.ledger import Attempt, number, read_ledger
from blobjax.runs.directory import RunDirectory, read_jsonl


def _stretches(attempts: list[Attempt], base: int) -> Iterator[tuple[int, int, Attempt]]:
    """The steps that the run's state rests on, from the last attempt's back to its beginning: after, up to, by whom."""
    last = attempts[-1]
    # The entry of a step is written just before its line of metrics, so a process may have died in between.
    up_to = last.last_step if "step" in last.stop or last.last_step == last.first_step else last.last_step - 1
    for attempt in reversed(attempts):
        if attempt is not last and attempt.last_step == 0:
            continue  # it died before it had a state
        if attempt.first_step < up_to:
            yield attempt.first_step, up_to, attempt
        up_to = min(up_to, attempt.first_step)
    # By attempts whose events are lost.
    if base < up_to:
        yield base, up_to, attempts[0]


def expected_steps(events: Iterable[dict[str, Any]]) -> list[int]:
    """Steps that should have a line with a loss in metrics.jsonl, ascending.

    Nothing is expected of attempts that log by time, and of those of earlier versions, which do not say how often.
    """
    events = list(events)
    attempts = read_ledger(events).attempts
    if not attempts:
        return []
    base = next((int(number(event.get("step"))) for event in events if event.get("event") == "branch"), 0)
    steps: set[int] = set()
    for after, up_to, attempt in _stretches(attempts, base):
        every, length = int(number(attempt.start.get("logged_every"))), int(number(attempt.start.get("length")))
        if every > 0:
            steps |= set(range((after // every + 1) * every, up_to + 1, every))
            steps |= {length} if after < length <= up_to else set()
    return sorted(steps)


def missing_steps(events: Iterable[dict[str, Any]], metrics: Iterable[dict[str, Any]]) -> tuple[list[int], int]:
    """Steps that should have a line in metrics.jsonl and have none, ascending; and how many should have one."""
    expected = expected_steps(events)
    there = {number(line.get("step"), -1) for line in metrics if "loss" in line} if expected else set()
    return [step for step in expected if step not in there], len(expected)


def notes(directory: RunDirectory, events: list[dict[str, Any]], cut: int = 0) -> list[str]:
    """What is lost of a run's files, a line each.

    Args:
      events: the lines of its events.jsonl.
      cut: bytes that events.jsonl had more when the newest checkpoint was saved, where that is known.
    """
    metrics = list(read_jsonl(directory.metrics))
    found = []
    missing, expected = missing_steps(events, metrics)
    if missing:
        where = f"step {missing[0]:,}" if len(missing) == 1 else f"between step {missing[0]:,} and step {missing[-1]:,}"
        found.append(
            f"metrics.jsonl lacks {len(missing):,} of the {expected:,} lines that were logged, {where}: they were "
            "deleted or could not be written"
        )
    attempts = read_ledger(events).attempts
    begun = attempts or metrics or any(directory.checkpoints.glob("[0-9]*"))
    if begun and not attempts:
        found.append("events.jsonl has no start of this run: it was deleted or cut, and no account of time is left")
    elif attempts and attempts[0].first_step and not any(event.get("event") == "branch" for event in events):
        found.append(
            f"events.jsonl begins with an attempt that resumed at step {attempts[0].first_step:,}: what came before "
            "was deleted, and is in no account of time"
        )
    elif cut > 0:
        found.append(f"events.jsonl has lost {cut:,} bytes since the newest checkpoint was saved")
    if any("energy_joules" in line for line in metrics) and account_lost(directory.energy):
        found.append("energy/0.json is gone or damaged: what was drawn so far is in no account of energy")
    return found
