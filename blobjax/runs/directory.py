"""A run's directory: whose it is, what it holds, and that it can be written, all found out before anything is computed.

config.yaml (resolved, reloadable) · metrics.jsonl · events.jsonl · checkpoints/ · energy/ · tensorboard/; of a run with
probes flow.json; of a run that had trouble passed_over.json · undone_metrics.jsonl · halt.json · quarantine/
"""

import contextlib
import errno
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TextIO

from blobjax.config import BadInputError, Config, dump, load
from blobjax.config.before import as_it_began, as_recorded
from blobjax.config.diff import changed_maths
from blobjax.config.document import read_yaml
from blobjax.config.paths import check_readable, expanded

# Names of files that a crash may leave behind and that mean nothing.
_OURS = ".blobjax-"
# Patterns of all that a run writes into its directory, and of what is written there for it: a study's log, a page.
_FILES = (
    *("config.yaml", "metrics.jsonl", "events.jsonl", "undone_metrics.jsonl", "passed_over.json", "halt.json"),
    *("flow.json", "tokenizer.json", "log.txt", "report.html", "hang-*.txt", f"{_OURS}*"),
)
_ACCOUNTS = ("[0-9]*.json", f"{_OURS}*")
# Names of checkpoints: a save fails where anything else has its name. A step has ten digits at most.
_STEPS = tuple("[0-9]" * digits for digits in range(1, 11))
_FOLDERS = ("checkpoints", "quarantine", "energy", "tensorboard", "profile", "wandb")
# Longer than anybody looks whether a run is alive, also where the machine is busy.
_LOOKING_SECONDS = 1.0


class RunDirectory:
    """Paths of one run, and the rules for claiming them.

    Raises:
      BadInputError: the path is a URL, or begins at a home directory that there is not.
    """

    def __init__(self, path: str | Path):
        self.path = expanded(path, "run directory")
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.quarantine = self.path / "quarantine"
        self.tensorboard = self.path / "tensorboard"
        self.profile = self.path / "profile"
        self.tokenizer = self.path / "tokenizer.json"
        self.flow = self.path / "flow.json"
        self.passed_over = self.path / "passed_over.json"
        self.undone_metrics = self.path / "undone_metrics.jsonl"
        self.halt = self.path / "halt.json"
        self.energy = self.path / "energy"
        self._lock = self.path / f"{_OURS}lock"

    def _check_own(self) -> None:
        """Refuses links among what a run writes, which lead to somebody else's files, and what is of another kind.

        Raises:
          BadInputError: there is one.
        """
        refuse_links(self.path, (*_FILES, *_FOLDERS), "a run")
        # The profiler writes into folders of folders, whatever they are.
        for folder, _, _ in os.walk(self.profile):
            refuse_links(Path(folder), "*", "a run")
        refuse_links(self.energy, _ACCOUNTS, "a run")
        refuse_links(self.checkpoints, _STEPS, "a run")
        for inside, names, what, is_kind in (
            (self.path, _FILES, "file", Path.is_file),
            (self.path, _FOLDERS, "directory", Path.is_dir),
            (self.energy, _ACCOUNTS, "file", Path.is_file),
            (self.checkpoints, _STEPS, "directory", Path.is_dir),
        ):
            for path in _entries(inside, names):
                if not is_kind(path) and path.exists():  # in this order: another process's probe may vanish meanwhile
                    raise BadInputError(f"{path} is not a {what}; move it away, or choose another logging.run_dir")

    def resolved_config(self, *overrides: str) -> Config:
        """The run's record of its config, which needs no other file.

        Raises:
          BadInputError: it is none.
        """
        self._check_own()
        if "include" in read_yaml(self.config):
            raise BadInputError(f"{self.config}: include: a run's own record holds every key itself; remove the line")
        return load(str(self.config), overrides)

    def previous_config(self) -> Config | None:
        """The config of the run that lives here, or None in a new directory.

        Raises:
          BadInputError: something else lives here.
        """
        if self.path.is_dir():
            self._check_own()
        if self.config.is_file():
            try:
                if self.config.stat().st_size:
                    return self.resolved_config()
                problems: tuple[str, ...] = (f"{self.config}: is empty",)
            except BadInputError as error:
                problems = error.problems
            raise BadInputError(
                *problems,
                f"{self.config} is the run's own record and cannot be used; restore it, or choose another directory "
                "with logging.run_dir=…",
            )
        if self.path.is_dir() and any(not entry.name.startswith(_OURS) for entry in self.path.iterdir()):
            raise BadInputError(
                f"run directory {self.path} is not empty and holds no config.yaml of a run; "
                "choose another with logging.run_dir=…"
            )
        return None

    def check(self, config: Config, allow_config_change: bool) -> bool:
        """Whether a run is resumed here, without writing anything that lasts.

        Raises:
          BadInputError: the directory belongs to a run with other maths, or cannot be written.
        """
        previous = self._found()
        if previous is not None and not allow_config_change:
            changed = changed_maths(as_recorded(previous), config)
            if changed:
                raise BadInputError(
                    f"run directory {self.path} belongs to another config; give another logging.run_dir, "
                    "or --allow-config-change to go on with the new one. Changed:",
                    *(f"  {line}" for line in changed),
                )
        self._probe()
        return previous is not None

    def as_it_began(self, config: Config) -> tuple[Config, str]:
        """The config that a run here goes on with, and a line about settings that it is older than; see `before.py`.

        Raises:
          BadInputError: something else lives here.
        """
        previous = self._found()
        return (config, "") if previous is None else as_it_began(config, previous)

    def _found(self) -> Config | None:
        try:
            return self.previous_config()
        except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
            raise BadInputError(f"run directory {str(self.path)[:80]!r} cannot be used: {error}"[:300]) from None

    def claim(self, config: Config) -> None:
        """Makes the directory this config's; atomic, so that a crash leaves the old config or the new one.

        Only for whoever holds the lock.
        """
        write_atomically(self.config, dump(config))
        self.checkpoints.mkdir(exist_ok=True)
        self.energy.mkdir(exist_ok=True)
        if config.data.tokenizer != "bytes":
            # A run can be sampled from wherever it is moved to, so it takes its tokenizer along.
            write_atomically(
                self.tokenizer, expanded(config.data.tokenizer, "data.tokenizer").read_text(encoding="utf-8")
            )

    def lock(self) -> TextIO:
        """Makes sure that no other process on this machine trains here, or moves its checkpoints; makes the directory.

        Returns:
          The lock, held until it is closed or this process ends, however it ends.

        Raises:
          BadInputError: another does, or it cannot be told.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_own()
            file = self._lock.open("a+", encoding="utf-8")
        except OSError as error:
            raise BadInputError(f"{self._lock} cannot be written: {error.strerror or error}") from None
        if not _locked(file):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise BadInputError(
                f"run directory {self.path} is in use by another run (process {holder}); "
                "wait for it, or choose another with logging.run_dir=…"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return file

    def in_use(self) -> bool:
        """Whether a process of this machine trains here now."""
        try:
            if not self._lock.is_file():  # a pipe would keep us waiting for its other end
                return False
            with self._lock.open("r", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # never locked, or not ours to read
            return False
        return False

    def _probe(self) -> None:
        """Finds an unwritable directory now rather than at the first save."""
        existing = self.path
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        try:
            with tempfile.NamedTemporaryFile(dir=existing, prefix=_OURS) as probe:
                probe.write(b"probe")
        except OSError as error:
            raise BadInputError(
                f"run directory {self.path} cannot be written: {error.strerror or error}; "
                "choose another with logging.run_dir=…"
            ) from None


def refuse_links(folder: Path, names: Iterable[str], who: str) -> None:
    """Refuses links among what somebody writes into a folder: they lead to somebody else's files.

    Args:
      names: patterns of what is written there.
      who: writes it, such as `a run`.

    Raises:
      BadInputError: there is one.
    """
    for path in _entries(folder, names):
        if path.is_symlink():
            raise BadInputError(
                f"{path} is a symbolic link, and {who} writes into its own directory only; move what it points to "
                "here, or the whole directory to where there is room"
            )


def _entries(folder: Path, names: Iterable[str]) -> list[Path]:
    names = tuple(names)
    check_readable(folder)
    there = list(folder.iterdir()) if folder.is_dir() else []
    return [path for path in there if any(fnmatchcase(path.name, name) for name in names)]


def _locked(file: TextIO) -> bool:
    """Takes the lock, if need be at a second try: `in_use` holds it too, for the moment that it takes to look."""
    deadline = time.monotonic() + _LOOKING_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that readers, and restarts, see the old content or the new, never half of it; a link in its
    place is replaced, not followed."""
    temporary = path.with_name(f"{_OURS}{path.name}")
    # What a crash has left, or somebody else's link: never written through.
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; a line torn by a crash is skipped, a missing file is empty.

    An integer of more than 18 digits, which no run writes, is read as a float: it may be too large to become one later.
    """
    if not path.is_file():
        return
    for line in path.read_bytes().split(b"\n"):
        yield from _objects(line)


def read_jsonl_backwards(path: Path) -> Iterator[dict[str, Any]]:
    """The same from the last to the first, reading no more of the file than is asked for."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start, rest = file.seek(0, os.SEEK_END), b""
        while start:
            end, start = start, max(start - 65536, 0)
            file.seek(start)
            # What comes first may be the end of a line that begins before it.
            rest, *lines = (file.read(end - start) + rest).split(b"\n")
            for line in reversed(lines):
                yield from _objects(line)
        yield from _objects(rest)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= 18 else float(digits)


def _objects(line: bytes) -> Iterator[dict[str, Any]]:
    try:
        content = json.loads(line.decode(errors="replace"), parse_int=_integer)
        if b"\\ud" in line.lower():
            # An escaped half of a surrogate pair is not text that can be printed, drawn or written.
            content = json.loads(json.dumps(content, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        return
    if isinstance(content, dict):
        yield content


class Lines:
    """A file of lines to append to. A full disk costs lines, not the run; that it does is said, once each time.

    A last line torn by a crash, or by a full disk, is ended before the next, so that it spoils no other.
    """

    def __init__(self, path: Path):
        self._path = path
        self._torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        # Without a buffer: what could not be written must not be tried again behind what comes after it.
        self._file = path.open("ab", buffering=0)
        self._lost = 0

    def write(self, line: str) -> None:
        """Appends one line, given with its end."""
        content = (b"\n" if self._torn else b"") + line.encode()
        try:
            # A write may take only a part, after a signal or at a quota, and the next one the rest.
            while content:
                written = self._file.write(content)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                # Until the whole of it is there; a line break that ends a torn line counts as a part, and does no harm.
                self._torn, content = True, content[written:]
        except OSError as error:
            if not self._lost:
                self._say(f"cannot be written: {error.strerror or error}; its lines are lost until it can")
            self._lost += 1
            return
        if self._lost:
            self._say(f"can be written again; {self._lost} of its lines are lost")
        self._torn, self._lost = False, 0

    def _say(self, what: str) -> None:
        print(f"blobjax: {self._path} {what}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):
            self._file.close()


class EventLog:
    """Appends to events.jsonl; every event has a name, wall time in seconds since 1970, and usually a step.

    Args:
      path: the file; None on a process that is not the one to write.
      wait: hold what is written until `open`; it is forgotten if that never comes.
    """

    def __init__(self, path: Path | None, wait: bool = False):
        self._path = path
        self._file: Lines | None = None
        self._held: list[str] = []
        if not wait:
            self.open()

    def open(self) -> None:
        """Writes to the file from now on, and first what was held."""
        if self._path is not None and self._file is None:
            self._file = Lines(self._path)
            for line in self._held:
                self._file.write(line)
            self._held.clear()

    def write(self, event: str, **fields: Any) -> None:
        """Appends one event."""
        line = json.dumps({"event": event, "time": time.time(), **fields}) + "\n"
        if self._file is not None:
            self._file.write(line)
        elif self._path is not None:
            self._held.append(line)

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
