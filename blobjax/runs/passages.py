"""The windows of data that a run's rollbacks have left out, as they are written down.

They decide which data comes next, so they stand in two places: in passed_over.json, from before training goes on after
a rollback, and in the record of every checkpoint that is saved afterwards. Windows are only ever added. So what a
checkpoint records is where the file's list begins, and what the file has beyond it lies ahead of the checkpoint.
Checkpoints from before that record nothing; then the `rollback` events in events.jsonl take the place of a lost file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from blobjax.config import BadInputError, HaltedError
from blobjax.runs.directory import RunDirectory, read_jsonl, write_atomically

Passage = dict[str, Any]
"""A window that a rollback left out: `first` and `last` (excluded) sequence of the stream, the `step` it was decided at
and the `reason`."""

# Sequences are counted in int64.
_LARGEST = 2**63


def checked(passages: Any) -> list[Passage]:
    """What was read, if it is a list of windows.

    Raises:
      ValueError, KeyError, TypeError: it is not.
    """
    if not isinstance(passages, list):
        raise ValueError("no list of windows")
    for each in passages:
        first, last = each["first"], each["last"]
        if type(first) is not int or type(last) is not int or not 0 <= first < last < _LARGEST:
            raise ValueError("no window")
    return passages


def read_passages(path: Path) -> list[Passage]:
    """The windows a run has left out so far; none where there is no file.

    Raises:
      BadInputError: the file cannot be made sense of, or is not as it was written.
      HaltedError: it cannot be read at the moment.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        # Which says nothing against the file: to remove it would be wrong.
        raise HaltedError(
            f"{path} cannot be read at the moment ({error.strerror or error}); make it readable, and run the same "
            "command to go on"
        ) from None
    try:
        content = json.loads(text.decode("utf-8"))
        passages = checked(content["windows"])
        # A file from before digests has none.
        if content.get("digest", digest(passages)) == digest(passages):
            return passages
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise BadInputError(
        f"{path} does not hold the windows of data that this run has left out, as they were written; restore it, or "
        "remove it: the run then takes the windows that its newest checkpoint records, or, where that is from before "
        "they were recorded, those of the rollbacks in events.jsonl"
    )


def passages_of(directory: RunDirectory) -> list[Passage]:
    """The windows a run has left out so far: from their file, or from the `rollback` events where it is gone.

    Raises:
      BadInputError: there is a rollback, and nothing says which data it left out.
      HaltedError: the file cannot be read at the moment.
    """
    path = directory.passed_over
    if path.exists():
        return read_passages(path)
    rollbacks = [event for event in read_jsonl(directory.events) if event.get("event") == "rollback"]
    try:
        return checked([_passage(event) for event in rollbacks])
    except (ValueError, KeyError, TypeError):
        raise BadInputError(
            f"{path} is gone, and neither a checkpoint nor {directory.events.name} says which data was left out after "
            "a rollback; restore the file, or begin a new run with logging.run_dir=…"
        ) from None


def _passage(rollback: dict[str, Any]) -> Passage:
    first, last = rollback["passed_over"]
    return {"first": first, "last": last, "step": rollback["step"], "reason": rollback["reason"]}


def write_passages(path: Path, passages: list[Passage]) -> None:
    """Makes these the windows that `read_passages` finds."""
    write_atomically(path, json.dumps({"windows": passages, "digest": digest(passages)}, indent=1) + "\n")


def digest(passages: list[Passage]) -> str:
    """SHA-256, hexadecimal, which tells these windows from any others: it finds accidents, not forgeries."""
    return hashlib.sha256(json.dumps(pairs(passages)).encode()).hexdigest()


def pairs(passages: list[Passage]) -> list[tuple[int, int]]:
    """First and last (excluded) sequence of each window."""
    return [(each["first"], each["last"]) for each in passages]
