"""Sources: where a domain's documents come from, as a stream that never holds a whole file.

Every reader yields `Document`s in an order fixed by the sorted paths, so that all hosts prepare the same tokens.
"""

import difflib
import glob
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from blobjax.config import BadInputError, Config
from blobjax.config.paths import expanded
from blobjax.config.schema import Source
from blobjax.data import embedded

# A text file beyond this is cut at a blank line into documents of about this size: one book is then enough to hold some
# of it out, and a file of any length is read in bounded memory.
PASSAGE_BYTES = 1 << 15


class Document(NamedTuple):
    """A text, where it stands, and how far the reader is.

    Attributes:
      text: the document.
      path: the file, or the name of what has no file.
      number: line (jsonl), record (parquet, array_record, huggingface) or document (text, embedded), from 1.
      done: bytes of source files read by now, as they are on disk.
    """

    text: str
    path: str
    number: int
    done: int


def resolve(config: Config, domain: str) -> Source:
    """The source of a domain of the mixture.

    Raises:
      BadInputError: it has none, or one that says too little; the nearest known name is suggested.
    """
    sources, shipped = config.data.sources, embedded.domains()
    if domain not in sources:
        if domain in shipped:
            return Source(kind="embedded", path=domain)
        near = difflib.get_close_matches(domain, [*sources, *shipped], 1)
        hint = f"did you mean '{near[0]}'?" if near else f"embedded: {', '.join(shipped)}."
        raise BadInputError(
            f"data.mixture.{domain}: no such domain; {hint} A domain of your own needs data.sources.{domain}"
        )
    source = sources[domain]
    if source.kind == "embedded":
        name = source.path or domain
        if name not in shipped:
            raise BadInputError(f"data.sources.{domain}: no embedded domain '{name}'; there are: {', '.join(shipped)}")
        return source.model_copy(update={"path": name})
    if not source.path:
        what = "a dataset name" if source.kind == "huggingface" else "a file or glob"
        raise BadInputError(f"data.sources.{domain}.path is empty; give {what}")
    return source


def files(source: Source, domain: str) -> list[Path]:
    """The files a path or glob means, sorted.

    Raises:
      BadInputError: none; the nearest name in the folder is suggested.
    """
    pattern = str(expanded(source.path, f"data.sources.{domain}.path"))
    # A path that exists is meant literally, even with a bracket in its name.
    matches = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)
    found = sorted(path for path in map(Path, matches) if path.is_file())
    if found:
        return found
    if matches:
        raise BadInputError(
            f"data.sources.{domain}.path '{source.path}' is a folder; give the files in it, such as '{source.path}/*'"
        )
    folder = Path(pattern).parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(Path(pattern).name, names, 1)
    hint = f"did you mean '{folder / near[0]}'?" if near else "" if names else f"(there is nothing in {folder})"
    raise BadInputError(f"data.sources.{domain}.path '{source.path}' matches no file {hint}".rstrip())


def fingerprint(source: Source, domain: str) -> list[Any]:
    """What tells this source's content from another's, without reading it: paths, sizes and times of change.

    A Hugging Face dataset that is no local folder is known by its name alone: its preparation is not redone when the
    dataset changes at its origin.
    """
    if source.kind == "embedded":
        return [embedded.fingerprint(source.path)]
    if source.kind == "huggingface":
        paths = sorted(Path(source.path).rglob("*")) if Path(source.path).is_dir() else []
    else:
        paths = files(source, domain)
    stats = [(path, path.stat()) for path in paths if path.is_file()]
    return [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def documents(source: Source, domain: str) -> Iterator[Document]:
    """Reads a domain's documents.

    Raises:
      BadInputError: a file cannot be read, or a record is not what it should be; says which.
    """
    if source.kind == "embedded":
        for number, text in enumerate(embedded.documents(source.path), 1):
            yield Document(text, source.path, number, 0)
    elif source.kind == "huggingface":
        yield from _huggingface(source, domain)
    else:
        done = 0
        for path in files(source, domain):
            try:
                for text, number, offset in _READERS[source.kind](path, source, domain):
                    yield Document(text, str(path), number, done + offset)
                done += path.stat().st_size
            except (OSError, EOFError) as error:
                raise BadInputError(f"{path}: cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """An error in one line: libraries' messages may have many."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


_Records = Iterator[tuple[str, int, int]]  # text, number, bytes of the file read so far


def _text(path: Path, source: Source, domain: str) -> _Records:
    with path.open("rb") as file:
        passage: list[bytes] = []
        size, number = 0, 1

        def finish() -> tuple[str, int, int]:
            nonlocal size, number
            content = b"".join(passage)
            try:
                text = content.decode()
            except UnicodeDecodeError as error:
                where = file.tell() - len(content) + error.start
                raise BadInputError(f"{path}: byte {where} is not UTF-8 text; convert the file to UTF-8") from None
            passage.clear()
            size, number = 0, number + 1
            return text, number - 1, file.tell()

        # A limit on the line: a file without line ends must not be read whole either.
        while line := file.readline(PASSAGE_BYTES):
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


def _lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """Lines of a plain, .gz or .zst file, and the offset read to on disk."""
    with path.open("rb") as raw:
        stream: IO[bytes] | gzip.GzipFile = raw
        if path.suffix == ".gz":
            stream = gzip.GzipFile(fileobj=raw)
        lines = _zstd_lines(raw) if path.suffix in (".zst", ".zstd") else stream
        for line in lines:
            yield line, raw.tell()


def _zstd_lines(raw: IO[bytes]) -> Iterator[bytes]:
    """Lines of a zstd file of any number of frames.

    The library's own stream reader takes a file that ends in the middle of a frame for one that ends there.
    """
    import zstandard

    rest, frame = b"", None
    while chunk := raw.read(1 << 17):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            *lines, rest = (rest + frame.decompress(chunk)).split(b"\n")
            for line in lines:
                yield line + b"\n"
            chunk, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("the file ends in the middle of a zstd frame")
    if rest:
        yield rest


def _jsonl(path: Path, source: Source, domain: str) -> _Records:
    number = 0
    lines = _lines(path)
    while True:
        try:
            entry = next(lines, None)
        except (OSError, EOFError):
            raise
        except Exception as error:  # zlib.error and ZstdError share no narrower base
            raise BadInputError(f"{path}: damaged after line {number}: {_reason(error)}") from None
        if entry is None:
            return
        line, offset = entry
        number += 1
        if line.strip():
            yield _field(line, source.field, f"{path}:{number}", domain), number, offset


def _field(record: bytes, field: str, where: str, domain: str) -> str:
    """The text in a JSON record."""
    try:
        content = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{where}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadInputError(f"{where}: expected a JSON object with a field '{field}', not {type(content).__name__}")
    if field not in content:
        raise _no_field(where, field, list(content), domain)
    return _string(content[field], field, where)


def _no_field(where: str, field: str, known: list[str], domain: str) -> BadInputError:
    near = difflib.get_close_matches(field, known, 1) or known[:5]
    return BadInputError(
        f"{where}: no field '{field}'; data.sources.{domain}.field may be one of: {', '.join(near) or 'none'}"
    )


def _string(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise BadInputError(f"{where}: field '{field}' is {type(value).__name__}, not text")
    return value


def _parquet(path: Path, source: Source, domain: str) -> _Records:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BadInputError(
            f"data.sources.{domain}: kind parquet needs the extra: pip install 'blobjax[parquet]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if source.field not in names:
                raise _no_field(str(path), source.field, names, domain)
            size, rows, number = path.stat().st_size, max(file.metadata.num_rows, 1), 0
            for batch in file.iter_batches(batch_size=1024, columns=[source.field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _string(value, source.field, f"{path}: row {number}"), number, size * number // rows
    except pyarrow.ArrowException as error:
        raise BadInputError(f"{path}: not a readable Parquet file: {_reason(error)}") from None


def _array_record(path: Path, source: Source, domain: str) -> _Records:
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        try:
            size, records = path.stat().st_size, reader.num_records()
            for start in range(0, records, 256):
                for number, record in enumerate(reader.read(start, min(start + 256, records)), start + 1):
                    text = _field(record, source.field, f"{path}: record {number}", domain)
                    yield text, number, size * number // records
        finally:
            reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
        raise BadInputError(f"{path}: not a readable ArrayRecord file: {_reason(error)}") from None


def _huggingface(source: Source, domain: str) -> Iterator[Document]:
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
            f"data.sources.{domain}: dataset '{source.path}' cannot be loaded: {_reason(error)}"
        ) from None
    if source.field not in rows.column_names:
        raise _no_field(source.path, source.field, rows.column_names, domain)
    for number, row in enumerate(rows.select_columns([source.field]), 1):
        yield Document(_string(row[source.field], source.field, f"{source.path}: row {number}"), source.path, number, 0)


_READERS: dict[str, Callable[[Path, Source, str], _Records]] = {
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "array_record": _array_record,
}
