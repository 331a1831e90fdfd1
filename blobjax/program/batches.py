"""From host rows to a global batch: each process reads only the rows its own devices hold."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from blobjax.config import BatchSizes
from blobjax.data import Stream


@dataclass(frozen=True)
class Position:
    """Where in the data stream a step is; the stream counts sequences, so that a changed batch size keeps its place.

    Attributes:
      start: steps taken when this attempt began.
      start_sequences: sequences used up by then.
      sizes: sequences in each step, by this config.
    """

    start: int
    start_sequences: int
    sizes: BatchSizes

    def sequences(self, step: int) -> int:
        """Sequences used up after this many steps."""
        return self.start_sequences + self.sizes.sequences(step) - self.sizes.sequences(self.start)


def local_rows(sharding: jax.sharding.Sharding, shape_BT: tuple[int, int]) -> np.ndarray:
    """Sorted indices of the rows of a [B, T] batch that this process's devices hold, in part or whole."""
    indices = sharding.addressable_devices_indices_map(shape_BT).values()
    slices = {index[0].indices(shape_BT[0]) for index in indices if index is not None}
    return np.unique(np.concatenate([np.arange(*each) for each in slices]))


def to_global(
    local: Mapping[str, np.ndarray],
    rows: np.ndarray,
    sharding: jax.sharding.Sharding,
    shape_BT: tuple[int, int],
) -> dict[str, jax.Array]:
    """Puts this process's rows on its devices as parts of global arrays.

    Args:
      local: arrays of [len(rows), T].
      rows: which rows of the global batch these are, sorted.
      shape_BT: the global shape.
    """

    def place(name: str) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(shape_BT[0])
            first = int(np.searchsorted(rows, start))
            return local[name][first : first + stop - start, index[1]]

        return jax.make_array_from_callback(shape_BT, sharding, shard)

    return {name: place(name) for name in local}


def global_batches(
    stream: Stream, first_sequence: int, sharding: jax.sharding.Sharding, shape_BT: tuple[int, int]
) -> Iterator[dict[str, jax.Array]]:
    """The training batches from a position on; the same global batches whatever the mesh or number of processes."""
    rows = local_rows(sharding, shape_BT)
    for local in stream.batches(first_sequence, rows, shape_BT[0]):
        yield to_global(local, rows, sharding, shape_BT)


def training_batches(
    stream: Stream, position: Position, steps: Iterable[int], sharding: jax.sharding.Sharding, length: int
) -> Iterator[dict[str, jax.Array]]:
    """The batches of these steps, which count from 1 and follow on each other, each of its step's size."""
    for size, stage in itertools.groupby(steps, position.sizes.at):
        first = next(stage)
        batches = global_batches(stream, position.sequences(first - 1), sharding, (size, length))
        for _, batch in zip(itertools.chain([first], stage), batches, strict=False):
            yield batch
