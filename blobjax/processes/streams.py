"""The standard streams: there, able to show any text, and on stderr without a reader that could end the process.

Nothing that is printed may end a run. A terminal or log of another encoding cannot show every text of the world's, a
terminal may be gone (a closed ssh session), and a daemon may have been started without any stream.
"""

import contextlib
import io
import os
import sys


class _Unheard(io.FileIO):
    """A file of messages: where they cannot be written there is nobody to tell, and no reason to fail."""

    def write(self, content: bytes) -> int:  # type: ignore[override]
        written = None
        with contextlib.suppress(OSError):
            written = super().write(content)
        return len(content) if written is None else written


def open_standard() -> None:
    """Makes this process's standard streams usable; once, at its start."""
    _open_missing()
    if isinstance(sys.stderr, io.TextIOWrapper):  # and not what a test or a notebook put there
        sys.stderr.flush()
        raw = _Unheard(sys.stderr.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), sys.stderr.encoding, "backslashreplace", line_buffering=True
        )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _open_missing() -> None:
    """Gives a process that was started without stdin, stdout or stderr (a daemon) ones that lead nowhere: files would
    get their numbers else, and libraries write to them."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue  # not a closed one
            nowhere = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            setattr(sys, name, os.fdopen(nowhere, mode, encoding="utf-8"))
