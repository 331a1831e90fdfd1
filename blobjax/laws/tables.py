"""Tables of points: CSV, JSON lines, and the directories of runs and studies, as rows of cells with their places."""

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

from blobjax.config import BadInputError
from blobjax.laws import runs

_MISSING = ("", "na", "n/a", "nan", "null", "none", "-")
# What spreadsheets leave where a formula has no value.
_ERRORS = ("#n/a", "#div/0!", "#value!", "#ref!", "#name?", "#num!", "#null!")
# A comma before three digits: in a count it can only part thousands, elsewhere one alone may be a decimal comma.
THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+", re.ASCII)
_COUNTS = ("params", "tokens", "flops", "unique_tokens", "steps", "batch_size", "critical_batch")


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
      notes: what was left out while reading.
      ambiguous: names that more than one column of a file has; none of them can be used.
    """

    rows: list[Row]
    sources: list[dict[str, str]]
    meanings: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ambiguous: frozenset[str] = frozenset()


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
        frozenset(name for table in tables for name in table.ambiguous),
    )


def _read_one(path: Path, curves: bool) -> Table:
    if path.is_dir():
        found = runs.read(path, curves)
        rows = [Row(place, cells) for place, cells in found.rows]
        return Table(rows, [{"path": str(path), "sha256": found.sha256}], dict(runs.MEANINGS), found.notes)
    readers: dict[str, Callable[[str, str], tuple[list[Row], frozenset[str]]]] = {".csv": _csv, ".jsonl": _jsonl}
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
    rows, ambiguous = readers[path.suffix.lower()](str(path), text)
    if not rows:
        raise BadInputError(f"{path}: holds no points")
    return Table(rows, [{"path": str(path), "sha256": hashlib.sha256(content).hexdigest()}], ambiguous=ambiguous)


_SEPARATORS = {";": "semicolons", "\t": "tabs"}


def _csv(path: str, text: str) -> tuple[list[Row], frozenset[str]]:
    """Rows under the first line that is neither blank nor a remark, and names that the header has twice.

    Cells under an empty name are left out, and so is a first line `sep=,`, which some spreadsheets write.
    """
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    names: list[str] = []
    rows = []
    end = 0
    try:
        for cells in reader:
            begin, end = end + 1, reader.line_num
            if not cells or _remark(cells) or (not names and _separator(path, cells)):
                continue
            if not names:
                names = _header(path, cells)
                continue
            place = f"{path}:{begin}"
            if len(cells) > len(names):
                raise BadInputError(f"{place}: more cells than the header has names, {len(cells)} and {len(names)}; "
                                    "a number with commas in it needs quotes")  # fmt: skip
            rows.append(Row(place, {name: cell for name, cell in zip(names, cells, strict=False) if name}))
    except csv.Error as error:
        raise BadInputError(f"{path}:{reader.line_num}: not CSV: {error}") from None
    # Only the last row can be one whose quote is not closed: it takes all that follows.
    _refuse_open_quote(path, text, begin if end else 1)
    return rows, frozenset(name for name in names if name and names.count(name) > 1)


def _separator(path: str, cells: list[str]) -> bool:
    """Whether a line is a spreadsheet's `sep=,`.

    Raises:
      BadInputError: it names another separator.
    """
    name, equals, rest = ",".join(cells).partition("=")
    if name.strip().lower() != "sep" or not equals:
        return False
    mark = rest.strip() or rest[:1]  # a tab is blank itself
    if mark != ",":
        raise _separated(path, _SEPARATORS.get(mark, repr(mark)))
    return True


def _separated(path: str, called: str) -> BadInputError:
    return BadInputError(f"{path}: its columns are separated by {called}; write the table with commas")


def _refuse_open_quote(path: str, text: str, begin: int) -> None:
    last = "".join(io.StringIO(text, newline="").readlines()[begin - 1 :])
    try:
        for _ in csv.reader(io.StringIO(last, newline=""), skipinitialspace=True, strict=True):
            pass
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise BadInputError(f"{path}:{begin}: a quote is opened here and never closed") from None


def _remark(cells: list[str]) -> bool:
    """Whether a line begins with `#`, which alone in its cell is the name or the mark of a column of numbers."""
    if cells[0].strip().lower() in _ERRORS:
        return False
    return cells[0].startswith("#") and (len(cells) == 1 or cells[0].strip() != "#")


def _header(path: str, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    for mark, called in _SEPARATORS.items():
        if len(names) == 1 and mark in names[0]:
            raise _separated(path, called)
    return names


class _TwiceError(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return cells


def _jsonl(path: str, text: str) -> tuple[list[Row], frozenset[str]]:
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
    return rows, frozenset()


def number(name: str, cell: Any) -> float:
    """The number in a cell of a column, NaN where it is empty or says that there is none.

    Raises:
      ValueError: it is none.
    """
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in (*_MISSING, *_ERRORS)):
        return math.nan
    if isinstance(cell, bool):
        raise ValueError
    if isinstance(cell, str) and THOUSANDS.fullmatch(cell.strip()) and (name in _COUNTS or cell.count(",") > 1):
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
