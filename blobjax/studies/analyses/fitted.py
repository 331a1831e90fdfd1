"""Laws fitted to what came of cells, as the content of a fit file; or why they could not be."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from blobjax.config import BadInputError
from blobjax.scaling import fit_file, runs
from blobjax.scaling.laws import LAWS, Settings
from blobjax.scaling.multiplier import Worth, worth
from blobjax.scaling.points import Row, Table, choose
from blobjax.studies.results import Result

# Held-out text is the same for all runs; the last batches of a training run are not.
HELD_OUT = "held_out_loss"
# How laws of studies are fitted, but for each law's own delta.
SETTINGS = Settings()


@dataclass(frozen=True)
class Point:
    """A finished cell.

    Attributes:
      result: what came of it.
      row: its columns, as `blobjax laws fit` has them.
    """

    result: Result
    row: dict[str, Any]

    @property
    def loss(self) -> float:
        """Held-out, nats per token."""
        return float(self.row[HELD_OUT])

    @property
    def tokens(self) -> float:
        """Trained on, repetitions counted."""
        return float(self.row["tokens"])

    @property
    def flops(self) -> float:
        """Of a run of that many tokens from its start."""
        return float(self.row["flops"])


def points(results: Iterable[Result]) -> list[Point]:
    """The finished cells; others have no end to be compared."""
    return [Point(result, runs.end(result.cell.config, result)) for result in results if result.status == "finished"]


def fit(law: str, given: Iterable[Point], **columns: str) -> tuple[dict[str, Any] | None, str]:
    """A fit file's content, and why there is none.

    Args:
      columns: column of the law to what it is called in the points' rows; the loss is the held-out one by default.
    """
    chosen = LAWS[law]
    named = ({chosen.target: HELD_OUT} if chosen.target == "loss" else {}) | columns
    table = Table([Row(f"cells/{each.result.cell.name}", each.row) for each in given], [], dict(runs.MEANINGS))
    return fit_table(law, table, named)


def fit_table(law: str, table: Table, named: dict[str, str]) -> tuple[dict[str, Any] | None, str]:
    """As `fit`, for rows that are no cells."""
    chosen = LAWS[law]
    try:
        return fit_file.make(chosen, choose(chosen, table, named), replace(SETTINGS, delta=chosen.delta)), ""
    except BadInputError as error:
        return None, error.problems[0].removeprefix(f"--law {law}: ")


def held_against(baseline: dict[str, Any] | None, flops: float, loss: float) -> Worth:
    """What a run was worth in the compute of a baseline that may not have been fitted."""
    return worth(baseline, flops, loss) if baseline else Worth(flops, loss, refused="the baseline's law was not fitted")


def value(entry: dict[str, Any], form: str = ".3g") -> str:
    """`0.35 (0.30 to 0.41)`."""
    span = "" if entry["low"] is None else f" ({entry['low']:{form}} to {entry['high']:{form}})"
    return f"{entry['value']:{form}}{span}"
