"""States kept in host memory, to go back to without a checkpoint. Each process keeps what its own devices hold."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from blobjax.program.state import TrainState
from blobjax.training.run import Run
from blobjax.training.trouble import GuardWatch

# Which part of an array a shard is: start and stop along each dim.
_Part = tuple[tuple[int | None, int | None], ...]


def _part(index: tuple[slice, ...] | None) -> _Part:
    assert index is not None
    return tuple((each.start, each.stop) for each in index)


@dataclass(frozen=True)
class Snapshot:
    """A copy of one state.

    Attributes:
      step: steps taken by then.
      leaves: for each array of the state, in the tree's order, the parts of it that this process holds.
    """

    step: int
    leaves: list[dict[_Part, np.ndarray]]

    @classmethod
    def take(cls, step: int, state: TrainState) -> "Snapshot":
        """Copies a state; returns when the devices may do with it what they like."""
        # A replicated array is copied once, not once for every device.
        parts = [{_part(s.index): s.data for s in leaf.addressable_shards} for leaf in jax.tree.leaves(state)]
        for shard in jax.tree.leaves(parts):
            shard.copy_to_host_async()
        # On a CPU numpy would look into the device's own memory, which the next step overwrites: hence copies.
        return cls(step, [{part: np.array(data) for part, data in leaf.items()} for leaf in parts])

    def restore(self, like: TrainState) -> TrainState:
        """The state, bit by bit, on the shardings it was taken from.

        Args:
          like: its shapes and shardings.
        """

        def place(leaf: Any, parts: dict[_Part, np.ndarray]) -> jax.Array:
            # A copy again, for the same reason: steps are given this memory to write into.
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: parts[_part(index)].copy())

        leaves, tree = jax.tree.flatten(like)
        return jax.tree.unflatten(tree, [place(*each) for each in zip(leaves, self.leaves, strict=True)])


class SnapshotRing:
    """The newest snapshots, and the hook that takes them: every so many steps, while the guard sees no trouble.

    Args:
      size: how many are kept; 0: none is taken.
      every: steps between them.
      watch: says whether there is trouble.
    """

    account, patient = "other", True

    def __init__(self, size: int, every: int, watch: GuardWatch):
        self._snapshots: deque[Snapshot] = deque(maxlen=size)
        self._every = every
        self._watch = watch

    @classmethod
    def make(cls, run: Run) -> "SnapshotRing | None":
        """With `conditioning.guard.rollback`."""
        guard, watch = run.config.conditioning.guard, run.watch
        if not isinstance(watch, GuardWatch) or not guard or not guard.rollback:
            return None
        return cls(guard.rollback.snapshots, guard.rollback.snapshot_every, watch)

    def due(self, step: int) -> bool:
        """At multiples of the interval, so that a resumed run takes the same ones."""
        return bool(self._snapshots.maxlen) and step % self._every == 0

    def run(self, step: int, state: TrainState) -> bool:
        """Takes one, unless there is trouble: it would push out a good one."""
        if self._watch.calm:
            self._snapshots.append(Snapshot.take(step, state))
        return False

    def newest(self, step: int) -> Snapshot | None:
        """The newest that is not after a step."""
        return next((each for each in reversed(self._snapshots) if each.step <= step), None)

    def undo(self, step: int) -> None:
        """Lets go of every snapshot after a step."""
        while self._snapshots and self._snapshots[-1].step > step:
            self._snapshots.pop()
