"""The points a law is fitted to: chosen from tables, checked, each row with its place.

Whatever a row could do wrong silently is refused: a loss of zero or NaN, a row that stands twice, a column that is not
there. What is derived (`flops` as 6 × params × tokens) is said, as is what the columns count.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from blobjax.config import BadInputError
from blobjax.config.closest import suggest
from blobjax.laws.formulas.law import RANGE, Columns, Law
from blobjax.laws.tables import THOUSANDS, Row, Table, number

__all__ = ["Points", "Row", "Table", "choose"]

# How many lines of the same kind of trouble are told one by one.
_TOLD = 5
_NOT_RECORDED = "whether embeddings or attention are in it is not recorded (say so with --counted)"


@dataclass(frozen=True)
class Points:
    """Points fit for a law.

    Attributes:
      columns: the columns the law uses, float64, one value for each point.
      counted: column to what it is and counts.
      sources: as of the table.
      dropped: reason to how many rows were left out for it.
      notes: sentences about them.
      places: file and line, or run, of each point; empty where they are not known.
    """

    columns: dict[str, np.ndarray]
    counted: dict[str, str]
    sources: list[dict[str, str]]
    dropped: dict[str, int]
    notes: tuple[str, ...]
    places: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the numbers that were fitted: the same points give the same, wherever they came from."""
        text = json.dumps({name: self.columns[name].tolist() for name in sorted(self.columns)})
        return hashlib.sha256(text.encode()).hexdigest()


# How a missing column follows from others, and how that is said.
_DERIVED: dict[str, tuple[tuple[str, ...], Callable[..., Any], str]] = {
    "flops": (("params", "tokens"), lambda n, d: 6 * n * d, "6 × params × tokens: no attention"),
    "tokens": (("flops", "params"), lambda c, n: c / (6 * n), "flops / (6 × params)"),
    "params": (("flops", "tokens"), lambda c, d: c / (6 * d), "flops / (6 × tokens)"),
    "overtraining": (("tokens", "params"), lambda d, n: d / n, "tokens / params"),
}


def choose(
    law: Law,
    table: Table,
    named: dict[str, str],
    *,
    drop_highest_loss: int = 0,
    drop_missing: bool = False,
    drop_duplicates: bool = False,
    counted: str = "",
) -> Points:
    """The columns a law uses, all of them sound.

    Args:
      named: column to what it is called in the table; its own name by default.
      drop_highest_loss: leaves out so many points with the highest loss.
      drop_missing: leaves out rows with an empty cell or a NaN, in a column the law needs, instead of refusing them.
      drop_duplicates: keeps the first of rows that are the same instead of refusing them.
      counted: what params and flops count, in the user's words.

    Raises:
      BadInputError: every problem found.
    """
    columns, meanings, wrong = _columns(law, table, named)
    places = [row.place for row in table.rows]
    dropped: dict[str, int] = {}

    missing = np.any(
        [
            _empty(columns[name], [place for place in wrong if name in wrong[place]], places)
            for name in (*law.needs, law.target)
        ],
        axis=0,
    )
    if wrong:
        told = ~(missing & drop_missing)
        _refuse_unsound(law, *_kept(columns, places, told), wrong)
    notes = table.notes + _without_gaps(law, columns, meanings, missing)
    if drop_missing and missing.any():
        if missing.all():
            empty = [name for name, column in columns.items() if np.isnan(column).all()]
            which = f": {', '.join(empty)} {'is' if len(empty) == 1 else 'are'} missing in all of them" if empty else ""
            raise BadInputError(f"--drop-missing leaves none of {len(places)} rows{which}")
        dropped["missing"] = int(missing.sum())
        columns, places = _kept(columns, places, ~missing)
    _refuse_unsound(law, columns, places, {})
    columns, places, at_zero = _without_origin(law, columns, places)
    notes += at_zero
    if at_zero:
        dropped["before training"] = len(table.rows) - sum(dropped.values()) - len(places)
    twice = _repeated(columns)
    if twice and (drop_duplicates or law.curves):
        dropped["duplicates"] = len(twice)
        if law.curves:
            notes += (f"{len(twice)} points of training curves stand twice and count once: runs that differ in their "
                      "length alone begin alike",)  # fmt: skip
        keep = np.ones(len(places), bool)
        keep[list(twice)] = False
        columns, places = _kept(columns, places, keep)
    elif twice:
        raise BadInputError(*_some([f"{places[n]}: the same row as {places[m]}" for n, m in twice.items()],
                                   "remove one of each pair, or give --drop-duplicates"))  # fmt: skip
    if drop_highest_loss:
        columns, places = _without_highest(law, columns, places, drop_highest_loss)
        dropped["highest loss"] = drop_highest_loss
    if counted:
        meanings["as said"] = counted
    if {"params", "tokens", "flops"} <= columns.keys() and "6 ×" not in meanings["flops"] + meanings["tokens"]:
        ratio = columns["flops"] / (6 * columns["params"] * columns["tokens"])
        low, high = f"{ratio.min():.3g}", f"{ratio.max():.3g}"
        meanings["flops"] += f"; {low}{'' if low == high else f' to {high}'} times 6 × params × tokens"
    return Points(columns, meanings, table.sources, dropped, notes, tuple(places))


def _empty(column: np.ndarray, wrong: Iterable[str], places: list[str]) -> np.ndarray:
    """Where a column holds no number, and not because of a cell that holds something else: [rows]."""
    wrong = set(wrong)
    return np.isnan(column) & np.array([place not in wrong for place in places], bool)


def _columns(
    law: Law, table: Table, named: dict[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, dict[str, str]]]:
    """The law's columns as numbers (NaN where a cell holds none), what each of them is, and what is wrong in cells.

    The last is place to column to a line; an empty one of a column that follows from the cell of another.
    """
    known = list(dict.fromkeys(name for row in table.rows for name in row.cells))
    places = [row.place for row in table.rows]
    wanted = [*dict.fromkeys((*law.needs, law.target, *law.may_use))]
    problems = [f"--col {ours}={theirs}: there is no column '{theirs}'; {suggest(theirs, known)}"
                for ours, theirs in named.items() if theirs not in known]  # fmt: skip
    usable = {*wanted, *(name for each in wanted if each in _DERIVED for name in _DERIVED[each][0])}
    problems += [
        f"--col {ours}={theirs}: --law {law.name} uses no '{ours}'; {suggest(ours, usable)}"
        for ours, theirs in named.items()
        if ours not in usable
    ]
    columns: dict[str, np.ndarray] = {}
    meanings: dict[str, str] = {}
    wrong: dict[str, dict[str, str]] = {}
    called = {name: named.get(name) or _called(name, known) for name in usable}
    for name in sorted(usable):
        theirs = called[name]
        if theirs in known and not problems:
            columns[name], wrong[name] = _numbers(table, name, theirs)
            meaning = table.meanings.get(theirs, _NOT_RECORDED if name in ("params", "flops") else "")
            meanings[name] = f"column '{theirs}'" + (f": {meaning}" if meaning else "")
    if problems:
        raise BadInputError(*problems)
    for _ in range(2):  # over-training may need tokens that follow from flops
        for name, (sources, rule, words) in _DERIVED.items():
            if name in usable and name not in columns and all(source in columns for source in sources):
                with np.errstate(all="ignore"):  # refused with the rows
                    columns[name] = rule(*(columns[source] for source in sources))
                meanings[name] = words
                # A cell that is empty is a reason of its own.
                empty = [_empty(columns[source], wrong[source], places) for source in sources]
                without = {place for place, none in zip(places, np.any(empty, axis=0), strict=True) if none}
                wrong[name] = {place: "" for source in sources for place in wrong[source] if place not in without}
                if name in wanted:
                    wanted += sources
    source_of: dict[str, str] = {}
    for name in [name for name in dict.fromkeys(wanted) if called[name] in known]:
        if (other := source_of.setdefault(called[name], name)) != name:
            problems.append(f"--col: column '{called[name]}' would be {other} and {name}; give one of them another")
        if called[name] in table.ambiguous:
            problems.append(f"column '{called[name]}' is in the header twice; rename one of them")
    for name in (*law.needs, law.target):
        alike = [each for each in known if each.lower() == name]
        if name not in columns and len(alike) > 1:
            problems.append(f"columns {' and '.join(map(repr, alike))} could each be {name}; give --col {name}=COLUMN")
        elif name not in columns:
            near = suggest(name, known) if known else "there are no columns"
            near += "" if near.endswith("?") else "."
            problems.append(f"--law {law.name} needs a column '{name}'; {near} Give --col {name}=COLUMN")
    if problems:
        raise BadInputError(*problems)
    in_rows: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(wanted):
        for place, line in wrong.get(name, {}).items():
            in_rows.setdefault(place, {})[name] = line
    used = [*dict.fromkeys((*law.needs, law.target, *law.may_use))]
    return (
        {name: columns[name] for name in used if name in columns},
        {name: meanings[name] for name in meanings if name in used},
        in_rows,
    )


def _called(name: str, known: list[str]) -> str:
    """What a column is called in the table: its name, or the only one that differs in capitals alone."""
    alike = [each for each in known if each.lower() == name]
    return alike[0] if name not in known and len(alike) == 1 else name


def _numbers(table: Table, ours: str, theirs: str) -> tuple[np.ndarray, dict[str, str]]:
    """A column, and place to a line for each cell that is no number."""
    values, wrong = [], {}
    for row in table.rows:
        cell = row.cells.get(theirs)
        try:
            values.append(number(ours, cell))
        except (TypeError, ValueError, OverflowError):
            fix = ", not a number"
            if isinstance(cell, str) and THOUSANDS.fullmatch(cell.strip()):
                fix = ": thousands, or a decimal comma? Write it without one"
            wrong[row.place] = f"{row.place}: {theirs} is {str(cell)[:40]!r}{fix}"
            values.append(math.nan)
    return np.array(values), wrong


def _without_gaps(
    law: Law, columns: dict[str, np.ndarray], meanings: dict[str, str], missing: np.ndarray
) -> tuple[str, ...]:
    """Leaves out (or derives anew) what a law only may use where it is not in all rows; a sentence for each.

    Filled up in places it would count one thing in some rows and another in others.
    """
    notes = []
    for name in law.may_use:
        gaps = int((np.isnan(columns[name]) & ~missing).sum()) if name in columns else 0
        if not gaps:
            continue
        del columns[name], meanings[name]
        sources, rule, words = _DERIVED.get(name, ((name,), None, ""))
        said = f"column '{name}' is missing in {gaps} rows that have all else"
        if rule is not None and all(source in columns for source in sources):
            with np.errstate(all="ignore"):
                columns[name], meanings[name] = rule(*(columns[source] for source in sources)), words
            notes.append(f"{said}: all rows take {words.partition(':')[0]} instead")
        else:
            notes.append(f"{said}: it is not used")
    return tuple(notes)


def _kept(columns: Columns, places: list[str], keep: np.ndarray) -> tuple[dict[str, np.ndarray], list[str]]:
    return {name: column[keep] for name, column in columns.items()}, [p for p, k in zip(places, keep, strict=True) if k]


def _refuse_unsound(law: Law, columns: Columns, places: list[str], wrong: dict[str, dict[str, str]]) -> None:
    """Refuses cells that are no number, empty or not finite, and all but positive ones where a logarithm is taken."""
    problems = []
    for n, place in enumerate(places):
        told = wrong.get(place, {})
        problems += [line for line in told.values() if line]
        unsound = {name: _unsound(law, name, float(column[n])) for name, column in columns.items() if name not in told}
        problems += [f"{place}: {name} is {words}" for name, words in unsound.items() if words]
    if problems:
        raise BadInputError(*_some(problems))


def _unsound(law: Law, name: str, value: float) -> str:
    """What is wrong with a value of a column, in words; empty where nothing is."""
    if math.isnan(value):
        return "missing or NaN; remove the row, or give --drop-missing" if name not in law.may_use else ""
    if math.isinf(value):
        return "infinite; remove the row, or leave the cell empty"
    if value <= 0 and not (name == law.target and law.signed) and not (value == 0 and name in law.origin):
        return f"{value:g}, and must be more than 0; correct or remove the row"
    if value and not RANGE[0] <= abs(value) <= RANGE[1]:
        return f"{value:g}, and a law takes {RANGE[0]:g} to {RANGE[1]:g}; correct or remove the row"
    return ""


def _without_origin(
    law: Law, columns: dict[str, np.ndarray], places: list[str]
) -> tuple[dict[str, np.ndarray], list[str], tuple[str, ...]]:
    """Leaves out points at zero of a column where they are sound, but the law has no value; a sentence if there are."""
    for name in [name for name, has_value in law.origin.items() if not has_value]:
        zero = columns[name] == 0
        if zero.any():
            kept = _kept(columns, places, ~zero)
            return *kept, (f"{zero.sum()} points at {name} = 0 are left out: {law.name} has no value there",)
    return columns, places, ()


def _repeated(columns: Columns) -> dict[int, int]:
    """Row to the earlier row that is the same."""
    seen: dict[tuple[float, ...], int] = {}
    found = {}
    for n, row in enumerate(zip(*(column.tolist() for column in columns.values()), strict=True)):
        if (first := seen.setdefault(row, n)) != n:
            found[n] = first
    return found


def _without_highest(
    law: Law, columns: dict[str, np.ndarray], places: list[str], count: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    if "loss" not in columns:
        raise BadInputError(f"--drop-highest-loss: --law {law.name} uses no loss")
    if count >= len(places):
        raise BadInputError(f"--drop-highest-loss {count}: there are {len(places)} points")
    keep = np.ones(len(places), bool)
    keep[np.argsort(columns["loss"], kind="stable")[len(places) - count :]] = False
    return _kept(columns, places, keep)


def _some(lines: list[str], fix: str = "") -> list[str]:
    """The first few of many lines, and how many more there are."""
    told = [f"{line}; {fix}" if fix else line for line in lines[:_TOLD]]
    return told + ([f"and {len(lines) - _TOLD} more of the kind"] if len(lines) > _TOLD else [])
