"""Finished cells as points, laws fitted to them or why not, and what a run was worth beside them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from blobjax.config import BadInputError
from blobjax.laws import fit_file, runs
from blobjax.laws.formulas import LAWS, Settings
from blobjax.laws.multiplier import Worth, worth
from blobjax.laws.points import Row, Table, choose
from blobjax.runs.mixture import held_out_loss, shares
from blobjax.studies.results import Result

LOSS = "held_out_loss"
"""The column that is fitted."""

RESAMPLES = Settings.bootstrap
"""For the intervals."""

Ends = list[tuple[Result, dict[str, Any]]]
"""Finished cells, each with what it came to and cost: the columns of `blobjax laws fit`."""

Fit = tuple[dict[str, Any] | None, str]
"""The content of a fit file, or why there is none."""


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
        return float(self.row[LOSS])

    @property
    def tokens(self) -> float:
        """Trained on, repetitions counted."""
        return float(self.row["tokens"])

    @property
    def flops(self) -> float:
        """Of a run of that many tokens from its start."""
        return float(self.row["flops"])


def ends(results: list[Result]) -> Ends:
    """Of the cells that finished; others have no end to be compared."""
    return [(result, runs.end(result.cell.config, result)) for result in results if result.status == "finished"]


def points(results: list[Result]) -> list[Point]:
    """The same as points."""
    return [Point(result, row) for result, row in ends(results)]


def fit(name: str, rows: Ends, loss: str = LOSS) -> dict[str, Any]:
    """A law fitted to cells; the content of its fit file.

    Raises:
      BadInputError: they do not allow it.
    """
    table = Table([Row(f"cells/{result.cell.name}", row) for result, row in rows], [], dict(runs.MEANINGS))
    return _fitted(name, table, {"loss": loss})


def fit_points(name: str, given: Iterable[Point], loss: str = LOSS) -> Fit:
    """A law fitted to cells, or why it cannot be.

    Args:
      loss: the column that is the loss.
    """
    try:
        return fit(name, [(point.result, point.row) for point in given], loss), ""
    except BadInputError as error:
        return None, _reason(name, error)


def fit_rows(name: str, rows: Sequence[dict[str, float]]) -> Fit:
    """A law of what was made of several cells each, with the law's own columns; or why it cannot be fitted."""
    try:
        return _fitted(name, Table([Row(f"row {n}", row) for n, row in enumerate(rows, 1)], []), {}), ""
    except BadInputError as error:
        return None, _reason(name, error)


def _fitted(name: str, table: Table, named: dict[str, str]) -> dict[str, Any]:
    law = LAWS[name]
    return fit_file.make(law, choose(law, table, named), Settings(delta=law.delta, bootstrap=RESAMPLES))


def _reason(name: str, error: BadInputError) -> str:
    return error.problems[0].removeprefix(f"--law {name}: ")


def held_against(baseline: dict[str, Any] | None, flops: float, loss: float) -> Worth:
    """What a run was worth in the compute of a baseline that may not have been fitted."""
    return worth(baseline, flops, loss) if baseline else Worth(flops, loss, refused="the baseline's law was not fitted")


def evaluations(result: Result) -> tuple[list[int], list[float]]:
    """Steps, and the held-out loss at each: the mean over the domains by their weights in the mixture."""
    config = result.cell.config
    names = {f"eval/{name}/cross_entropy" for name in shares(config)}
    lines = [line for line in result.metrics if names <= line.keys()]
    return [line["step"] for line in lines], [held_out_loss(config, line) for line in lines]


def inside(entry: dict[str, Any], low: float, high: float) -> bool | None:
    """Whether a fitted value lies between two; None where its interval has an end beyond one, or there is none."""
    ends = entry["low"], entry["high"]
    if None in ends:
        return None
    return True if low <= ends[0] and ends[1] <= high else False if ends[1] < low or high < ends[0] else None


def doubt(entry: dict[str, Any]) -> str:
    """Why a claim about a fitted value cannot be told."""
    if None in (entry["low"], entry["high"]):
        return "the fit leaves it without an interval"
    return f"its interval, {entry['low']:.3g} to {entry['high']:.3g}, allows both"


def with_interval(entry: dict[str, Any], form: str = ".2f") -> str:
    """`0.50 (0.45 to 0.54)`, of a parameter of a fit."""
    span = f" ({entry['low']:{form}} to {entry['high']:{form}})" if entry["low"] is not None else ""
    return f"{entry['value']:{form}}{span}"


def value(entry: dict[str, Any]) -> str:
    """The same to three digits: `0.35 (0.302 to 0.41)`."""
    return with_interval(entry, ".3g")
