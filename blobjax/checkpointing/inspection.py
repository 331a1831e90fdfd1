"""`blobjax checkpoint list|verify|show|prune RUN`: a run's checkpoints from their files, with no model and no jax."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from blobjax.checkpointing import files, stored
from blobjax.checkpointing.files import BadCheckpointError, Record
from blobjax.config import BadInputError, Config, HaltedError
from blobjax.config.paths import check_readable
from blobjax.config.sizes import in_words
from blobjax.runs.directory import RunDirectory


def _open(run: str) -> tuple[RunDirectory, Config]:
    directory = RunDirectory(run)
    check_readable(directory.path)
    if not directory.config.is_file():
        raise BadInputError(f"{run} is not a run directory: it has no config.yaml; give one such as runs/laptop")
    config = directory.previous_config()
    assert config is not None
    return directory, config


def _steps(directory: RunDirectory, wanted: int | None) -> list[int]:
    with _reading(directory.checkpoints):
        steps = files.numbered(directory.checkpoints)
    if wanted is not None and wanted not in steps:
        known = ", ".join(map(str, steps)) or "none"
        raise BadInputError(f"{directory.path} has no checkpoint of step {wanted}; there are: {known}")
    return steps if wanted is None else [wanted]


@contextmanager
def _reading(folder: Path, verb: str = "read") -> Iterator[None]:
    """Says in one line what a folder cannot be read for."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(f"{folder}/.")  # one that may be listed and not entered looks empty otherwise
        yield
    except OSError as error:
        raise _cannot(f"{folder} cannot be {verb}", error) from None


def _cannot(what: str, error: BaseException) -> Exception:
    """A permission is the user's to get; what else a storage says may pass."""
    line = f"{what} at the moment ({files.first_line(error)})"
    return BadInputError(line) if isinstance(error, PermissionError) else HaltedError(line)


def _wrong(directory: RunDirectory, folder: Path, error: Exception) -> str:
    """What an error says of a checkpoint, in one line; empty where the checkpoint was removed meanwhile.

    Raises:
      BadInputError: the checkpoint may not be read.
      HaltedError: it cannot be read at the moment, which says nothing about it.
    """
    cause = files.unreadable(folder)
    if isinstance(cause, FileNotFoundError) and directory.config.is_file():
        return ""
    if cause is not None or isinstance(error, MemoryError):
        raise _cannot(f"checkpoint {folder} cannot be read", cause or error) from None
    return files.first_line(error)


def _record(directory: RunDirectory, step: int) -> Record | str:
    """What a checkpoint says of itself, or what is wrong with it; raises, and is empty, as `_wrong`."""
    folder = directory.checkpoints / str(step)
    try:
        return files.read_record(folder)
    except BadCheckpointError as bad:
        return str(bad)
    except OSError as error:
        return _wrong(directory, folder, error)


def describe(run: str) -> list[dict[str, Any]]:
    """One object for each checkpoint, the oldest first, then one for each that was put aside.

    Raises:
      BadInputError: there is no run.
      HaltedError: something cannot be read at the moment.
    """
    directory, config = _open(run)
    records: dict[int, Record | str] = {}
    for step in _steps(directory, None):
        if record := _record(directory, step):  # else deleted since by a run that is going on
            records[step] = record
    whole = {step: record for step, record in records.items() if isinstance(record, Record)}
    reasons = files.kept_of(whole, config.checkpoint)
    found = []
    for step, record in records.items():
        known = record if isinstance(record, Record) else None
        found.append(
            {
                "step": step,
                "bytes": files.size(directory.checkpoints / str(step)),
                "time": known.time if known else None,
                "fingerprints": known is not None and known.leaves is not None,
                "finite": known.finite if known else None,
                "kept": reasons.get(step, ""),
                "bad": "" if known else record,
            }
        )
    if directory.quarantine.is_dir():
        with _reading(directory.quarantine):
            folders = sorted(each for each in directory.quarantine.iterdir() if each.is_dir())
        for folder in folders:
            found.append({"quarantine": folder.name, "bytes": files.size(folder)})
    return found


def list_lines(found: list[dict[str, Any]]) -> Iterator[str]:
    """`describe` for people."""
    yield f"{'step':>10}  {'size':>9}  {'saved':<19}  {'fingerprints':<12}  kept as"
    for each in found:
        if "quarantine" in each:
            yield f"{each['quarantine']:>10}  {in_words(each['bytes']):>9}  in quarantine: bad; never deleted"
            continue
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["time"])) if each["time"] else "?"
        why = f"BAD: {each['bad']}" if each["bad"] else each["kept"] or "nothing: deleted after the next save"
        if each["finite"] is False:
            why = f"NOT FINITE, nothing goes on from it: {why}"
        has = "yes" if each["fingerprints"] else "no"
        yield f"{each['step']:>10}  {in_words(each['bytes']):>9}  {saved:<19}  {has:<12}  {why}"


def verify(run: str, step: int | None = None) -> Iterator[dict[str, Any]]:
    """Reads every array of every checkpoint and compares its fingerprint; one object for each checkpoint.

    What a run deletes or moves away meanwhile is neither good nor bad: `good` is None then, and `removed` true.

    Raises:
      BadInputError: there is none, so nothing that could be found good.
      HaltedError: one cannot be read at the moment, which says nothing about it.
    """
    directory, _ = _open(run)
    steps = _steps(directory, step)
    if not steps:
        raise BadInputError(f"run {run} has no checkpoint yet; train it first")
    for each in steps:
        folder = directory.checkpoints / str(each)
        began, bad, verified, removed = time.perf_counter(), "", False, False
        try:
            verified = stored.verify(folder)
        except Exception as error:
            bad = _wrong(directory, folder, error)
            removed = not bad
        yield {
            "step": each,
            "good": None if removed else not bad,
            "verified": verified,
            "removed": removed,
            "bad": bad,
            "bytes": files.size(folder),
            "seconds": time.perf_counter() - began,
        }


def verify_line(found: dict[str, Any]) -> str:
    """One object of `verify` for people."""
    if found["removed"]:
        return f"step {found['step']}: removed meanwhile, as a run does that goes on"
    if found["bad"]:
        return f"step {found['step']}: BAD: {found['bad']}"
    what = "good" if found["verified"] else "can be read; it has no fingerprints to verify it by"
    return f"step {found['step']}: {what}  ({in_words(found['bytes'])} in {found['seconds']:.1f} s)"


def show(run: str, step: int | None = None) -> dict[str, Any]:
    """What one checkpoint says it holds; the newest, unless told which. No array is read.

    Raises:
      BadInputError: there is none, or it says nothing that can be read.
      HaltedError: it cannot be read at the moment.
    """
    directory, _ = _open(run)
    steps = _steps(directory, step)
    if not steps:
        raise BadInputError(f"run {run} has no checkpoint yet; train it first")
    folder = directory.checkpoints / str(steps[-1])
    record = _record(directory, steps[-1])
    if not record:
        raise BadInputError(f"checkpoint {folder} was removed meanwhile; choose another with --step")
    if isinstance(record, str):
        raise BadInputError(f"checkpoint {folder} is bad: {record}; choose another with --step")
    if record.leaves is None:
        raise BadInputError(f"checkpoint {folder} is from before fingerprints, and does not say what it holds")
    leaves = {
        path: {
            "shape": list(leaf.shape),
            "dtype": leaf.dtype,
            "bytes": int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize,
            "fingerprint": leaf.fingerprint,
        }
        for path, leaf in record.leaves.items()
    }
    return {
        "folder": str(folder),
        "step": record.step,
        "sequences": record.sequences,
        "data": record.data,
        "metric": record.metric,
        "finite": record.finite,
        "time": record.time,
        "leaves": leaves,
    }


def show_lines(found: dict[str, Any]) -> Iterator[str]:
    """`show` for people."""
    yield f"{found['folder']}: step {found['step']}, {found['sequences']:,} sequences of data {found['data'][:16]}"
    width = max(len(path) for path in found["leaves"])
    for path, leaf in found["leaves"].items():
        shape = "×".join(map(str, leaf["shape"])) or "scalar"
        yield f"{path:<{width}}  {leaf['dtype']:<8}  {in_words(leaf['bytes']):>9}  {leaf['fingerprint']}  {shape}"
    yield f"{len(found['leaves'])} arrays, {in_words(sum(leaf['bytes'] for leaf in found['leaves'].values()))}"


def prune(run: str, keep: int | None, keep_every: int | None, dry_run: bool) -> Iterator[str]:
    """Deletes what the run's own rules do not keep, or these instead; a line for each.

    Raises:
      BadInputError: a run trains there, or something may not be read or deleted.
      HaltedError: something cannot be read or deleted at the moment.
    """
    directory, config = _open(run)
    given = {"keep": keep, "keep_every": keep_every}
    policy = config.checkpoint.model_copy(update={key: value for key, value in given.items() if value is not None})
    with nullcontext() if dry_run else directory.lock():
        with _reading(directory.checkpoints):
            gone = files.surplus(directory.checkpoints, policy)
            stay = [step for step in files.committed(directory.checkpoints) if step not in gone]
        for step in gone:
            folder = directory.checkpoints / str(step)
            if not dry_run:
                with _reading(folder, "deleted"):
                    files.delete(folder)
            yield f"{'would delete' if dry_run else 'deleted'} the checkpoint of step {step}"
    yield f"kept: {', '.join(map(str, stay)) or 'none'}"
