"""Which files a path or glob means: each real file once, and nothing left out without a word."""

import difflib
import fnmatch
import functools
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from blobjax.config import BadInputError
from blobjax.config.paths import expanded
from blobjax.config.schema import Source

_MAGIC = re.compile(r"[*?[]")
# Problems named one by one; a tree without read permission must not fill the screen.
_NAMED = 10
_EFFECTIVE_IDS = os.access in os.supports_effective_ids


class Files(NamedTuple):
    """What a path or glob means.

    Attributes:
      paths: regular files, sorted.
      skipped: what else it matches, such as `2 directories (a, b)`; for a line to the user.
    """

    paths: list[Path]
    skipped: list[str]


def find(source: Source, domain: str) -> Files:
    """The files of a source.

    A file that is reached by several names (links) counts once; hard links are files of their own. A `**` follows links
    to directories, each directory once, so that a link to a parent ends.

    Raises:
      BadInputError: none, or one that cannot be read; the nearest name in the folder is suggested.
    """
    key = f"data.sources.{domain}.path"
    pattern = str(expanded(source.path, key))
    problems: list[str] = []
    try:
        # A path that exists is meant literally, even with a bracket in its name.
        literal = os.path.lexists(pattern)
        matches = [pattern] if literal else sorted(set(_expand(pattern, problems)), key=Path)
    except ValueError:  # a NUL in it
        raise BadInputError(f"{key} {source.path[:80]!r} cannot be the name of a file") from None
    names: dict[str, list[str]] = {}  # real path to the names it was found by
    folders: dict[str, str] = {}
    others: dict[str, list[str]] = {}  # kind of what is not a file to its paths
    for path in matches:
        try:
            kind = _kind(os.stat(path).st_mode)
        except OSError as error:
            problems.append(_unreadable(path, error))
            continue
        if kind != "file":
            others.setdefault(kind, []).append(path)
        elif not os.access(path, os.R_OK, effective_ids=_EFFECTIVE_IDS):
            problems.append(f"{path} cannot be read: Permission denied")
        else:
            names.setdefault(_real(path, folders), []).append(path)
    if problems:
        raise BadInputError(*_lines(f"{key} '{source.path}'", problems, literal))
    if not names:
        raise BadInputError(f"{key} '{source.path}' {_nothing(source.path, pattern, literal, others)}".rstrip())
    paths = [min(found, key=functools.partial(_rank, real=real)) for real, found in names.items()]
    return Files(sorted(map(Path, paths)), [_count(kind, found) for kind, found in others.items()])


def _expand(pattern: str, problems: list[str]) -> Iterator[str]:
    """As `glob.glob(pattern, recursive=True)`, but no directory is walked twice, and what cannot be listed is named.

    The standard one walks a link to a parent 40 levels deep, and two such links for ever.
    """
    path = Path(pattern)
    yield from _step(path.anchor, path.relative_to(path.anchor).parts, problems)


def _step(base: str, parts: tuple[str, ...], problems: list[str]) -> Iterator[str]:
    if not parts:
        yield base
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        for folder in _folders(base, problems):
            yield from _step(folder, rest or ("*",), problems)
    elif _MAGIC.search(first):
        names = [entry.name for entry in _entries(base, problems) if first[0] == "." or entry.name[0] != "."]
        for name in fnmatch.filter(names, first):
            yield from _step(os.path.join(base, name), rest, problems)
    else:
        path = os.path.join(base, first)
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            problems.append(_unreadable(path, error))
            return
        yield from _step(path, rest, problems)


def _folders(top: str, problems: list[str]) -> Iterator[str]:
    """A directory and all below it, each once; by its own name rather than that of a link to it."""
    seen: set[str] = set()
    links = deque([top])
    while links:
        stack = [links.popleft()]
        while stack:
            folder = stack.pop()
            real = os.path.realpath(folder or os.curdir)
            if real in seen:
                continue
            seen.add(real)
            yield folder
            for entry in _entries(folder, problems):
                if entry.name.startswith("."):
                    continue
                path = os.path.join(folder, entry.name)
                try:
                    if entry.is_dir():
                        (links if entry.is_symlink() else stack).append(path)
                except OSError as error:
                    if not entry.is_symlink():  # a link that leads nowhere is named if the pattern matches it
                        problems.append(_unreadable(path, error))


def _entries(folder: str, problems: list[str]) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder or os.curdir) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if not os.path.islink(folder):
            problems.append(_unreadable(folder, error))
        return []


def _real(path: str, folders: dict[str, str]) -> str:
    """`os.path.realpath`, which looks at each part of a path, once for each folder (kept in `folders`)."""
    if os.path.islink(path):
        return os.path.realpath(path)
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder or os.curdir)
    return os.path.join(folders[folder], name)


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "FIFO" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"


def _unreadable(path: str, error: OSError) -> str:
    if os.path.islink(path) and isinstance(error, FileNotFoundError):
        return f"{path} is a link to '{os.readlink(path)}', which does not exist"
    return f"{path} cannot be read: {error.strerror or error}"


def _rank(path: str, real: str) -> tuple[bool, int, str]:
    """Of several names of one file the one that is no link, else the shortest."""
    return os.path.abspath(path) != real, len(Path(path).parts), path


def _lines(what: str, problems: list[str], literal: bool) -> Iterable[str]:
    problems = list(dict.fromkeys(problems))
    if literal:
        return [f"{what}: {problems[0]}; give a file or glob that can be read"]
    more = f" (and {len(problems) - _NAMED} more)" if len(problems) > _NAMED else ""
    lines = [f"{what}: {problem}; mend or remove it, or narrow the pattern" for problem in problems[:_NAMED]]
    return [*lines[:-1], lines[-1] + more]


def _nothing(given: str, pattern: str, literal: bool, others: dict[str, list[str]]) -> str:
    """Why there is no file, and what to give instead."""
    if literal:
        (kind,) = others
        is_folder = kind == "directory"
        return f"is a folder; give the files in it, such as '{given}/*'" if is_folder else f"is a {kind}; give a file"
    if others:
        return f"matches no file, only {' and '.join(_count(kind, found) for kind, found in others.items())}"
    folder = Path(pattern).parent
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        names = []
    near = difflib.get_close_matches(Path(pattern).name, names, 1)
    hint = f"did you mean '{folder / near[0]}'?" if near else "" if names else f"(there is nothing in {folder})"
    return f"matches no file {hint}"


def _count(kind: str, paths: list[str]) -> str:
    plural = {"directory": "directories"}.get(kind, f"{kind}s")
    shown = ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
    return f"{len(paths)} {kind if len(paths) == 1 else plural} ({shown})"
