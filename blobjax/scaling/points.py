"""The points a law is fitted to: read from tables, run directories or a fit file, checked, each row with its place.

Whatever a row could do wrong silently is refused: a loss of zero or NaN, a row that stands twice, a column that is not
there. What is derived (`flops` as 6 × params × tokens) is said, as is what the columns count.
"""

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from blobjax.config import BadInputError
from blobjax.config.closest import suggest
from blobjax.scaling import runs
from blobjax.scaling.laws.law import RANGE, Columns, Law

# How many lines of the same kind of trouble are told one by one.
_TOLD = 5
_MISSING = ("", "na", "n/a", "nan", "null", "none", "-")
# A comma before three digits: in a count it can only part thousands, elsewhere one alone may be a decimal comma.
_THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+")
_COUNTS = ("params", "tokens", "flops", "unique_tokens", "steps", "batch_size", "critical_batch")
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
    if path.suffix.lower() not in readers:
        raise BadInputError(f"{path}: points come from a .csv or .jsonl file, or the directory of a run or a study")
    if path.exists() and not path.is_file():
        raise BadInputError(f"{path}: is not a regular file, and points are not read from a pipe; save them to one")
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInputError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror}") from None
    rows = readers[path.suffix.lower()](str(path), text)
    if not rows:
        raise BadInputError(f"{path}: holds no points")
    return Table(rows, [{"path": str(path), "sha256": hashlib.sha256(content).hexdigest()}])


def _csv(path: str, text: str) -> list[Row]:
    """Rows under the first line that is neither blank nor a remark; cells under an empty name are passed over."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    names: list[str] = []
    rows = []
    try:
        for cells in reader:
            if not cells or _remark(cells):
                continue
            if not names:
                names = _header(path, cells)
                continue
            place = f"{path}:{reader.line_num}"
            if len(cells) > len(names):
                raise BadInputError(f"{place}: more cells than the header has names, {len(cells)} and {len(names)}; "
                                    "a number with commas in it needs quotes")  # fmt: skip
            rows.append(Row(place, {name: cell for name, cell in zip(names, cells, strict=False) if name}))
    except csv.Error as error:
        raise BadInputError(f"{path}:{reader.line_num}: not CSV: {error}") from None
    return rows


def _remark(cells: list[str]) -> bool:
    """Whether a line begins with `#`, which alone in its cell is the name or the mark of a column of numbers."""
    return cells[0].startswith("#") and (len(cells) == 1 or cells[0].strip() != "#")


def _header(path: str, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise BadInputError(f"{path}: column '{twice[0]}' stands twice")
    for mark, called in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and mark in names[0]:
            raise BadInputError(f"{path}: its columns are parted by {called}; write the table with commas")
    return names


class _TwiceError(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return cells


def _jsonl(path: str, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line, object_pairs_hook=_object)
        except _TwiceError as error:
            raise BadInputError(f"{path}:{number}: key '{error}' stands twice") from None
        except (ValueError, RecursionError) as error:
            raise BadInputError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(cells, dict):
            raise BadInputError(f"{path}:{number}: not a JSON object")
        rows.append(Row(f"{path}:{number}", cells))
    return rows


def _number(name: str, cell: Any) -> float:
    """The number in a cell of a column, NaN where it is empty or says that there is none.

    Raises:
      ValueError: it is none.
    """
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in _MISSING):
        return math.nan
    if isinstance(cell, bool):
        raise ValueError
    if isinstance(cell, str) and _THOUSANDS.fullmatch(cell.strip()) and (name in _COUNTS or cell.count(",") > 1):
        return float(cell.replace(",", ""))
    return plain(cell) if isinstance(cell, str) else float(cell)


def plain(text: str) -> float:
    """The number that a text is; what Python alone takes for one (1_000, other scripts' digits) is none.

    Raises:
      ValueError: it is none.
    """
    if not text.isascii() or "_" in text:
        raise ValueError
    return float(text)


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
    columns, meanings = _columns(law, table, named)
    places = [row.place for row in table.rows]
    dropped: dict[str, int] = {}

    missing = np.any(np.isnan([columns[name] for name in (*law.needs, law.target)]), axis=0)
    notes = table.notes + _without_gaps(law, columns, meanings, missing)
    if drop_missing and missing.any():
        if missing.all():
            empty = [name for name, column in columns.items() if np.isnan(column).all()]
            which = f": {', '.join(empty)} {'is' if len(empty) == 1 else 'are'} missing in all of them" if empty else ""
            raise BadInputError(f"--drop-missing leaves none of {len(places)} rows{which}")
        dropped["missing"] = int(missing.sum())
        columns, places = _kept(columns, places, ~missing)
    _refuse_unsound(law, columns, places)
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
    return Points(columns, meanings, table.sources, dropped, notes)


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
    wrong: dict[str, list[str]] = {}
    for name in sorted(usable):
        theirs = named.get(name, name)
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
                if name in wanted:
                    wanted += sources
    source_of: dict[str, str] = {}
    for name in [name for name in dict.fromkeys(wanted) if named.get(name, name) in known]:
        if (other := source_of.setdefault(named.get(name, name), name)) != name:
            problems.append(
                f"--col: column '{named.get(name, name)}' would be {other} and {name}; give one of them another"
            )
    for name in dict.fromkeys(wanted):
        problems += wrong.get(name, ())
    for name in (*law.needs, law.target):
        if name not in columns:
            near = suggest(name, known) if known else "there are no columns"
            problems.append(f"--law {law.name} needs a column '{name}'; {near} Give --col {name}=COLUMN")
    if problems:
        raise BadInputError(*problems)
    used = [*dict.fromkeys((*law.needs, law.target, *law.may_use))]
    return {name: columns[name] for name in used if name in columns}, {
        name: meanings[name] for name in meanings if name in used
    }


def _numbers(table: Table, ours: str, theirs: str) -> tuple[np.ndarray, list[str]]:
    """A column, and a line for each cell that is no number."""
    values, wrong = [], []
    for row in table.rows:
        cell = row.cells.get(theirs)
        try:
            values.append(_number(ours, cell))
        except (TypeError, ValueError, OverflowError):
            fix = ", not a number"
            if isinstance(cell, str) and _THOUSANDS.fullmatch(cell.strip()):
                fix = ": thousands, or a decimal comma? Write it without one"
            wrong.append(f"{row.place}: {theirs} is {str(cell)[:40]!r}{fix}")
            values.append(math.nan)
    return np.array(values), _some(wrong)


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


def _refuse_unsound(law: Law, columns: Columns, places: list[str]) -> None:
    """Refuses cells that are empty or not finite, and all but positive ones where a logarithm will be taken."""
    problems = []
    for name, column in columns.items():
        for place, value in zip(places, column, strict=True):
            if math.isnan(value):
                problems.append(f"{place}: {name} is missing or NaN; remove the row, or give --drop-missing")
            elif math.isinf(value):
                problems.append(f"{place}: {name} is infinite; remove the row, or leave the cell empty")
            elif value <= 0 and (name != law.target or law.log):
                problems.append(f"{place}: {name} is {value:g}, and must be more than 0; correct or remove the row")
            elif value and not RANGE[0] <= abs(value) <= RANGE[1]:
                within = f"{RANGE[0]:g} to {RANGE[1]:g}"
                problems.append(f"{place}: {name} is {value:g}, and a law takes {within}; correct or remove the row")
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
