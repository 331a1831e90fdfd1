"""The train step for each batch size that a run comes to: one, or as many as its batch warm-up has stages."""

import time
from typing import Any

from blobjax.config import HaltedError
from blobjax.objectives import Batch
from blobjax.program.program import Program
from blobjax.program.state import TrainState
from blobjax.program.step import Metrics
from blobjax.runs.directory import EventLog
from blobjax.training.memory import memory_bytes, step_problem


class Stages:
    """The step, and a hook: before the batch size changes it compiles the next step, so that no step's time holds that.

    Attributes:
      compiled: the steps compiled so far, by sequences in a batch.
    """

    account, patient = "compile", True

    def __init__(self, program: Program, events: EventLog):
        self._program = program
        self._events = events
        self.compiled: dict[int, Any] = {}

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step, of the batch's size."""
        return self._step(len(batch["tokens"]))(state, batch)

    @property
    def newest(self) -> tuple[int, dict[str, int]]:
        """Sequences in a batch of the step compiled last, and its `memory_bytes`; those of a whole batch before it."""
        for batch_size, compiled in reversed(self.compiled.items()):
            return batch_size, memory_bytes(compiled)
        return self._program.shape_BT[0], {}

    def due(self, step: int) -> bool:
        """Where the next step has another size than any so far."""
        clockwork = self._program.clockwork
        return step < clockwork.length and clockwork.batches.at(step + 1) not in self.compiled

    def run(self, step: int, state: TrainState) -> bool:
        """Compiles it."""
        self._step(self._program.clockwork.batches.at(step + 1))
        return False

    def _step(self, batch_size: int) -> Any:
        if batch_size not in self.compiled:
            began = time.monotonic()
            compiled = self._program.lower_train_step(batch_size).compile()
            seconds = time.monotonic() - began
            if problem := step_problem(self._program, batch_size, compiled):
                raise HaltedError(f"the batch warm-up has come to {batch_size} sequences: {problem}")
            self.compiled[batch_size] = compiled
            self._events.write("compile", seconds=seconds, batch_size=batch_size, memory_bytes=memory_bytes(compiled))
        return self.compiled[batch_size]
