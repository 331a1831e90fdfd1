"""The run as its objective sees it (`objectives.Context`): data by step, held-out data, and sums over it."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from blobjax.config import Config
from blobjax.data import Stream
from blobjax.objectives import Batch, BatchSource, HeldOut
from blobjax.processes.clock import Clock
from blobjax.program.batches import Position, local_rows, to_global, training_batches
from blobjax.program.program import Program


class RunContext:
    """What every objective may use of a run.

    Args:
      position: where in the stream the steps of this attempt are.

    Attributes:
      config: the run's.
      stream: its data.
    """

    def __init__(self, program: Program, stream: Stream, position: Position):
        self._program = program
        self._position = position
        self.config: Config = program.config
        self.stream = stream

    @functools.cached_property
    def held_out(self) -> dict[str, HeldOut]:
        """`evaluation.sequences` held-out rows of every domain."""
        return {
            domain: self.stream.held_out(domain, self.config.evaluation.sequences)
            for domain in self.config.data.mixture
        }

    @functools.cached_property
    def _eval_step(self) -> Any:
        # Compiled on first use, so that training starts sooner.
        return self._program.lower_eval_step().compile()

    def batches(self, steps: Iterable[int]) -> Iterator[Batch]:
        """The stream's global batches of these steps, which follow on each other."""
        return training_batches(
            self.stream, self._position, steps, self._program.batch_sharding, self.config.data.seq_len
        )

    def sums(self, params: Any, windows: HeldOut) -> dict[str, float]:
        """The objective's sums over all rows of these windows, computed in global batches."""
        batches = _evaluation_batches(windows, self._program.batch_sharding, self._program.part_BT)
        parts = jax.device_get([self._eval_step(params, batch) for batch in batches])
        return {name: sum(float(part[name]) for part in parts) for name in parts[0]}


def _evaluation_batches(
    windows: HeldOut, sharding: jax.sharding.Sharding, shape_BT: tuple[int, int]
) -> Iterator[Batch]:
    """Cuts held-out rows into global batches; the last is filled up with padding, which the mask leaves out."""
    count = len(windows["tokens"])
    rows = local_rows(sharding, shape_BT)
    for first in range(0, count, shape_BT[0]):
        wanted = first + rows
        real = wanted < count
        local = {}
        for name, array in windows.items():
            part = array[np.where(real, wanted, 0)]
            part[~real] = 0
            local[name] = part
        yield to_global(local, rows, sharding, shape_BT)


class TimedSource:
    """A source whose waits go into the clock's account `data_wait`."""

    def __init__(self, source: BatchSource, clock: Clock):
        self._source = source
        self._clock = clock

    def next(self, step: int, state: Any) -> Batch:
        """The batch of a step."""
        with self._clock.on("data_wait"):
            return self._source.next(step, state)
