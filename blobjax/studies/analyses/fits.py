"""Laws fitted to the cells of a study."""

from typing import Any

from blobjax.scaling import fit_file, runs
from blobjax.scaling.laws import LAWS, Settings
from blobjax.scaling.points import Row, Table, choose
from blobjax.studies.results import Result

LOSS = "held_out_loss"
"""The column that is fitted."""

RESAMPLES = Settings.bootstrap
"""For the intervals."""

Ends = list[tuple[Result, dict[str, Any]]]
"""Finished cells, each with what it came to and cost: the columns of `blobjax laws fit`."""


def ends(results: list[Result]) -> Ends:
    """Of the cells that finished."""
    return [(result, runs.end(result.cell.config, result)) for result in results if result.status == "finished"]


def fit(name: str, rows: Ends, loss: str = LOSS) -> dict[str, Any]:
    """A law fitted to them; the content of its fit file.

    Raises:
      BadInputError: they do not allow it.
    """
    law = LAWS[name]
    table = Table([Row(f"cells/{result.cell.name}", row) for result, row in rows], [], dict(runs.MEANINGS))
    return fit_file.make(law, choose(law, table, {"loss": loss}), Settings(delta=law.delta, bootstrap=RESAMPLES))


def with_interval(entry: dict[str, Any], form: str = ".2f") -> str:
    """`0.50 (0.45 to 0.54)`, of a parameter of a fit."""
    span = f" ({entry['low']:{form}} to {entry['high']:{form}})" if entry["low"] is not None else ""
    return f"{entry['value']:{form}}{span}"
