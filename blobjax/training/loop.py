"""The loop: batches in, steps dispatched, metrics out one step late. It knows nothing of models, losses or files."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import jax

from blobjax.objectives import Batch, BatchSource
from blobjax.program.state import TrainState
from blobjax.program.step import Metrics


@dataclass(frozen=True)
class StepReport:
    """What is known of one step once the device has finished it.

    Attributes:
      step: steps taken so far, this one included.
      metrics: scalars, still on the device.
      seconds: device time: from the end of the previous step to the end of this one.
      data_wait: seconds the loop stood waiting for this step's batch.
      device_wait: seconds the loop stood waiting for this step's end.
    """

    step: int
    metrics: Metrics
    seconds: float
    data_wait: float
    device_wait: float


class Hook(Protocol):
    """Something that happens between steps: a save, an evaluation, a stop."""

    def due(self, step: int) -> bool:
        """Asked after every step, on every process."""

    def run(self, step: int, state: TrainState) -> bool:
        """Does it; True ends the loop."""


def run(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    state: TrainState,
    source: BatchSource,
    steps: Iterable[int],
    report: Callable[[StepReport], None],
    hooks: list[Hook],
) -> TrainState:
    """Runs the given steps (numbered from 1) and returns the last state.

    Step N is dispatched before the metrics of N-1 are waited for, so that the device never waits for Python. Before a
    hook runs, the step in flight is finished and reported; the clock starts anew after it, so that no step's time holds
    an evaluation or a save.
    """
    in_flight: tuple[int, Metrics, float] | None = None
    mark = 0.0

    def finish() -> None:
        nonlocal in_flight, mark
        if in_flight is None:
            return
        step, metrics, data_wait = in_flight
        in_flight = None
        asked = time.perf_counter()
        jax.block_until_ready(metrics)
        now = time.perf_counter()
        seconds, mark = now - mark, now
        report(StepReport(step, metrics, seconds, data_wait, now - asked))

    for step in steps:
        asked = time.perf_counter()
        batch = source.next(step, state)
        data_wait = time.perf_counter() - asked
        if in_flight is None:
            mark = time.perf_counter()
        state, metrics = train_step(state, batch)
        finish()
        in_flight = (step, metrics, data_wait)
        due = [hook for hook in hooks if hook.due(step)]
        if due:
            finish()
            # Every hook runs, even when an earlier one asks to stop: a stop must not swallow a save.
            if any([hook.run(step, state) for hook in due]):
                break
    finish()
    return state
