"""What a checkpoint's files hold, read with TensorStore alone: no model, no device and no jax.

A checkpoint is three trees, each an OCDBT database of zarr arrays. Arrays are read one chunk at a time: a chunk is what
one device held when it was saved, so no more of the state is in memory than that, whatever mesh it was saved from.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from blobjax.checkpointing import files, host_fingerprint
from blobjax.checkpointing.files import NOT_FINITE, BadCheckpointError, Leaf, Record

# Nodes of a database are read once for all its arrays: 100 MB of them at most.
_CACHE = {"cache_pool": {"total_bytes_limit": 100_000_000}}
# So many ends of chunks are asked for before the first is waited for.
_AT_ONCE = 256


def verify(folder: Path, process: int = 0, processes: int = 1) -> bool:
    """Reads every array and compares its fingerprint.

    Args:
      process: which of several processes this is, each of which reads another share of the arrays.
      processes: how many there are.

    Returns:
      Whether there are fingerprints to compare with; a checkpoint from before them can only be read.

    Raises:
      BadCheckpointError: it is not what was saved, or its parameters are not finite. What TensorStore raises says the
        same where it can be read at all.
    """
    files.check_kinds(folder)
    record = files.read_record(folder)
    if record.finite is False:
        raise BadCheckpointError(NOT_FINITE)
    arrays = [(tree, name) for tree in _trees(record) for name in _names(folder / tree, record)]
    wrong = []
    for tree, name in arrays[process::processes]:
        wanted = (record.leaves or {}).get(f"{tree}/{name}")
        array = _array(folder / tree, name)
        found = Leaf(tuple(array.shape), array.dtype.name, _fingerprint(array))
        if (wanted is not None and found != wanted) or (
            name == "sequences" and record.sequences not in (None, int(array.read().result()))
        ):
            wrong.append(f"{tree}/{name}")
        # A record from before they said so.
        if record.finite is None and tree == "params" and not _finite(array):
            raise BadCheckpointError(NOT_FINITE)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise BadCheckpointError(f"not what was saved: {', '.join(wrong[:3])}{more}")
    return record.leaves is not None


def read_back(folder: Path, written: Record) -> None:
    """Checks that a save has left on the storage what it was to leave; reads no array.

    The record must be the one that was written, every array must be there with its shape and each of its chunks, and
    the last bytes of each chunk, an index with a checksum of its own, must be where the database says: no data file is
    missing or shorter than what is referred to in it.

    Raises:
      BadCheckpointError: something is missing or different. What TensorStore raises says the same.
    """
    files.check_kinds(folder)
    record = files.read_record(folder)
    if record.as_metadata() != replace(written, time=record.time).as_metadata():
        raise BadCheckpointError("its record is not the one that was written")
    for tree in _trees(record):
        _check_chunks(folder / tree, _names(folder / tree, record), record)


def refused(checkpoints: Path) -> str:
    """Why TensorStore can have no files in a directory of this name, whether it is there or not; empty if it can."""
    import tensorstore

    path = f"{checkpoints.resolve()}/"
    try:
        path.encode()
        taken_for = tensorstore.KvStore.Spec({"driver": "file", "path": path}).to_json()["path"]
    except UnicodeEncodeError:
        return "the name is not valid UTF-8"
    except ValueError:
        return "TensorStore keeps such a name for its locks"
    # A backslash becomes a slash.
    return "" if taken_for == path else f"TensorStore takes it for {taken_for!a}"


def _check_chunks(tree: Path, names: list[str], record: Record) -> None:
    """Refuses a tree in which an array has another shape than in the record, or lacks a chunk or the end of one."""
    import tensorstore

    context = tensorstore.Context(_CACHE)
    database = tensorstore.KvStore.open(_database(tree), context=context).result()
    keys = {key.decode() for key in database.list().result()}
    pending = []
    for name in names:
        metadata = json.loads(database.read(f"{name}/zarr.json").result().value)
        shape, chunk = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
        leaf = (record.leaves or {}).get(f"{tree.name}/{name}")
        if leaf is not None and tuple(shape) != leaf.shape:
            raise BadCheckpointError(f"{tree.name}/{name} has another shape than was saved")
        codec = metadata["codecs"][0]["configuration"]
        index = {
            "driver": "zarr3_sharding_indexed",
            "grid_shape": [whole // part for whole, part in zip(chunk, codec["chunk_shape"], strict=True)],
            "index_codecs": codec["index_codecs"],
            "index_location": codec.get("index_location", "end"),
        }
        for place in itertools.product(*(range(-(-size // step)) for size, step in zip(shape, chunk, strict=True))):
            key = "/".join((name, "c", *map(str, place)))
            if key not in keys:
                raise BadCheckpointError(f"{tree.name}/{name} lacks its part {place}")
            base = {**_database(tree), "path": key}
            pending.append((key, tensorstore.KvStore.open({**index, "base": base}, context=context)))
        if len(pending) >= _AT_ONCE:
            _check_ends(tree, pending)
            pending = []
    _check_ends(tree, pending)


def _check_ends(tree: Path, opening: list[tuple[str, Any]]) -> None:
    """Reads the index at the end of each of these chunks, all at the same time."""
    listing = [(key, opened.result().list()) for key, opened in opening]
    for key, listed in listing:
        if not listed.result():
            raise BadCheckpointError(f"the part {key} of {tree.name} is empty")


def _database(tree: Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{tree.resolve()}/"}}


def _trees(record: Record) -> list[str]:
    """Names of the trees of a checkpoint; those that are empty for most are there where the record says so."""
    recorded = {path.partition("/")[0] for path in record.leaves or {}}
    return [tree for tree in files.TREES if tree in recorded or tree not in ("frozen", "round")]


def _names(tree: Path, record: Record) -> list[str]:
    """Names of the arrays in one tree, which the record and Orbax's own metadata must agree on."""
    import tensorstore

    keys = [key.decode() for key in tensorstore.KvStore.open(_database(tree)).result().list().result()]
    names = {key.removesuffix("/zarr.json") for key in keys if key.endswith("/zarr.json")}
    if record.leaves is not None:
        recorded = {path.removeprefix(f"{tree.name}/") for path in record.leaves if path.startswith(f"{tree.name}/")}
        if names - ({"sequences"} if tree.name == "progress" else set()) != recorded:
            raise BadCheckpointError(f"{tree.name} holds other arrays than were saved")
    try:
        told, arrays = _metadata(json.loads((tree / "_METADATA").read_text(encoding="utf-8")))
        by_processes = set()
        for file in (tree / "array_metadatas").iterdir():
            by_processes |= _array_metadata(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpointError(f"the metadata of {tree.name} are damaged ({type(error).__name__})") from error
    if told != names or by_processes != arrays:
        raise BadCheckpointError(f"the metadata of {tree.name} are of other arrays than there are")
    return sorted(names)


def _metadata(content: Any) -> tuple[set[str], set[str]]:
    """Names of everything in a `_METADATA`, and of what is a jax.Array; reads what Orbax reads of it."""
    if not (content["use_ocdbt"] is True and content["use_zarr3"] is True):
        raise ValueError("another format")
    kinds = {}
    for each in content["tree_metadata"].values():
        keys, value = each["key_metadata"], each["value_metadata"]
        _ = [key["key_type"] for key in keys], value["skip_deserialize"]
        kinds["/".join(str(key["key"]) for key in keys)] = value["value_type"]
    return set(kinds), {name for name, kind in kinds.items() if kind == "jax.Array"}


def _array_metadata(content: Any) -> set[str]:
    """Names in one process's file of `array_metadatas`; reads what Orbax reads of it."""
    leaves = [each["array_metadata"] for each in content["array_metadatas"]]
    _ = [(leaf["write_shape"], leaf["chunk_shape"], leaf["ext_metadata"]) for leaf in leaves]
    return {leaf["param_name"] for leaf in leaves}


def _array(tree: Path, name: str) -> Any:
    import tensorstore

    return tensorstore.open(
        {"driver": "zarr3", "kvstore": {**_database(tree), "path": f"{name}/"}}, read=True, open=True
    ).result()


def _fingerprint(array: Any) -> str:
    """Of an array in a file, read chunk by chunk."""
    sums = np.zeros(2, np.uint32)
    for start, content in _chunks(array):
        sums += host_fingerprint.part(content, start, array.shape)
    return host_fingerprint.as_text(sums)


def _finite(array: Any) -> bool:
    """Whether all numbers of an array in a file are finite, read chunk by chunk."""
    return all(bool(np.isfinite(content).all()) for _, content in _chunks(array))


def _chunks(array: Any) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """An array's chunks, each with the place of its first number."""
    shape = array.shape
    chunk = array.chunk_layout.read_chunk.shape or ()  # a scalar has none
    for start in itertools.product(*(range(0, size, step) for size, step in zip(shape, chunk, strict=True))):
        place = tuple(slice(at, min(at + step, size)) for at, step, size in zip(start, chunk, shape, strict=True))
        yield start, array[place].read().result()
