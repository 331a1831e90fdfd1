"""Sources: where a domain's documents come from.

Documents come in an order fixed by the sorted paths, so that all hosts prepare the same tokens.
"""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from blobjax.config import BadInputError, Config
from blobjax.config.schema import Source
from blobjax.data import embedded, files
from blobjax.data.examples import Piece, pieces_of
from blobjax.data.readers import READERS, Reading, read_huggingface, reason, refuse_arrow


class Document(NamedTuple):
    """A text, where it stands, and how far the reader is.

    Attributes:
      text: the document.
      path: the file, or the name of what has no file.
      number: line (jsonl, examples), record (parquet, array_record, huggingface) or document (text, embedded), from 1.
      done: bytes of source files read by now, as they are on disk.
      pieces: the parts that are tokenised one by one: those of an example, or the whole text.
    """

    text: str
    path: str
    number: int
    done: int
    pieces: list[Piece]


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
        paths = files.find(source, domain).paths
    stats = [(path, path.stat()) for path in paths if path.is_file()]
    return [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


class Documents:
    """One pass over a domain's documents.

    Args:
      source, domain: as `resolve` has them.
      max_bytes: of one record (data.max_document_bytes).

    Attributes:
      skipped_rows: rows without text that were skipped by now (data.sources.DOMAIN.nulls).
      skipped_paths: what the path or glob matches that is no file, in words.

    Raises:
      BadInputError: while iterating: a file cannot be read, or a record is not what it should be; says which.
    """

    def __init__(self, source: Source, domain: str, max_bytes: int) -> None:
        self._source, self._reading = source, Reading(domain, source, max_bytes)
        self.skipped_rows = 0
        self.skipped_paths: list[str] = []

    def __iter__(self) -> Iterator[Document]:
        for text, path, number, done in self._records():
            if text is None:
                self.skipped_rows += 1
            elif self._source.kind == "examples":
                pieces = pieces_of(json.loads(text), f"{path}:{number}")
                yield Document("".join(piece.text for piece in pieces), path, number, done, pieces)
            else:
                yield Document(text, path, number, done, [Piece(text, True)])

    def _records(self) -> Iterator[tuple[str | None, str, int, int]]:
        source = self._source
        if source.kind == "embedded":
            for number, text in enumerate(embedded.documents(source.path), 1):
                yield text, source.path, number, 0
        elif source.kind == "huggingface":
            for row, number, _ in read_huggingface(self._reading):
                yield row, source.path, number, 0
        else:
            paths, self.skipped_paths = files.find(source, self._reading.domain)
            done = 0
            for path in paths:
                try:
                    refuse_arrow(path)
                    for row, number, offset in READERS[source.kind](path, self._reading):
                        yield row, str(path), number, done + offset
                    done += path.stat().st_size
                except (OSError, EOFError) as error:
                    raise BadInputError(f"{path}: cannot be read: {reason(error)}") from None
