"""What came of a cell, read from what its run wrote: status, losses, held-out results, probes, time."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blobjax.reliability.run_directory import RunDirectory, read_jsonl, write_atomically
from blobjax.studies.study import Cell

Status = Literal["finished", "diverged", "halted", "failed", "stopped", "waiting"]
"""finished: to its length, with a finite loss · diverged: to its length, without · halted: the run ended itself ·
failed: an error or a killed process, tried again next time · stopped: can be resumed · waiting: not begun."""

DONE = ("finished", "diverged", "halted")
"""A cell of these is never run again."""

# Of the training steps, whose mean cross-entropy is the final loss: a single batch is noisy.
_LAST = 0.05
_AT_LEAST = 5


@dataclass(frozen=True)
class Result:
    """A cell and its run.

    Attributes:
      cell: the run.
      status: how it stands.
      reason: of a run that did not finish, in a line.
      metrics: the lines of its metrics.jsonl.
      events: the lines of its events.jsonl.
    """

    cell: Cell
    status: Status
    reason: str
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]

    def label(self, axis: str) -> str:
        """The label of this cell's value on an axis."""
        return self.cell.labels[axis]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric."""
        lines = [line for line in self.metrics if line.get(name) is not None]
        return [line["step"] for line in lines], [float(line[name]) for line in lines]

    @property
    def final_loss(self) -> float:
        """Mean cross-entropy of the last 5% of the training steps, at least 5; nats. NaN where there is none."""
        _, losses = self.series("cross_entropy")
        last = losses[-max(_AT_LEAST, math.ceil(_LAST * len(losses))) :]
        return sum(last) / len(last) if last else math.nan

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
        return {name: float(v) for line in self.metrics for name, v in line.items() if name.startswith("eval/")}

    @property
    def flow(self) -> dict[str, dict[str, float]]:
        """Of each probe `flow/…` the largest and the newest value; a NaN is larger than anything."""
        values: dict[str, list[float]] = {}
        for line in self.metrics:
            for name in line:
                if name.startswith("flow/"):
                    values.setdefault(name, []).append(float(line[name]))
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
        """Compiling and training, over all attempts."""
        seconds, began = 0.0, None
        for event in self.events:
            match event["event"]:
                case "start":
                    began = event["time"]
                case "compile":
                    seconds += event["seconds"]
                case "stop" if began is not None:
                    seconds, began = seconds + event["time"] - began, None
        return seconds

    def record(self) -> dict[str, Any]:
        """The cell's line of cells.jsonl."""
        return {
            "cell": self.cell.name,
            "labels": self.cell.labels,
            "overrides": self.cell.overrides,
            "status": self.status,
            "reason": self.reason,
            "steps": max((line["step"] for line in self.metrics), default=0),
            "initial_loss": self.initial_loss,
            "final_loss": self.final_loss,
            "held_out": self.held_out,
            "flow": self.flow,
            "wall_seconds": round(self.wall_seconds, 2),
            "run_dir": f"cells/{self.cell.name}",
        }


def grouped(results: list[Result], axis: str) -> dict[str, list[Result]]:
    """The results of each label of an axis, both in the order of the grid."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.label(axis), []).append(result)
    return groups


def _largest(values: list[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def read(cell: Cell) -> Result:
    """A cell's result so far."""
    directory = RunDirectory(cell.config.logging.run_dir)
    metrics = [line for line in read_jsonl(directory.metrics) if isinstance(line.get("step"), int)]
    events = [line for line in read_jsonl(directory.events) if "event" in line and "time" in line]
    status, reason = _status(events)
    result = Result(cell, status, reason, metrics, events)
    if status == "finished" and not math.isfinite(result.final_loss):
        return Result(cell, "diverged", "the loss is not finite", metrics, events)
    return result


def _status(events: list[dict[str, Any]]) -> tuple[Status, str]:
    if not events:
        return "waiting", ""
    last = events[-1]
    if last["event"] != "stop":
        return "stopped", "the process ended without a word"
    reason = str(last.get("reason", ""))
    if reason == "finished":
        return "finished", ""
    if "step" in last:
        return "stopped", reason
    kind, _, rest = reason.partition(": ")
    return ("halted", rest) if kind == "HaltedError" else ("failed", reason)


def write_cells(path: Path, results: list[Result]) -> None:
    """cells.jsonl: a line for each cell that has come to an end, in the order of the grid."""
    ended = [result for result in results if result.status in (*DONE, "failed")]
    write_atomically(path, "".join(json.dumps(jsonable(result.record())) + "\n" for result in ended))


def jsonable(value: Any) -> Any:
    """The same with numbers that JSON cannot hold (NaN, infinity) as text, as in metrics.jsonl."""
    if isinstance(value, dict):
        return {key: jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
