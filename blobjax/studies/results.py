"""What came of the cells of a study."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blobjax.runs import outcome
from blobjax.runs.directory import RunDirectory, write_atomically
from blobjax.runs.outcome import DONE, Outcome
from blobjax.studies.study import Cell


@dataclass(frozen=True)
class Result(Outcome):
    """A run, and the cell it is.

    Attributes:
      cell: where it stands in the grid.
    """

    cell: Cell

    def label(self, axis: str) -> str:
        """The label of this cell's value on an axis."""
        return self.cell.labels[axis]

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
            "cpu_threads": self.cell.config.compute.cpu_threads,
            "wall_seconds": round(self.wall_seconds, 2),
            "run_dir": f"cells/{self.cell.name}",
        }


def grouped(results: list[Result], axis: str) -> dict[str, list[Result]]:
    """The results of each label of an axis, both in the order of the grid."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.label(axis), []).append(result)
    return groups


def read(cell: Cell) -> Result:
    """A cell's result so far."""
    found = outcome.read(RunDirectory(cell.config.logging.run_dir))
    return Result(found.status, found.reason, found.metrics, found.events, cell)


def write_cells(path: Path, results: list[Result]) -> None:
    """cells.jsonl: a line for each cell that has come to an end, in the order of the grid."""
    ended = [result for result in results if result.status in (*DONE, "failed")]
    write_atomically(path, "".join(json.dumps(jsonable(result.record())) + "\n" for result in ended))


def jsonable(value: Any) -> Any:
    """The same with numbers that JSON cannot hold (NaN, infinity) as text, as in metrics.jsonl.

    What has a `record`, such as a mean over seeds, is that.
    """
    if hasattr(value, "record"):
        return jsonable(value.record())
    if isinstance(value, dict):
        return {key: jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
