import numpy as np
import pytest

from blobjax.config import BadInputError
from blobjax.data import shards
from blobjax.data.shards import ShardWriter, open_shard, verify_shard


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A shard of many small blocks, written in pieces that fit no block."""
    monkeypatch.setattr(shards, "BLOCK_BYTES", 1 << 10)
    tokens = np.random.default_rng(0).integers(0, 60_000, 50_001).astype(np.uint16)
    writer = ShardWriter(tmp_path / "train.bin", np.dtype(np.uint16))
    for part in np.array_split(tokens, [3, 4, 700, 701, 30_000]):
        writer.write(part.astype(np.uint32))
    return tmp_path, writer.close(), tokens


def test_reads_what_was_written(written):
    folder, entry, tokens = written
    verify_shard(folder, entry)
    found = open_shard(folder, entry)
    assert found.dtype == np.uint16
    assert not found.flags.writeable
    np.testing.assert_array_equal(found, tokens)
    assert len(entry["crc32"]) == -(-50_001 * 2 // 1024)


def test_nothing_written(tmp_path):
    entry = ShardWriter(tmp_path / "train.bin", np.dtype(np.uint8)).close()
    verify_shard(tmp_path, entry)
    assert len(open_shard(tmp_path, entry)) == 0


@pytest.mark.parametrize("block", range(98))
def test_every_damaged_block_is_found(written, block, monkeypatch):
    folder, entry, _ = written
    monkeypatch.setattr(shards, "CHECKED_BLOCKS", 1000)
    flip(folder / "train.bin", block * 1024)
    with pytest.raises(BadInputError, match=rf"train.bin: damaged shard: content after byte {block * 1024} does"):
        verify_shard(folder, entry)


def test_of_a_large_shard_the_ends_are_always_checked(written):
    folder, entry, _ = written
    path = folder / "train.bin"
    for offset in (0, path.stat().st_size - 1):
        flip(path, offset)
        with pytest.raises(BadInputError, match="damaged shard"):
            verify_shard(folder, entry)
        flip(path, offset)
    verify_shard(folder, entry)


def test_cut_and_missing(written):
    folder, entry, _ = written
    path = folder / "train.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInputError, match=f"100001 bytes long, not 100002; delete the folder {folder}"):
        open_shard(folder, entry)
    path.unlink()
    with pytest.raises(BadInputError, match="missing"):
        open_shard(folder, entry)


def test_a_link_is_none_of_ours(written, tmp_path_factory):
    folder, entry, _ = written
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "tokens"
    (folder / "train.bin").rename(elsewhere)
    (folder / "train.bin").symlink_to(elsewhere)
    with pytest.raises(BadInputError, match="a link, which may lead anywhere"):
        open_shard(folder, entry)


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
