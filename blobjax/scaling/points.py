"""The points a law is fitted to: read from tables, run directories or a fit file, checked, each row with its place.

Whatever a row could do wrong silently is refused: a loss of zero or NaN, a row that stands twice, a column that is not
there. What is derived (`flops` as 6 × params × tokens) is said, as is what the columns count.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from blobjax.config import BadInputError
from blobjax.config.closest import suggest
from blobjax.scaling import runs
from blobjax.scaling.laws.law import Columns, Law

# How many lines of the same kind of trouble are told one by one.
_TOLD = 5
_NOT_RECORDED = "whether embeddings or attention are in it is not recorded (say so with --counted)"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      place: file and line, or the run's directory.
      cells: column to what is written there.
    """

    place: str
    cells: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows as they were read.

    Attributes:
      rows: all of them.
      sources: path and SHA-256 of the content of each file or directory.
      meanings: column to what it counts, where that is known.
      notes: what was passed over while reading.
    """

    rows: list[Row]
    sources: list[dict[str, str]]
    meanings: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Points:
    """Points fit for a law.

    Attributes:
      columns: the columns the law uses, float64, one value for each point.
      counted: column to what it is and counts.
      sources: as of the table.
      dropped: reason to how many rows were left out for it.
      notes: sentences about them.
    """

    columns: dict[str, np.ndarray]
    counted: dict[str, str]
    sources: list[dict[str, str]]
    dropped: dict[str, int]
    notes: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the numbers that were fitted: the same points give the same, wherever they came from."""
        text = json.dumps({name: self.columns[name].tolist() for name in sorted(self.columns)})
        return hashlib.sha256(text.encode()).hexdigest()


def read(paths: Sequence[str], curves: bool = False) -> Table:
    """Reads tables (.csv, .jsonl), run and study directories, one after the other.

    Args:
      curves: of a run not its end alone, but its training curve.

    Raises:
      BadInputError: one of them cannot be read.
    """
    tables = [_read_one(Path(path), curves) for path in paths]
    return Table(
        [row for table in tables for row in table.rows],
        [source for table in tables for source in table.sources],
        {name: meaning for table in tables for name, meaning in table.meanings.items()},
        tuple(note for table in tables for note in table.notes),
    )


def _read_one(path: Path, curves: bool) -> Table:
    if path.is_dir():
        found = runs.read(path, curves)
        rows = [Row(place, cells) for place, cells in found.rows]
        return Table(rows, [{"path": str(path), "sha256": found.sha256}], dict(runs.MEANINGS), found.notes)
    readers: dict[str, Callable[[str, str], list[Row]]] = {".csv": _csv, ".jsonl": _jsonl}
    if path.suffix not in readers:
        raise BadInputError(f"{path}: points come from a .csv or .jsonl file, or the directory of a run or a study")
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInputError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror}") from None
    rows = readers[path.suffix](str(path), text)
    if not rows:
        raise BadInputError(f"{path}: holds no points")
    return Table(rows, [{"path": str(path), "sha256": hashlib.sha256(content).hexdigest()}])


def _csv(path: str, text: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        rows = [Row(f"{path}:{reader.line_num}", {(k or "").strip(): v for k, v in cells.items()}) for cells in reader]
    except csv.Error as error:
        raise BadInputError(f"{path}:{reader.line_num}: not CSV: {error}") from None
    names = [name.strip() for name in reader.fieldnames or ()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInputError(f"{path}: column '{twice[0]}' stands twice")
    if longer := [row for row in rows if None in row.cells or "" in row.cells]:
        if "" not in names:
            raise BadInputError(f"{longer[0].place}: more cells than the header has names")
        rows = [Row(row.place, {k: v for k, v in row.cells.items() if k}) for row in rows]
    return rows


def _jsonl(path: str, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInputError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(cells, dict):
            raise BadInputError(f"{path}:{number}: not a JSON object")
        rows.append(Row(f"{path}:{number}", cells))
    return rows


def _number(cell: Any) -> float:
    """The number in a cell, NaN where it is empty.

    Raises:
      ValueError: it is none.
    """
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return math.nan
    if isinstance(cell, bool):
        raise ValueError
    return float(cell)


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
      drop_missing: leaves out rows with an empty cell or a NaN instead of refusing them.
      drop_duplicates: keeps the first of rows that are the same instead of refusing them.
      counted: what params and flops count, in the user's words.

    Raises:
      BadInputError: every problem found.
    """
    columns, meanings = _columns(law, table, named)
    places = [row.place for row in table.rows]
    dropped: dict[str, int] = {}

    missing = np.any(np.isnan(np.stack(list(columns.values()))), axis=0)
    if drop_missing and missing.any():
        dropped["missing"] = int(missing.sum())
        columns, places = _kept(columns, places, ~missing)
    _refuse_unsound(law, columns, places)
    twice = _repeated(columns)
    if twice and drop_duplicates:
        dropped["duplicates"] = len(twice)
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
    return Points(columns, meanings, table.sources, dropped, table.notes)


def _columns(law: Law, table: Table, named: dict[str, str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The law's columns as numbers (NaN where a cell is empty), and what each of them is."""
    known = list(dict.fromkeys(name for row in table.rows for name in row.cells))
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
    for name in sorted(usable):
        theirs = named.get(name, name)
        if theirs in known and not problems:
            columns[name] = _numbers(table, theirs, problems)
            meaning = table.meanings.get(theirs, _NOT_RECORDED if name in ("params", "flops") else "")
            meanings[name] = f"column '{theirs}'" + (f": {meaning}" if meaning else "")
    if problems:
        raise BadInputError(*problems)
    for _ in range(2):  # over-training may need tokens that follow from flops
        for name, (sources, rule, words) in _DERIVED.items():
            if name in usable and name not in columns and all(source in columns for source in sources):
                columns[name] = rule(*(columns[source] for source in sources))
                meanings[name] = words
    for name in (*law.needs, law.target):
        if name not in columns:
            near = suggest(name, known) if known else "there are no columns"
            problems.append(f"--law {law.name} needs a column '{name}'; {near} Give --col {name}=COLUMN")
    if problems:
        raise BadInputError(*problems)
    return {name: columns[name] for name in wanted if name in columns}, {
        name: meanings[name] for name in meanings if name in wanted
    }


def _numbers(table: Table, name: str, problems: list[str]) -> np.ndarray:
    values, wrong = [], []
    for row in table.rows:
        try:
            values.append(_number(row.cells.get(name)))
        except (TypeError, ValueError, OverflowError):
            wrong.append(f"{row.place}: {name} is {str(row.cells[name])[:40]!r}, not a number")
            values.append(math.nan)
    problems += _some(wrong)
    return np.array(values)


def _kept(columns: Columns, places: list[str], keep: np.ndarray) -> tuple[dict[str, np.ndarray], list[str]]:
    return {name: column[keep] for name, column in columns.items()}, [p for p, k in zip(places, keep, strict=True) if k]


def _refuse_unsound(law: Law, columns: Columns, places: list[str]) -> None:
    """Refuses cells that are empty or not finite, and all but positive ones where a logarithm will be taken."""
    problems = []
    for name, column in columns.items():
        for place, value in zip(places, column, strict=True):
            if math.isnan(value):
                problems.append(f"{place}: {name} is missing or NaN; remove the row, or give --drop-missing")
            elif math.isinf(value):
                problems.append(f"{place}: {name} is infinite; remove the row")
            elif value <= 0 and (name != law.target or law.log):
                problems.append(f"{place}: {name} is {value:g}, and must be more than 0; correct or remove the row")
    if problems:
        raise BadInputError(*_some(problems))


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
