"""Whether a checkpoint fits the state that it is to become, found out from what it says of itself."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from blobjax.checkpointing import files
from blobjax.checkpointing.files import NOT_FINITE, BadCheckpointError, Record
from blobjax.config import BadInputError


def look(folder: Path, trees: dict[str, dict[str, Any]], data: str | None) -> tuple[Record, dict[str, dict[str, Any]]]:
    """What a checkpoint says of itself, and what to ask Orbax for; refuses what is not safe, or does not fit."""
    files.check_kinds(folder)
    record = files.read_record(folder)
    if record.finite is False:
        raise BadCheckpointError(NOT_FINITE)
    if data is not None and record.data != data:
        raise BadInputError(
            f"checkpoint {folder} was trained on other data: the sources changed since, or another version of "
            "blobjax prepared them; restore them, or give --allow-config-change to go on with the new ones"
        )
    found = _shapes(record, folder)
    whole = "progress" in trees
    for name in ("params", "optimizer", "frozen", "round"):
        if name in trees or whole:
            _check_fit(folder, {path: leaf.shape for path, leaf in trees.get(name, {}).items()}, found[name])
    # In the dtype they were saved in: what is converted while it is read has another fingerprint.
    wanted: dict[str, dict[str, Any]] = {
        name: {
            path: jax.ShapeDtypeStruct(leaf.shape, found[name][path][1], sharding=leaf.sharding)
            for path, leaf in tree.items()
        }
        for name, tree in trees.items()
    }
    if "progress" in wanted:
        wanted["progress"]["sequences"] = 0  # an integer, in Orbax's way of saying so
    return record, wanted


def _shapes(record: Record, folder: Path) -> dict[str, dict[str, tuple[tuple[int, ...], str]]]:
    """Shape and dtype of each array, by tree and path: from the record, or from Orbax where there is none."""
    found: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {name: {} for name in files.TREES}
    if record.leaves is not None:
        for path, leaf in record.leaves.items():
            name, _, rest = path.partition("/")
            found[name][rest] = (leaf.shape, leaf.dtype)
        return found
    described: Mapping[str, Any] = ocp.checkpointables_metadata(folder).metadata
    for name, tree in found.items():
        for path, leaf in (described.get(name) or {}).items():
            if hasattr(leaf, "shape"):
                tree[path] = (tuple(leaf.shape), str(leaf.dtype))
    return found


def _check_fit(folder: Path, here: dict[str, tuple[int, ...]], there: dict[str, tuple[tuple[int, ...], str]]) -> None:
    """Refuses a checkpoint whose arrays are not the expected ones, naming the first that differ."""
    shapes = {path: shape for path, (shape, _) in there.items()}
    different = sorted(path for path in shapes.keys() | here.keys() if shapes.get(path) != here.get(path))
    if different:
        raise BadInputError(f"checkpoint {folder} does not fit this config: " + _listed(different, shapes, here))


def _listed(paths: Iterable[str], there: dict[str, tuple], here: dict[str, tuple]) -> str:
    paths = list(paths)
    listed = [f"{path} is {there.get(path, 'absent')} there, {here.get(path, 'absent')} here" for path in paths[:3]]
    return "; ".join(listed) + (f"; and {len(paths) - 3} more" if len(paths) > 3 else "")


def as_like(tree: Any, like: Any) -> Any:
    """The tree in the dtypes of `like`; the arrays themselves where they have them."""
    return jax.tree.map(
        lambda x, wanted: (
            x if x.dtype == wanted.dtype else jax.device_put(jnp.astype(x, wanted.dtype), wanted.sharding)
        ),
        tree,
        like,
    )
