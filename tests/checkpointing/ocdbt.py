"""Rewrites a node of an OCDBT database as an attacker would: checksum and length right, the content another."""

import random
from pathlib import Path

import zstandard

_ZSTD = bytes.fromhex("28b52ffd")


def _crc32c(content: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def replace(node: Path, old: bytes, new: bytes) -> None:
    """Replaces text in a node by text of the same length; the file keeps its length, which its parent knows."""
    assert len(old) == len(new)
    content = node.read_bytes()
    assert int.from_bytes(content[-4:], "little") == _crc32c(content[:-4])
    start = content.index(_ZSTD)
    body = zstandard.ZstdDecompressor().decompressobj().decompress(content[start:-4])
    assert old in body
    wanted = len(content) - start - 4
    whole = content[:start] + _compress(body.replace(old, new), wanted)
    node.write_bytes(whole + _crc32c(whole).to_bytes(4, "little"))


def _compress(body: bytes, length: int) -> bytes:
    """Some way to compress it to exactly this length: levels, and blocks ended early, give many to choose from."""
    draw = random.Random(0)
    for _ in range(200_000):
        compressor = zstandard.ZstdCompressor(level=draw.randint(1, 19)).compressobj()
        done, at = b"", 0
        for cut in sorted(draw.sample(range(1, len(body)), draw.randint(0, 8))):
            done += compressor.compress(body[at:cut]) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            at = cut
        done += compressor.compress(body[at:]) + compressor.flush()
        if len(done) == length:
            return done
    raise AssertionError(f"no way found to compress {len(body)} bytes to {length}")
