"""What Orbax 0.12.8 and TensorStore 0.1.86 get wrong, worked around in this one place (docs/reliability.md says more).

Paths. Orbax finds the parts that processes wrote by a glob over the whole path, so that a directory called `run [2]`
matches nothing: the save ends without an error and without its arrays. It takes `/s3/…` for a bucket, and a directory
whose name ends in `gs:` for one too. `local` makes Orbax use paths that are neither patterns nor URLs.

Memory. Wherever TensorStore turns JSON into Python objects it never frees their strings. Orbax asks for such objects
twice for every array that it saves: for the JSON of a spec that it has just made from the same JSON, and for counters
of bytes that it only logs. Neither is asked of TensorStore any more.
"""

import glob
import os
from collections.abc import Iterator
from typing import Any

import tensorstore
from etils.epath.gpath import PosixGPath
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.serialization import tensorstore_utils


class LocalPath(PosixGPath):
    """A path of this machine's file system, whatever characters its directories' names have."""

    @property
    def _uri_scheme(self) -> None:
        return None

    def glob(self, pattern: str) -> Iterator["LocalPath"]:
        """What matches a pattern below this path, of which no character is a pattern."""
        for found in glob.iglob(pattern, root_dir=str(self)):
            yield self / found


def local(processes: set[int] | None = None) -> ocp.Context:
    """How Orbax is to save or load: with paths that are taken literally.

    Args:
      processes: those that take part, of which the first leads; None: all, led by process 0.
    """
    context = ocp.Context()
    context.file.path_class = LocalPath
    if processes is not None:
        context.multiprocessing.primary_host = min(processes)
        context.multiprocessing.active_processes = processes
    return context


class _FileSpec:
    """A TensorStore spec of a directory, as far as Orbax looks at it: it wants its JSON back."""

    def __init__(self, spec: dict[str, Any]):
        self._spec = spec

    def to_json(self) -> dict[str, Any]:
        return dict(self._spec)


class _KvStore:
    open = staticmethod(tensorstore.KvStore.open)

    @staticmethod
    def Spec(spec: dict[str, Any]) -> Any:
        return _FileSpec(spec) if spec.get("driver") == "file" else tensorstore.KvStore.Spec(spec)


class _Tensorstore:
    """TensorStore, as Orbax's module of specs sees it."""

    KvStore = _KvStore

    def __getattr__(self, name: str) -> Any:
        return getattr(tensorstore, name)


def _no_bytes_counted(direction: Any = None) -> int:
    return 0


def _install() -> None:
    """Replaces what Orbax's functions look up in their own module; what a later Orbax no longer has is left alone."""
    for name, ours in (
        ("ts", _Tensorstore()),
        ("get_tensorstore_raw_bytes", _no_bytes_counted),
        ("_normalize_path", os.path.normpath),
    ):
        if hasattr(tensorstore_utils, name):
            setattr(tensorstore_utils, name, ours)


_install()
