"""Token shards: one flat file of unsigned integers a split, with checksums by block.

A checksum over a block, not over the file, so that opening a terabyte checks a bounded sample of it and says where the
damage is.
"""

import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from blobjax.config import BadInputError

BLOCK_BYTES = 1 << 24
# Blocks checked at opening: 256 MiB, a fraction of a second. A file with more is sampled, first and last included.
CHECKED_BLOCKS = 16
DTYPES = ("uint8", "uint16", "uint32")


class ShardWriter:
    """Appends tokens to a file, adding up block checksums on the way.

    Args:
      path: the file, created.
      dtype: of the tokens on disk.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._path, self._dtype = path, dtype
        self._file: BinaryIO = path.open("xb", buffering=1 << 20)
        self._size = 0
        self._checksums: list[int] = []

    def write(self, tokens: np.ndarray) -> None:
        """Appends tokens of any integer type that fit the shard's."""
        data = tokens.astype(self._dtype, copy=False).view(np.uint8).data
        self._file.write(data)
        while data:
            room = BLOCK_BYTES - self._size % BLOCK_BYTES
            part, data = data[:room], data[room:]
            if room == BLOCK_BYTES:
                self._checksums.append(0)
            self._checksums[-1] = zlib.crc32(part, self._checksums[-1])
            self._size += len(part)

    def close(self) -> dict[str, Any]:
        """Flushes to the disk and returns the manifest's entry for this shard."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {
            "file": self._path.name,
            "dtype": self._dtype.name,
            "tokens": self._size // self._dtype.itemsize,
            "block_bytes": BLOCK_BYTES,
            "crc32": self._checksums,
        }


def open_shard(folder: Path, entry: dict[str, Any]) -> np.ndarray:
    """Memory-maps a shard, read-only.

    Raises:
      BadInputError: missing, or not of the recorded size; or the entry is not one that `ShardWriter` makes.
    """
    # A manifest may come from anywhere: it names no file outside of its folder and no type that is not tokens.
    if Path(entry["file"]).name != entry["file"] or entry["dtype"] not in DTYPES:
        raise BadInputError(
            f"{folder}: the manifest names a shard {entry['file']!r} of {entry['dtype']!r}, which is none of ours; "
            "delete the folder and it is prepared again"
        )
    path, dtype = folder / entry["file"], np.dtype(entry["dtype"])
    if path.is_symlink():
        raise _damaged(path, "a link, which may lead anywhere")
    expected = entry["tokens"] * dtype.itemsize
    try:
        size = path.stat().st_size
    except OSError:
        raise _damaged(path, "missing") from None
    if size != expected:
        raise _damaged(path, f"{size} bytes long, not {expected}")
    return np.memmap(path, dtype, "r") if size else np.empty(0, dtype)


def verify_shard(folder: Path, entry: dict[str, Any]) -> None:
    """Compares size and block checksums with the manifest; of a large shard, a sample of blocks.

    Raises:
      BadInputError: names the file, the damage, and what to do.
    """
    data = open_shard(folder, entry).view(np.uint8).data
    blocks = len(entry["crc32"])
    if blocks != -(-len(data) // entry["block_bytes"]):
        raise _damaged(folder / entry["file"], f"{blocks} checksums for {len(data)} bytes")
    chosen = range(blocks) if blocks <= CHECKED_BLOCKS else np.linspace(0, blocks - 1, CHECKED_BLOCKS).astype(int)
    for block in chosen:
        start = int(block) * entry["block_bytes"]
        if zlib.crc32(data[start : start + entry["block_bytes"]]) != entry["crc32"][block]:
            raise _damaged(folder / entry["file"], f"content after byte {start} does not match its checksum")


def _damaged(path: Path, what: str) -> BadInputError:
    return BadInputError(f"{path}: damaged shard: {what}; delete the folder {path.parent} and it is prepared again")
