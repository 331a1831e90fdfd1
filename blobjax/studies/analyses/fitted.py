"""Finished cells as points, laws fitted to them or why not, and what a run was worth beside them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from blobjax.config import BadInputError
from blobjax.scaling import fit_file
from blobjax.scaling.laws import LAWS, Settings
from blobjax.scaling.multiplier import Worth, worth
from blobjax.scaling.points import Row, Table, choose
from blobjax.studies.analyses import fits
from blobjax.studies.results import Result

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
        return float(self.row[fits.LOSS])

    @property
    def tokens(self) -> float:
        """Trained on, repetitions counted."""
        return float(self.row["tokens"])

    @property
    def flops(self) -> float:
        """Of a run of that many tokens from its start."""
        return float(self.row["flops"])


def points(results: list[Result]) -> list[Point]:
    """The finished cells; others have no end to be compared."""
    return [Point(result, row) for result, row in fits.ends(results)]


def fit(law: str, given: Iterable[Point], loss: str = fits.LOSS) -> Fit:
    """A law of the cells' losses.

    Args:
      loss: the column that is the loss.
    """
    try:
        return fits.fit(law, [(point.result, point.row) for point in given], loss), ""
    except BadInputError as error:
        return None, _reason(law, error)


def fit_rows(law: str, rows: Sequence[dict[str, float]]) -> Fit:
    """A law of what was made of several cells each, with the law's own columns."""
    chosen = LAWS[law]
    try:
        table = Table([Row(f"row {n}", row) for n, row in enumerate(rows, 1)], [])
        return fit_file.make(chosen, choose(chosen, table, {}), Settings(delta=chosen.delta)), ""
    except BadInputError as error:
        return None, _reason(law, error)


def _reason(law: str, error: BadInputError) -> str:
    return error.problems[0].removeprefix(f"--law {law}: ")


def held_against(baseline: dict[str, Any] | None, flops: float, loss: float) -> Worth:
    """What a run was worth in the compute of a baseline that may not have been fitted."""
    return worth(baseline, flops, loss) if baseline else Worth(flops, loss, refused="the baseline's law was not fitted")


def value(entry: dict[str, Any]) -> str:
    """`0.35 (0.302 to 0.41)`, of a parameter of a fit."""
    return fits.with_interval(entry, ".3g")
