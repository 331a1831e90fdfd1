"""Readers: the records of one file, or of one data set, as a stream that never holds a whole file."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from blobjax.config import BadInputError
from blobjax.config.schema import Source
from blobjax.data.compression import BOM, open_bytes

# A text file beyond this is cut at a blank line into documents of about this size: one book is then enough to hold some
# of it out, and a file of any length is read in bounded memory.
PASSAGE_BYTES = 1 << 15
# Bytes of Parquet rows read at once.
_BATCH_BYTES = 1 << 24
# How Arrow's files and streams begin, which is how no file of a kind that is read does.
_ARROW = (b"ARROW1\0\0", b"\xff\xff\xff\xff")
# Between two objects: in JSON it can be nothing else than the end of a line.
_LONE_CR = re.compile(rb"}[ \t]*\r[ \t\r]*{")


class Reading(NamedTuple):
    """What a reader needs to know of the source it reads for.

    Attributes:
      domain: named in errors.
      source: `field`, `nulls` and `split` are read.
      limit: bytes of the longest record taken, at least four times PASSAGE_BYTES (data.max_document_bytes).
    """

    domain: str
    source: Source
    limit: int


Records = Iterator[tuple[str | None, int, int]]
"""Text (None: the row has none and is to be skipped), number from 1, bytes of the file read so far."""


def reason(error: Exception) -> str:
    """An error in one line: libraries' messages may have many."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def refuse_arrow(path: Path) -> None:
    """Refuses a file that no kind of source reads, whichever was chosen for it.

    Raises:
      BadInputError: it is an Arrow file.
    """
    with path.open("rb") as file:
        if file.read(8).startswith(_ARROW):
            raise BadInputError(
                f"{path}: is an Arrow file, which is not read; save the table as Parquet, or give the folder that "
                "datasets has saved it in, with kind huggingface"
            )


def _text(path: Path, reading: Reading) -> Records:
    with open_bytes(path) as (content, raw):
        try:
            yield from _passages(path, content, raw)
        except (OSError, EOFError, BadInputError):
            raise
        except Exception as error:  # zlib.error and ZstdError share no narrower base
            raise BadInputError(f"{path}: damaged: {reason(error)}") from None


def _passages(path: Path, content: IO[bytes], raw: IO[bytes]) -> Records:
    passage: list[bytes] = []
    size, number, start = 0, 1, 0  # start: where in the content the passage begins

    def finish() -> tuple[str, int, int]:
        nonlocal size, number, start
        joined = b"".join(passage)
        try:
            text = joined.decode()
        except UnicodeDecodeError as error:
            where = start + error.start
            raise BadInputError(f"{path}: byte {where} is not UTF-8 text; convert the file to UTF-8") from None
        passage.clear()
        size, number, start = 0, number + 1, start + len(joined)
        return text, number - 1, raw.tell()

    # A limit on the line: a file without line ends must not be read whole either.
    while line := content.readline(PASSAGE_BYTES):
        if number == 1 and not passage and line.startswith(BOM):
            line, start = line[len(BOM) :], len(BOM)
        passage.append(line)
        size += len(line)
        blank = not line.strip()
        if (size >= PASSAGE_BYTES and blank) or (size >= 2 * PASSAGE_BYTES and line.endswith(b"\n")):
            yield finish()
        elif size >= 4 * PASSAGE_BYTES:
            # No line end for long: cut, but not inside a character.
            tail = passage[-1]
            cut = next((i for i in range(1, min(4, len(tail)) + 1) if tail[-i] >= 0xC0), 0)
            passage[-1], kept = (tail[:-cut], tail[-cut:]) if cut and tail[-1] >= 0x80 else (tail, b"")
            result = finish()
            if kept:
                passage.append(kept)
                size = len(kept)
            yield result
    if passage:
        yield finish()


def _jsonl(path: Path, reading: Reading) -> Records:
    for line, number, offset in _lines(path, reading):
        yield _field(line, f"{path}:{number}", reading), number, offset


def _examples(path: Path, reading: Reading) -> Records:
    """Lines that are JSON; `examples.pieces_of` says what has to be in them."""
    for line, number, offset in _lines(path, reading):
        try:
            json.loads(line)
            text = line.decode()
        except (ValueError, RecursionError) as error:
            raise BadInputError(f"{path}:{number}: not JSON: {error}") from None
        yield text, number, offset


def _lines(path: Path, reading: Reading) -> Iterator[tuple[bytes, int, int]]:
    """Lines that are not empty, their numbers from 1, and bytes of the file read so far."""
    number = 0
    with open_bytes(path) as (content, raw):
        while True:
            try:
                line = content.readline(reading.limit + 1)
            except (OSError, EOFError):
                raise
            except Exception as error:  # zlib.error and ZstdError share no narrower base
                raise BadInputError(f"{path}: damaged after line {number}: {reason(error)}") from None
            if not line:
                return
            number += 1
            if _LONE_CR.search(line):
                raise BadInputError(
                    f"{path}:{number}: its lines end in CR alone, and those of JSONL in LF or CR LF; convert them, "
                    "as with tr '\\r' '\\n'"
                )
            if len(line) > reading.limit:
                raise _too_large(f"{path}:{number}", reading)
            line = line.removeprefix(BOM) if number == 1 else line
            if line.strip():
                yield line, number, raw.tell()


def _too_large(where: str, reading: Reading) -> BadInputError:
    return BadInputError(
        f"{where}: is longer than data.max_document_bytes={reading.limit}; cut it into shorter documents, or raise that"
    )


class _Object(dict[str, Any]):
    """A JSON object that knows which of its keys it was given more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        counted = Counter(name for name, _ in pairs) if len(self) < len(pairs) else {}
        self.repeated = {name for name, count in counted.items() if count > 1}


def _no_number(digits: str) -> int:
    """Stands for every integer: none is read, and Python refuses to make one of thousands of digits."""
    return 0


def _field(record: bytes, where: str, reading: Reading) -> str | None:
    """The text in a JSON record; None: the record is to be skipped."""
    field = reading.source.field
    try:
        content = json.loads(record, object_pairs_hook=_Object, parse_int=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{where}: not JSON: {error}") from None
    if not isinstance(content, _Object):
        raise BadInputError(f"{where}: expected a JSON object with a field '{field}', not {type(content).__name__}")
    if field in content.repeated:
        raise BadInputError(f"{where}: field '{field}' is given twice; remove one of them")
    if field not in content and reading.source.nulls == "error":
        raise _no_field(where, list(content), reading, "; data.sources.{domain}.nulls=skip skips such rows")
    return _string(content.get(field), where, reading)


def _no_field(where: str, known: list[str], reading: Reading, otherwise: str = "") -> BadInputError:
    field, domain = reading.source.field, reading.domain
    near = difflib.get_close_matches(field, known, 1) or known[:5]
    return BadInputError(
        f"{where}: no field '{field}'; data.sources.{domain}.field may be one of: {', '.join(near) or 'none'}"
        + otherwise.format(domain=domain)
    )


def _string(value: Any, where: str, reading: Reading) -> str | None:
    field, domain = reading.source.field, reading.domain
    if value is None:
        if reading.source.nulls == "skip":
            return None
        raise BadInputError(
            f"{where}: field '{field}' is null, not text; data.sources.{domain}.nulls=skip skips such rows"
        )
    if not isinstance(value, str):
        raise BadInputError(f"{where}: field '{field}' is {type(value).__name__}, not text")
    # UTF-8 has one to four bytes a character: most texts need not be encoded to know.
    if 4 * len(value) > reading.limit and len(value.encode(errors="surrogatepass")) > reading.limit:
        raise _too_large(where, reading)
    return value


def _parquet(path: Path, reading: Reading) -> Records:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BadInputError(
            f"data.sources.{reading.domain}: kind parquet needs the extra: pip install 'blobjax[parquet]'"
        ) from None
    field, number = reading.source.field, 0
    try:
        schema = pyarrow.parquet.read_schema(path)
        if field not in schema.names:
            raise _no_field(str(path), schema.names, reading)
        if schema.names.count(field) > 1:
            raise BadInputError(f"{path}: column '{field}' is in the schema twice; rename one of them")
        # As dictionaries: a text that a million rows share is then held once. Page by page, not a row group at once.
        shared = [field] if _is_text(schema.field(field).type) else []
        with pyarrow.parquet.ParquetFile(path, read_dictionary=shared, buffer_size=1 << 20, pre_buffer=False) as file:
            _refuse_large_groups(path, file.metadata, field, reading)
            size, rows = path.stat().st_size, max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(_rows_at_once(file.metadata), columns=[field], use_threads=False):
                column = batch.column(0)
                if pyarrow.types.is_dictionary(column.type):
                    values, indices = column.dictionary, column.indices.to_pylist()
                else:
                    values, indices = column, range(len(column))
                texts = _measured(values, indices, f"{path}: row", number, reading)
                for index in indices:
                    number += 1
                    value = None if index is None else texts[index]
                    yield _string(value, f"{path}: row {number}", reading), number, size * number // rows
    except pyarrow.ArrowException as error:
        raise BadInputError(f"{path}: not a readable Parquet file: {reason(error)}") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: a text soon after row {number} is not UTF-8: {reason(error)}") from None


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)


def _refuse_large_groups(path: Path, metadata: Any, field: str, reading: Reading) -> None:
    """Refuses, before anything is decompressed, a row group in which the average text is beyond the limit."""
    before = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        columns = [group.column(j) for j in range(group.num_columns)]
        size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == field)
        # Each text has 4 bytes of length; pages have headers and, of rows, a byte or two.
        if size > (reading.limit + 8) * group.num_rows + (1 << 16):
            raise _too_large(f"{path}: a text in rows {before + 1} to {before + group.num_rows}", reading)
        before += group.num_rows


def _rows_at_once(metadata: Any) -> int:
    """So many rows of average size that they fit into _BATCH_BYTES; at most 1024."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    average = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
    return min(max(_BATCH_BYTES // max(average, 1), 1), 1024)


def _measured(values: Any, indices: Any, where: str, before: int, reading: Reading) -> list[Any]:
    """An Arrow array as Python values, none of which is longer than the limit: the row is named that has one."""
    from pyarrow import compute

    if _is_text(values.type):
        lengths = compute.binary_length(values).to_pylist()
        long = {i for i, length in enumerate(lengths) if length is not None and length > reading.limit}
        if long:
            first = next((row for row, index in enumerate(indices) if index in long), 0)
            raise _too_large(f"{where} {before + first + 1}", reading)
    return values.to_pylist()


def _array_record(path: Path, reading: Reading) -> Records:
    from array_record.python import array_record_module

    try:
        # No reading ahead, and one record at a time: a record may be as long as the limit.
        reader = array_record_module.ArrayRecordReader(str(path), "max_parallelism:0")
        try:
            size, records = path.stat().st_size, reader.num_records()
            for number in range(1, records + 1):
                record, where = reader.read(), f"{path}: record {number}"
                if len(record) > reading.limit:
                    raise _too_large(where, reading)
                yield _field(record, where, reading), number, size * number // records
        finally:
            reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
        raise BadInputError(f"{path}: not a readable ArrayRecord file: {reason(error)}") from None


def read_huggingface(reading: Reading) -> Records:
    """The rows of a Hugging Face data set, by its name or the folder it was saved in."""
    source, domain = reading.source, reading.domain
    try:
        import datasets
    except ImportError:
        raise BadInputError(
            f"data.sources.{domain}: kind huggingface needs the extra: pip install 'blobjax[huggingface]'"
        ) from None
    saved = (Path(source.path) / "dataset_dict.json", Path(source.path) / "dataset_info.json")
    try:
        if any(path.is_file() for path in saved):
            loaded = datasets.load_from_disk(source.path)
            splits = loaded if isinstance(loaded, datasets.DatasetDict) else {source.split: loaded}
            if source.split not in splits:
                raise ValueError(f"it has no split '{source.split}' but {', '.join(splits)}")
            rows = splits[source.split]
        else:
            rows = datasets.load_dataset(source.path, split=source.split)
    except Exception as error:  # the library's failures have no common base
        raise BadInputError(
            f"data.sources.{domain}: dataset '{source.path}' cannot be loaded: {reason(error)}"
        ) from None
    if source.field not in rows.column_names:
        raise _no_field(source.path, rows.column_names, reading)
    for number, row in enumerate(rows.select_columns([source.field]), 1):
        yield _string(row[source.field], f"{source.path}: row {number}", reading), number, 0


READERS: dict[str, Callable[[Path, Reading], Records]] = {
    "text": _text,
    "jsonl": _jsonl,
    "examples": _examples,
    "parquet": _parquet,
    "array_record": _array_record,
}
"""Kind of source to what reads one of its files."""
