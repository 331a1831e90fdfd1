"""Checkpoints as files: which there are, what each says of itself, which are kept, and how one is put aside.

Nothing here reads an array or imports jax, so that looking at a run costs nothing. A checkpoint is a numbered folder
that Orbax renames once it is whole; what goes wrong with it goes wrong later.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blobjax.config.schema import Checkpoint
from blobjax.runs.passages import checked

# Orbax writes this file last into a checkpoint's folder; `custom_metadata` in it is ours.
COMMITTED = "_CHECKPOINT_METADATA"
# The trees of a checkpoint; it has no `frozen` and no `round` where the state has none.
TREES = ("params", "optimizer", "frozen", "round", "progress")
_DTYPE = re.compile(r"[a-z][a-z0-9_]*")
_STEP = re.compile(r"0|[1-9][0-9]{0,9}")
# What Orbax has in the name of a folder that it has not finished.
_UNFINISHED = ".orbax-checkpoint-tmp"
# Errors that say something of the storage or of this machine, and nothing of the file that was asked for.
_NOT_THE_FILE = {
    getattr(errno, name)
    for name in (
        *("EACCES", "EPERM", "EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ENODEV", "ENXIO", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "EINTR", "EREMOTEIO"),
    )
    if hasattr(errno, name)
}


NOT_FINITE = "its parameters are not finite"


class BadCheckpointError(Exception):
    """A checkpoint that is not, or no longer, what was saved; the text says in one line what was found."""


@dataclass(frozen=True)
class Leaf:
    """One array of a checkpoint.

    Attributes:
      shape: of the whole array.
      dtype: its name, such as bfloat16.
      fingerprint: 16 hexadecimal digits (`checkpointing/fingerprint.py`).
    """

    shape: tuple[int, ...]
    dtype: str
    fingerprint: str


@dataclass(frozen=True)
class Record:
    """What a checkpoint says of itself, and everything it is checked against.

    Attributes:
      data: fingerprint of the data that `sequences` counts in.
      step: optimizer steps taken; None in a checkpoint from before fingerprints.
      sequences: position of the data stream; None likewise.
      metric: what `checkpoint.keep_best` ranks it by; None where nothing was evaluated yet.
      leaves: path, such as `params/blocks/mlp/up`, to array; None likewise.
      finite: whether all parameters are finite; None in a checkpoint from before it was recorded.
      inputs: what else decides how the run goes on (`inputs.py`); None likewise.
      time: when it was committed, in seconds since 1970.
    """

    data: str
    step: int | None = None
    sequences: int | None = None
    metric: float | None = None
    leaves: Mapping[str, Leaf] | None = None
    time: float = 0.0
    finite: bool | None = None
    inputs: Mapping[str, Any] | None = None

    def as_metadata(self) -> dict[str, Any]:
        """As it stands in the checkpoint, with a digest: a damaged record must not pass for another config's."""
        metric = self.metric if self.metric is not None and math.isfinite(self.metric) else None
        leaves = {path: asdict(leaf) for path, leaf in (self.leaves or {}).items()}
        content: dict[str, Any] = {"step": self.step, "sequences": self.sequences, "metric": metric, "leaves": leaves}
        content |= {"finite": self.finite, "inputs": self.inputs}
        return {"data": self.data, "record": content, "digest": _digest(self.data, content)}

    def contents(self) -> str:
        """16 hexadecimal digits that tell these arrays at this place in this data from all others."""
        leaves = {path: asdict(leaf) for path, leaf in (self.leaves or {}).items()}
        return _digest(self.data, [self.sequences, leaves])[:16]


def _digest(data: str, content: Any) -> str:
    # Through JSON once, so that tuples are what they are read back as.
    return hashlib.sha256(json.dumps([data, json.loads(json.dumps(content))], sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> Record:
    """What a checkpoint says of itself.

    Raises:
      BadCheckpointError: it says nothing, something damaged, or that it is of another step than its folder's name.
      OSError: it cannot be read at the moment.
    """
    path = folder / COMMITTED
    try:
        if path.exists() and not path.is_file():
            raise BadCheckpointError(f"{COMMITTED} is no file")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if folder.is_dir():
            raise BadCheckpointError(f"{COMMITTED} is missing") from None
        raise
    except UnicodeDecodeError as error:
        raise BadCheckpointError(f"{COMMITTED} is damaged ({error})") from None
    try:
        whole = json.loads(text)
        ours, time = whole["custom_metadata"], float(whole["commit_timestamp_nsecs"] or 0) / 1e9
        if "record" not in ours and "digest" not in ours:
            return Record(str(ours["data"]), time=time)
        content = ours["record"]
        if ours["digest"] != _digest(ours["data"], content):
            raise BadCheckpointError(f"{COMMITTED} is damaged (its record does not match its digest)")
        leaves = {path: _leaf(path, entry) for path, entry in content["leaves"].items()}
        if not (leaves and isinstance(ours["data"], str) and all(map(_count, (content["step"], content["sequences"])))):
            raise ValueError("its fields are not of their kinds")
        # The folder's name says which checkpoint is the newest: a renamed or copied one must not pass for another.
        if _STEP.fullmatch(folder.name) and content["step"] != int(folder.name):
            raise BadCheckpointError(f"it is the checkpoint of step {content['step']}, under another's name")
        metric = None if content["metric"] is None else float(content["metric"])
        finite, inputs = content.get("finite"), content.get("inputs")
        if not isinstance(finite, bool | None) or not isinstance(inputs, dict | None):
            raise ValueError("its fields are not of their kinds")
        if inputs is not None:
            checked(inputs["passed_over"])
        return Record(ours["data"], content["step"], content["sequences"], metric, leaves, time, finite, inputs)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadCheckpointError(f"{COMMITTED} is damaged ({type(error).__name__}: {error})"[:200]) from None


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _leaf(path: str, entry: Any) -> Leaf:
    shape, dtype, fingerprint = entry["shape"], entry["dtype"], entry["fingerprint"]
    known = path.partition("/")[0] in TREES
    if not (known and all(map(_count, shape)) and _DTYPE.fullmatch(dtype) and isinstance(fingerprint, str)):
        raise ValueError(f"{path} is no array")
    return Leaf(tuple(shape), dtype, fingerprint)


def numbered(checkpoints: Path) -> list[int]:
    """Steps that have a folder, ascending, whatever is in it."""
    if not checkpoints.is_dir():
        return []
    folders = (each for each in checkpoints.iterdir() if each.is_dir() and not each.is_symlink())
    # A step's own name and no other: not 0012, nor digits of other scripts, nor more than a step can be.
    return sorted(int(name) for each in folders if _STEP.fullmatch(name := each.name) and int(name) < 2**31)


def committed(checkpoints: Path) -> list[int]:
    """Steps whose folder Orbax finished, ascending."""
    return [step for step in numbered(checkpoints) if (checkpoints / str(step) / COMMITTED).is_file()]


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder that can be seen: it may be in the course of being deleted."""
    total = 0
    with suppress(OSError):  # a folder that is deleted while it is walked through
        for each in (path, *path.rglob("*")):
            with suppress(OSError):
                total += each.stat().st_size if each.is_file() else 0
    return total


def newest_finite(checkpoints: Path) -> int | None:
    """The newest step whose checkpoint can be read and is not known to hold parameters that are not finite."""
    for step in reversed(committed(checkpoints)):
        with suppress(BadCheckpointError, OSError):
            if read_record(checkpoints / str(step)).finite is not False:
                return step
    return None


def kept(metrics: Mapping[int, float | None], policy: Checkpoint, not_finite: Collection[int] = ()) -> dict[int, str]:
    """Which checkpoints the rules keep, and the first reason why.

    Args:
      metrics: each step that has a checkpoint, with what it is ranked by.
      not_finite: those whose parameters are not finite. They are kept only while there are fewer than
        `checkpoint.keep` others, so that none of them takes the place of a good one.
    """
    steps, best = sorted(metrics.keys() - set(not_finite)), policy.keep_best
    reasons: dict[int, str] = {}
    if best is not None:
        ranked = {step: value for step in steps if (value := metrics[step]) is not None}
        sign = 1 if best.mode == "min" else -1
        # Of two with the same evaluation the earlier is the nearer to it.
        for step in sorted(ranked, key=lambda step: (sign * ranked[step], step))[: best.count]:
            reasons[step] = f"best {best.metric} ({ranked[step]:.4g})"
    for step in steps:
        if policy.keep_every and step % policy.keep_every == 0:
            reasons[step] = f"every {policy.keep_every} steps"
    for step in steps[-policy.keep :]:
        reasons.setdefault(step, f"one of the newest {policy.keep}")
    room = max(policy.keep - len(steps), 0)
    for step in sorted(not_finite)[-room:] if room else ():
        reasons[step] = f"one of the newest {policy.keep}, as there are fewer that are finite"
    return dict(sorted(reasons.items()))


def surplus(checkpoints: Path, policy: Checkpoint) -> list[int]:
    """Steps of the checkpoints that no rule keeps, ascending."""
    records = {}
    for step in committed(checkpoints):
        try:
            records[step] = read_record(checkpoints / str(step))
        except (BadCheckpointError, OSError):
            continue  # whoever wants it will find out, and put it aside
    stay = kept_of(records, policy)
    return [step for step in records if step not in stay]


def kept_of(records: Mapping[int, Record], policy: Checkpoint) -> dict[int, str]:
    """As `kept`, of what checkpoints say of themselves."""
    ranked_by = policy.keep_best.metric if policy.keep_best else None
    metrics = {
        # What was ranked by another metric than now cannot be compared.
        step: record.metric if record.inputs is None or record.inputs.get("ranked_by") == ranked_by else None
        for step, record in records.items()
    }
    return kept(metrics, policy, [step for step, record in records.items() if record.finite is False])


def delete(folder: Path) -> None:
    """Deletes one checkpoint; moved away first, so that a process killed at any moment leaves whole ones only."""
    # Beside it, as another directory may be on another file system.
    aside = folder.parent / ".blobjax-undone"
    if aside.is_symlink() or (aside.exists() and not aside.is_dir()):
        aside.unlink()
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def quarantine(folder: Path) -> Path:
    """Moves one checkpoint to RUN/quarantine/STEP-N, and returns where; nothing there is ever deleted."""
    away = folder.parent.parent / "quarantine"
    away.mkdir(exist_ok=True)
    number = 1
    while os.path.lexists(away / f"{folder.name}-{number}"):
        number += 1
    return Path(shutil.move(folder, away / f"{folder.name}-{number}"))


def clear_unfinished(checkpoints: Path) -> None:
    """Deletes what a save that was killed or failed has left; nobody may be saving."""
    for each in checkpoints.glob(f"*{_UNFINISHED}*"):
        if each.is_symlink() or not each.is_dir():  # a save would follow the one, and fail at the other
            each.unlink(missing_ok=True)
        shutil.rmtree(each, ignore_errors=True)


def probe(checkpoints: Path) -> str:
    """Why nothing can be written there, in one line; empty if it can."""
    try:
        # A save that is being written when the run's directory vanishes makes it anew, but not what is in it: the run
        # would go on, and finish, in a directory that is no run's.
        if not checkpoints.is_dir() or not (checkpoints.parent / "config.yaml").is_file():
            return f"{checkpoints} is gone"
        with tempfile.NamedTemporaryFile(dir=checkpoints, prefix=".blobjax-probe-") as file:
            file.write(b"probe")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{checkpoints} cannot be written: {error.strerror or error}"
    return ""


def check_kinds(folder: Path) -> None:
    """Refuses a checkpoint that holds anything but directories and files, or a link that leads out of it.

    Who opens a named pipe waits for its other end, and may wait for ever. (TensorStore itself refuses `..` in a
    manifest.)

    Raises:
      BadCheckpointError: there is such a thing.
    """
    root = folder.resolve()
    for each in folder.rglob("*"):
        if each.is_symlink() and not each.resolve().is_relative_to(root):
            raise BadCheckpointError(f"{each.relative_to(folder)} is a link that leads out of the checkpoint")
        if not (each.is_dir() or each.is_file()) and (each.is_symlink() or each.exists()):
            raise BadCheckpointError(f"{each.relative_to(folder)} is neither a file nor a directory")


def unreadable(folder: Path) -> OSError | None:
    """Why this process cannot read a checkpoint at the moment, where that says nothing against the checkpoint.

    A directory that is not there is such a reason too: a file system that has been unmounted looks like that.
    """
    try:
        for each in [folder, *folder.rglob("*")]:
            if each.is_dir():
                os.listdir(each)
            elif each.is_file():
                with each.open("rb") as file:
                    file.read(1)
        if not folder.is_dir():
            return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    except OSError as error:
        return error if error.errno in _NOT_THE_FILE else None
    return None


def first_line(error: BaseException) -> str:
    """What went wrong at the bottom of it, in one line of at most 200 characters."""
    if isinstance(error, BadCheckpointError):
        return str(error)[:200]
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    # TensorStore says where it is with every step it took to get there.
    line = re.sub(
        r' in OCDBT database at local file "(?:[^"\\]|\\.)*"| \[tensorstore_spec=.*', "", lines[0] if lines else ""
    )
    return f"{type(error).__name__}: {line}"[:200]


def newest(steps: Sequence[int], last: int | None) -> list[int]:
    """Those not after a step (None: all), the newest first."""
    return [step for step in reversed(steps) if last is None or step <= last]
