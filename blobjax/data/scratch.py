"""Scratch names: what is being written has a name that no other process uses, and gets its own when it is whole.

Correctness rests on two things only: no two processes share a scratch name, and a rename is atomic. Locks save doing
the same work several times where they work; nothing depends on them.
"""

import contextlib
import fcntl
import glob
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

_OWNER = re.compile(r"(\d+)\.[0-9a-f]{8}")


def scratch_path(final: Path) -> Path:
    """A hidden name beside `final` that only this call has: host, process and 32 random bits.

    The random bits matter: containers that share a folder may share host name and process id too.
    """
    return final.parent / f".{final.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def scratch_folder(final: Path) -> Iterator[Path]:
    """A new folder beside `final`, removed at the end by the process that made it, unless it was published."""
    scratch = scratch_path(final)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(scratch: Path, final: Path, proof: str) -> None:
    """Gives a whole folder its name, durably.

    Args:
      scratch: the folder, its files already on the disk.
      final: its name. If another process gave that name to an equal folder first, that one stays.
      proof: the file that only a whole folder has.

    Raises:
      OSError: it cannot be renamed, and no whole folder has the name.
    """
    fsync_folder(scratch)
    try:
        os.rename(scratch, final)
    except OSError:
        if not (final / proof).is_file():
            raise
    fsync_folder(final.parent)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Lets one process of this machine in at a time; the kernel releases the lock of a process that dies.

    Yields:
      Whether the lock is held: False on a file system without locks.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except OSError:
            locked = False
        yield locked


def remove_left_overs(final: Path) -> None:
    """Removes the scratch folders of processes of this machine that have died. Call it with the lock held only.

    A process id says nothing on another machine, nor in another container; there the lock, or the host's name, keeps
    a folder that is in use.
    """
    mine = f".{final.name}.{socket.gethostname()}."
    for folder in final.parent.glob(f"{glob.escape(mine)}*"):
        owner = _OWNER.fullmatch(folder.name.removeprefix(mine))
        if owner and not _runs(int(owner[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it runs, but belongs to somebody else
        return True
    return True


def fsync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
