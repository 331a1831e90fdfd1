"""What came of a run, read from the files it wrote: status, losses, held-out results, probes, time."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from blobjax.runs.ledger import number, read_ledger
from blobjax.runs.lost_lines import missing_steps
from blobjax.runs.directory import RunDirectory, read_jsonl
from blobjax.runs.ledger import as_float, number, read_ledger

Status = Literal["finished", "diverged", "halted", "failed", "stopped", "waiting"]
"""finished: to its length, with a finite loss · diverged: its loss or its parameters stopped being finite · halted: the
run ended itself for another reason · failed: an error or a killed process · stopped: can be resumed · waiting: not
begun."""

DONE = ("finished", "diverged", "halted")
"""What a run does not come back from by running it again."""

# Of the training steps, whose mean cross-entropy is the final loss: a single batch is noisy.
_LAST = 0.05
_AT_LEAST = 5


@dataclass(frozen=True)
class Outcome:
    """A run as it stands.

    Attributes:
      status: finished or not.
      reason: of a run that did not finish, in a line.
      metrics: the lines of its metrics.jsonl.
      events: the lines of its events.jsonl.
    """

    status: Status
    reason: str
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric."""
        lines = [line for line in self.metrics if line.get(name) is not None]
        return [line["step"] for line in lines], [as_float(line[name]) for line in lines]

    @property
    def final_loss(self) -> float:
        """Mean cross-entropy of what was logged in the last 5% of the training steps, or in the last 5 of them if that
        is more; nats. NaN where there is none."""
        steps, losses = self.series("cross_entropy")
        if not steps:
            return math.nan
        before = steps[-1] - max(_AT_LEAST, math.ceil(_LAST * steps[-1]))
        last = [loss for step, loss in zip(steps, losses, strict=True) if step > before]
        return sum(last) / len(last)

    @property
    def initial_loss(self) -> float:
        """Cross-entropy of the first batch, before any update; nats."""
        _, losses = self.series("cross_entropy")
        return losses[0] if losses else math.nan

    @property
    def capped_loss(self) -> float:
        """The final loss, but no worse than the initial one; that also where it is not finite or the run broke off."""
        final = self.final_loss
        return (
            min(final, self.initial_loss) if self.status == "finished" and math.isfinite(final) else self.initial_loss
        )

    @property
    def held_out(self) -> dict[str, float]:
        """The newest of each `eval/…` metric."""
        return {name: as_float(v) for line in self.metrics for name, v in line.items() if name.startswith("eval/")}

    @property
    def flow(self) -> dict[str, dict[str, float]]:
        """Of each probe `flow/…` the largest and the newest value; a NaN is larger than anything."""
        values: dict[str, list[float]] = {}
        for line in self.metrics:
            for name in line:
                if name.startswith("flow/"):
                    values.setdefault(name, []).append(as_float(line[name]))
        return {name: {"max": _largest(those), "last": those[-1]} for name, those in values.items()}

    def by_block(self, probe: str) -> list[float]:
        """The newest value of a probe in each block, from the first."""
        named = {name: each["last"] for name, each in self.flow.items() if name.startswith("flow/block_")}
        return [named[name] for name in sorted(named) if name.endswith(f"/{probe}")]

    def flow_of(self, probe: str, which: Literal["max", "last"] = "max") -> float:
        """The largest over all blocks of a probe; NaN where it was not measured."""
        values = [each[which] for name, each in self.flow.items() if name.endswith(f"/{probe}")]
        return _largest(values) if values else math.nan

    @property
    def wall_seconds(self) -> float:
        """Of all attempts while they were up, from each one's start to its last sign of life.

        Starting and compiling are in it, and time between attempts is not.
        """
        return sum(attempt.ended - attempt.began for attempt in read_ledger(self.events).attempts)


def sequences_before(events: Iterable[dict[str, Any]]) -> int:
    """Sequences that another run had trained on where this one begins from it (`duration.start_from`); else 0.

    They are among the tokens of this run's metrics, and took none of its time and energy.
    """
    begun = [event.get("sequences") for event in events if event.get("event") == "branch"]
    return max(int(number(begun[-1])), 0) if begun else 0


def _largest(values: list[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def read(directory: RunDirectory) -> Outcome:
    """A run so far; of a directory that is not there, one that waits."""
    metrics = [line for line in read_jsonl(directory.metrics) if isinstance(line.get("step"), int)]
    events = [line for line in read_jsonl(directory.events) if "event" in line and "time" in line]
    status, reason = _status(events)
    outcome = Outcome(status, reason, metrics, events)
    if status == "finished" and (lost := _cut_short(metrics, events)):
        return Outcome("failed", f"{lost}; remove {directory.path} to do it again", metrics, events)
    if status == "finished" and not math.isfinite(outcome.final_loss):
        return Outcome("diverged", "the loss is not finite", metrics, events)
    return outcome


def _cut_short(metrics: list[dict[str, Any]], events: list[dict[str, Any]]) -> str:
    """What is wrong where the metrics of a finished run lack their end or their beginning."""
    end = next((event.get("step") for event in reversed(events) if event["event"] == "stop"), None)
    last = max((line["step"] for line in metrics), default=0)
    if isinstance(end, int) and last < end:
        return f"metrics.jsonl is damaged, it ends at step {last} of {end}"
    missing, _ = missing_steps(events, metrics)
    # Losses are counted from the first.
    first = min((line["step"] for line in metrics if "loss" in line), default=0)
    return f"metrics.jsonl is damaged, it begins at step {first}" if missing and missing[0] < first else ""


def _status(events: list[dict[str, Any]]) -> tuple[Status, str]:
    if not events:
        return "waiting", ""
    # A sampled passage is accounted for after the end.
    last = next((event for event in reversed(events) if event["event"] != "spent"), events[-1])
    if last["event"] != "stop":
        return "stopped", "the process ended without a word"
    reason = str(last.get("reason", ""))
    if reason == "finished":
        return "finished", ""
    if "step" in last or last.get("resumable") is True:
        return "stopped", reason
    kind, _, rest = reason.partition(": ")
    ended: dict[str, Status] = {"HaltedError": "halted", "DivergedError": "diverged"}
    return (ended[kind], rest) if kind in ended else ("failed", reason)
