"""Where the user wants a file written (`--out`), checked before any work: nothing that matters is replaced."""

import os
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from blobjax.config import BadInputError
from blobjax.config.paths import expanded
from blobjax.runs.directory import write_atomically

# What runs and studies write and read again, each in its directory; and folders that are theirs alone.
_OWN = (
    *("config.yaml", "study.yaml", "summary.json", "fit-*.json", "flow.json", "halt.json", "passed_over.json"),
    *("tokenizer.json", "checkpoints", "quarantine", "energy", "tensorboard", "profile", "cells", "confirm"),
)


def check(given: str, suffix: str, inputs: Iterable[str | Path] = ()) -> Path:
    """Where a file that the user asked for goes: of a link what it leads to.

    Args:
      given: a path, as `--out` has it.
      suffix: of what the command writes, such as `.html`: of files that lie in the directory of a run or a study only
        such may be replaced, and none that the directory needs.
      inputs: files that the command reads, and directories of runs and studies.

    Raises:
      BadInputError: nothing can be written there, or what is there is no file to be replaced.
    """
    if not given.strip():
        raise BadInputError("--out: an empty name; give a file, or leave --out away")
    try:
        path = expanded(given, "--out")
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()  # newer Pythons only say that there is nothing of a name that cannot be
        refused = _refused(path.resolve(), suffix, [expanded(each, "the path") for each in inputs])
        # A link stays, and what it leads to is written.
        path = path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError, ValueError) as error:  # a name too long or with a NUL, links in a circle
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInputError(f"--out {given[:80]!r}: cannot be the name of a file: {reason}"[:300]) from None
    if refused:
        raise BadInputError(f"--out {given}: {refused}")
    return path


def write(path: Path, text: str) -> None:
    """Writes a file, whole or not at all.

    Raises:
      BadInputError: it cannot be written.
    """
    try:
        write_atomically(path, text)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be written: {error.strerror or error}; give another with --out") from None


def _refused(path: Path, suffix: str, inputs: list[Path]) -> str:
    """Why a path, all links of which are followed, is refused; empty where it is not."""
    folder = path.parent
    if path.is_symlink():  # after all were followed
        return "links in a circle cannot be the name of a file"
    if not folder.is_dir():
        return f"there is no directory {folder}; make it first"
    if path.is_dir():
        return "is a directory; give a file in it"
    if path.exists() and not path.is_file():
        return "is not a regular file (a device, pipe or socket), and would be replaced by one; give another"
    if not all(os.access(each, os.W_OK) for each in (folder, path) if each.exists()):
        return f"{path if path.exists() else folder} cannot be written to; give another"
    files = [each for each in inputs if each.is_file()]
    if any(each.resolve() == path or (path.exists() and each.samefile(path)) for each in files):
        return "is what the command reads; give another"
    owner = _owner(path, {each.resolve() for each in inputs if each.is_dir()})
    if owner is not None:
        own = any(fnmatch(part, name) for part in path.relative_to(owner).parts for name in _OWN)
        if own or (path.exists() and path.suffix != suffix):
            return f"belongs to the run or study in {owner}; give another"
    return ""


def _owner(path: Path, given: set[Path]) -> Path | None:
    """The directory of the run or study that a path lies in, the innermost of them."""
    for folder in path.parents:
        run = (folder / "config.yaml").is_file() and (folder / "events.jsonl").is_file()
        if folder in given or run or ((folder / "study.yaml").is_file() and (folder / "cells").is_dir()):
            return folder
    return None
