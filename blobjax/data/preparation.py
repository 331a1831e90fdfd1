"""Preparation: every domain of the mixture tokenised once, into flat token shards beside a manifest.

A domain's folder is named after everything that decides its tokens, so that changing a file, the tokenizer or the
held-out fraction makes another folder, and nothing ever has to be invalidated. It is built under another name and
renamed when it is whole: a folder that has its name is finished.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blobjax.config import BadInputError, Config
from blobjax.config.paths import expanded, home
from blobjax.config.schema import Source
from blobjax.data import sources
from blobjax.data.examples import assemble
from blobjax.data.progress import Progress, silent
from blobjax.data.scratch import alone, publish, remove_left_overs, scratch_folder
from blobjax.data.shards import ShardWriter, open_shard, verify_shard
from blobjax.data.sources import Document
from blobjax.data.split import held_out_position
from blobjax.data.tokenizer import Tokenizer, load, token_dtype

# Raised when the same sources come to other tokens or another split. 2: the split reads a document's normal form.
FORMAT = 2
SPLITS = ("train", "held_out")
# Text handed to the tokenizer at once: enough for it to use all cores, little enough to stay out of the way.
_BATCH_CHARACTERS = 1 << 22


def _marks(split: str) -> str:
    """Name of the shard that says what of a split's examples is learned."""
    return f"{split}_marks"


@dataclass(frozen=True)
class Domain:
    """One prepared domain.

    Attributes:
      name: as in the mixture.
      folder: holds manifest.json and the shards.
      manifest: documents, bytes and tokens of each split, checksums, and where they came from.
    """

    name: str
    folder: Path
    manifest: dict[str, Any]

    def tokens(self, split: str) -> np.ndarray:
        """The flat tokens of `train` or `held_out`, memory-mapped; every document opens with the separator."""
        return open_shard(self.folder, self.manifest["shards"][split])

    def marks(self, split: str) -> np.ndarray | None:
        """For each token its `examples.COUNTS` and `examples.OPENS`, uint8; None where the domain is text."""
        entry = self.manifest["shards"].get(_marks(split))
        return None if entry is None else open_shard(self.folder, entry)

    @property
    def notes(self) -> list[str]:
        """What was skipped when it was prepared, a line each."""
        rows, paths = self.manifest.get("skipped_rows", 0), self.manifest.get("skipped_paths", [])
        field, path = (self.manifest["source"][key] for key in ("field", "path"))
        lines = []
        if rows:
            lines.append(f"domain '{self.name}': skipped {rows:,} rows whose field '{field}' is null or missing")
        if paths:
            lines.append(f"domain '{self.name}': skipped what '{path}' matches and is no file: {', '.join(paths)}")
        return lines


@dataclass(frozen=True)
class Prepared:
    """The mixture's domains on disk, and the tokenizer they were written with."""

    domains: dict[str, Domain]
    tokenizer: Tokenizer

    @property
    def fingerprint(self) -> str:
        """Tells these tokens from any others, wherever they lie: SHA-256 over the shards' checksums."""
        shards = {name: domain.manifest["shards"] for name, domain in sorted(self.domains.items())}
        return hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()

    @property
    def notes(self) -> list[str]:
        """What was skipped in preparation, a line each."""
        return [note for domain in self.domains.values() for note in domain.notes]


def prepare(config: Config, progress: Progress = silent) -> Prepared:
    """Writes the token shards of every domain of the mixture, or opens and verifies those that are there.

    Processes may do so at once: one prepares, the others wait for it. A preparation that was killed leaves nothing that
    looks finished, and domains finished before it are not done again.

    Args:
      config: `data` and `model.vocab_size` are read.
      progress: told how far each domain is, if it has to be prepared.

    Raises:
      BadInputError: a source, the tokenizer, a shard or the folder cannot be used; nothing half-written is left.
    """
    tokenizer = load(config)
    root = folder(config)
    plans: dict[str, _Plan] = {}
    problems: list[str] = []
    for name in config.data.mixture:
        try:
            plans[name] = _plan(config, name, tokenizer)
        except BadInputError as error:
            problems += error.problems
    if problems:
        raise BadInputError(*problems)
    return Prepared({name: _domain(root, plan, tokenizer, progress) for name, plan in plans.items()}, tokenizer)


def folder(config: Config) -> Path:
    """Where prepared domains are kept: data.prepared_dir, or blobjax in the user's cache directory.

    Raises:
      BadInputError: it is a URL, or there is no home directory that would hold it.
    """
    if config.data.prepared_dir:
        return expanded(config.data.prepared_dir, "data.prepared_dir")
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return expanded(cache, "XDG_CACHE_HOME") / "blobjax"
    instead = (
        "give data.prepared_dir=FOLDER for prepared data, and for compiled programs compute.compilation_cache=FOLDER"
    )
    return home(instead) / ".cache" / "blobjax"


@dataclass(frozen=True)
class _Plan:
    domain: str
    source: Source
    source_hash: str
    source_bytes: int
    held_out_fraction: float
    max_document_bytes: int
    key: str

    @property
    def folder_name(self) -> str:
        return f"{self.domain}-{self.key}"


def _plan(config: Config, domain: str, tokenizer: Tokenizer) -> _Plan:
    """What will be prepared, and the key that everything deciding its tokens goes into."""
    source = sources.resolve(config, domain)
    origin = sources.fingerprint(source, domain)
    source_hash = _hash(origin)
    fraction = config.data.held_out_fraction
    # long_examples decides which rows are made of the tokens, not the tokens.
    asked = source.model_dump(exclude={"long_examples"})
    key = _hash([FORMAT, asked, source_hash, tokenizer.fingerprint, fraction])
    in_files = source.kind not in ("embedded", "huggingface")
    size = sum(size for _, size, _ in origin) if in_files else 0
    return _Plan(domain, source, source_hash, size, fraction, config.data.max_document_bytes, key[:16])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _domain(root: Path, plan: _Plan, tokenizer: Tokenizer, progress: Progress) -> Domain:
    final = root / plan.folder_name
    if not final.exists():
        try:
            root.mkdir(parents=True, exist_ok=True)
            with alone(root / f".{plan.folder_name}.lock") as locked:
                if locked:
                    remove_left_overs(final)
                if not final.exists():
                    _build(final, plan, tokenizer, progress)
        except OSError as error:
            raise BadInputError(
                f"data.prepared_dir '{root}' cannot be written: {error.strerror or error}; "
                "give another folder with data.prepared_dir=FOLDER"
            ) from None
    path = final / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        for entry in (manifest["shards"][split] for split in SPLITS):
            verify_shard(final, entry)
        if plan.source.kind == "examples":
            for split in SPLITS:
                verify_shard(final, manifest["shards"][_marks(split)])
    except (OSError, ArithmeticError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInputError(f"{path}: damaged: {error}; delete the folder {final} and it is prepared again") from None
    return Domain(plan.domain, final, manifest)


def _build(final: Path, plan: _Plan, tokenizer: Tokenizer, progress: Progress) -> None:
    """Prepares one domain in a folder of another name, then gives it its own."""
    with scratch_folder(final) as scratch:
        progress(plan.domain, 0, plan.source_bytes)
        manifest = _write(scratch, plan, tokenizer, progress)
        with (scratch / "manifest.json").open("x") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        publish(scratch, final, proof="manifest.json")
        size = plan.source_bytes or sum(manifest["bytes"].values())
        progress(plan.domain, size, size)


def _write(scratch: Path, plan: _Plan, tokenizer: Tokenizer, progress: Progress) -> dict[str, Any]:
    """Tokenises the domain into train.bin and held_out.bin; returns the manifest."""
    dtype = token_dtype(tokenizer.vocab_size)
    writers = {split: ShardWriter(scratch / f"{split}.bin", dtype) for split in SPLITS}
    if plan.source.kind == "examples":
        writers |= {
            _marks(split): ShardWriter(scratch / f"{_marks(split)}.bin", np.dtype(np.uint8)) for split in SPLITS
        }
    separator = np.array([tokenizer.separator], dtype)
    counts = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    nuls = empty = 0
    nearest = 1.0  # the smallest hash position: the fraction that would hold out one document
    documents = sources.Documents(plan.source, plan.domain, plan.max_document_bytes)
    for batch in _batches(documents):
        encoded = [_encode(document) for document in batch]
        tokens = tokenizer.encode_batch([piece.text for document in batch for piece in document.pieces])
        pieces = iter(tokens)
        for document, text in zip(batch, encoded, strict=True):
            each = [next(pieces) for _ in document.pieces]
            ids = each[0] if len(each) == 1 else np.concatenate(each)
            nuls += text.count(b"\0")
            text = text.replace(b"\0", b"")
            if not text:
                empty += 1
                continue
            if tokenizer.bytes_per_token.take(ids).sum(dtype=np.int64) != len(text):
                raise BadInputError(
                    f"{document.path}: document {document.number}: the tokenizer's pieces do not add up to the text's "
                    f"{len(text)} bytes, so bits per byte would not be exact; use another tokenizer"
                )
            position = held_out_position(document.text)
            nearest = min(nearest, position)
            split = "held_out" if position < plan.held_out_fraction else "train"
            counts[split]["documents"] += 1
            counts[split]["bytes"] += len(text)
            if plan.source.kind == "examples":
                ids, marks = assemble(document.pieces, each, tokenizer.separator)
                writers[split].write(ids)
                writers[_marks(split)].write(marks)
            else:
                writers[split].write(separator)
                writers[split].write(ids)
        written = sum(count["bytes"] for count in counts.values())
        # Below the total while there is still something to do, so that reaching it means the end.
        done = batch[-1].done or written
        progress(plan.domain, min(done, plan.source_bytes - 1) if plan.source_bytes else done, plan.source_bytes)
    _check_split(plan, counts, nearest, documents.skipped_rows)
    return {
        "format": FORMAT,
        "domain": plan.domain,
        "source": plan.source.model_dump(exclude={"long_examples"}),
        "source_fingerprint": plan.source_hash,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "separator": tokenizer.separator,
        },
        "held_out_fraction": plan.held_out_fraction,
        "documents": {split: counts[split]["documents"] for split in SPLITS},
        "bytes": {split: counts[split]["bytes"] for split in SPLITS},
        "dropped_nuls": nuls,
        "empty_documents": empty,
        "skipped_rows": documents.skipped_rows,
        "skipped_paths": documents.skipped_paths,
        "shards": {name: writer.close() for name, writer in writers.items()},
    }


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(document: Document) -> bytes:
    try:
        return document.text.encode()
    except UnicodeEncodeError:
        raise BadInputError(
            f"{document.path}: document {document.number} holds half a surrogate pair, which is no text; remove it"
        ) from None


def _check_split(plan: _Plan, counts: dict[str, dict[str, int]], nearest: float, skipped: int) -> None:
    """Both splits need a document: one to learn from, one to be judged by."""
    train, held_out = (counts[split]["documents"] for split in SPLITS)
    where = f"domain '{plan.domain}' ({plan.source.path})"
    if train + held_out == 0:
        rows = f"; {skipped:,} of its rows have no field '{plan.source.field}'" if skipped else ""
        raise BadInputError(f"{where} holds no text{rows}")
    if train + held_out == 1:
        raise BadInputError(
            f"{where} is a single document; give at least two, so that one can be held out for evaluation"
        )
    if not held_out:
        enough = float(f"{nearest * 1.01:.2g}") + 1e-4
        raise BadInputError(
            f"{where}: none of its {train} documents is held out at data.held_out_fraction={plan.held_out_fraction:g}; "
            f"{enough:.4g} would hold out one"
        )
    if not train:
        raise BadInputError(
            f"{where}: all of its {held_out} documents are held out at data.held_out_fraction="
            f"{plan.held_out_fraction:g}; lower it"
        )
