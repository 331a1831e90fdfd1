"""Plain, .gz and .zst files as one kind of stream, read in bounded memory whatever they expand to."""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

_BUFFER_BYTES = 1 << 17
# Compressed bytes handed to zstd at once. Four can become a block of 128 KiB, so these become 32 MiB at most.
_STEP_BYTES = 1 << 10
BOM = b"\xef\xbb\xbf"


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Opens a file for reading its content.

    Yields:
      The content, decompressed as the file's suffix says, to be read with `readline(limit)`; and the file itself, whose
      `tell` says how many bytes have been read from the disk.

    Raises:
      OSError, EOFError: while reading: the file cannot be read, or ends inside a compressed frame.
    """
    with path.open("rb") as raw:
        suffix = path.suffix.lower()
        if suffix == ".gz":
            with gzip.GzipFile(fileobj=raw) as content:
                yield cast(IO[bytes], content), raw  # which is one in all but its type
        elif suffix in (".zst", ".zstd"):
            yield io.BufferedReader(_Zstd(raw), _BUFFER_BYTES), raw
        else:
            yield raw, raw


class _Zstd(io.RawIOBase):
    """A zstd file of any number of frames.

    The library's own stream reader takes a file that ends in the middle of a frame for one that ends there.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._packed, self._at = b"", 0
        self._ready = memoryview(b"")
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        filled = 0
        while filled < len(into) and (self._ready or self._decompress()):
            part = self._ready[: len(into) - filled]
            into[filled : filled + len(part)] = part
            self._ready = self._ready[len(part) :]
            filled += len(part)
        return filled

    def _decompress(self) -> bool:
        """Makes some bytes ready; False at the end of the file."""
        import zstandard

        while not self._ready:
            if self._at == len(self._packed):
                self._packed, self._at = self._raw.read(_BUFFER_BYTES), 0
                if not self._packed:
                    if self._frame is not None:
                        raise EOFError("the file ends in the middle of a zstd frame")
                    return False
            step = self._packed[self._at : self._at + _STEP_BYTES]
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(step))
            self._at += len(step)
            if self._frame.eof:
                self._at -= len(self._frame.unused_data)
                self._frame = None
        return True
