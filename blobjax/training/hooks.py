"""What happens between steps: evaluation, saving, stopping at a time limit, and a profiler window."""

import time
from pathlib import Path
from typing import Any

import jax

from blobjax.config import Duration
from blobjax.data import Stream
from blobjax.training.batches import Position
from blobjax.training.checkpoints import Checkpointer
from blobjax.training.evaluation import evaluate
from blobjax.training.program import Program
from blobjax.training.recorder import Recorder
from blobjax.training.run_directory import EventLog
from blobjax.training.state import TrainState
from blobjax.training.timers import Every, process_zero_says


class SaveHook:
    """Saves the state when due and after the last step."""

    def __init__(
        self, checkpointer: Checkpointer, every: Every, length: int, position: Position, data: str, events: EventLog
    ):
        self._checkpointer = checkpointer
        self._every = every
        self._length = length
        self._position = position
        self._data = data
        self._events = events
        self._saved = -1

    def due(self, step: int) -> bool:
        """Every so often, and at the end."""
        return self._every.due(step) or step == self._length

    def run(self, step: int, state: TrainState) -> bool:
        """Starts an asynchronous save; the stall is what training waited for."""
        if step != self._saved:
            began = time.perf_counter()
            self._checkpointer.save(state, step, self._position.sequences(step), self._data)
            self._saved = step
            self._events.write("save", step=step, stall_seconds=time.perf_counter() - began)
        return False


class EvaluateHook:
    """Evaluates every domain when due and after the last step; compiled on first use,so training starts sooner."""

    def __init__(
        self,
        program: Program,
        stream: Stream,
        every: Every,
        recorder: Recorder,
        events: EventLog,
    ):
        self._program = program
        self._stream = stream
        self._every = every
        self._recorder = recorder
        self._events = events
        self._eval_step: Any = None
        self._held_out: dict[str, Any] = {}

    def due(self, step: int) -> bool:
        """Every so often, and at the end."""
        return self._every.due(step) or step == self._program.clockwork.length

    def run(self, step: int, state: TrainState) -> bool:
        """Evaluates, records and says it in one line."""
        began = time.perf_counter()
        config = self._program.config
        if self._eval_step is None:
            self._eval_step = self._program.lower_eval_step().compile()
            self._held_out = {
                domain: self._stream.held_out(domain, config.evaluation.sequences) for domain in config.data.mixture
            }
        metrics = evaluate(
            self._eval_step,
            state.params,
            self._held_out,
            self._program.batch_sharding,
            self._program.shape_BT,
        )
        self._recorder.write(step, metrics)
        figures = "  ".join(f"{domain} {metrics[f'eval/{domain}/bits_per_byte']:.3f}" for domain in self._held_out)
        self._recorder.say(f"step {step}  held-out bits/byte: {figures}")
        self._events.write("evaluate", step=step, seconds=time.perf_counter() - began)
        return False


class LimitHook:
    """Ends the loop, saved, once this process has run for long enough."""

    # Asking process 0 is a broadcast, so it is not done at every step.
    _ASK_EVERY = 10

    def __init__(self, limit: Duration | None, save: SaveHook):
        self._deadline = None if limit is None or limit.seconds is None else time.monotonic() + limit.seconds
        self._save = save

    def due(self, step: int) -> bool:
        """Whether process 0's time is up."""
        if self._deadline is None or (jax.process_count() > 1 and step % self._ASK_EVERY):
            return False
        return process_zero_says(time.monotonic() >= self._deadline)

    def run(self, step: int, state: TrainState) -> bool:
        """Saves and stops."""
        self._save.run(step, state)
        return True


class ProfileHook:
    """Traces the steps after `first` up to `last` with jax.profiler."""

    def __init__(self, steps: tuple[int, int] | None, directory: Path):
        self._steps = steps
        self._directory = directory

    def due(self, step: int) -> bool:
        """At both ends of the window."""
        return self._steps is not None and step in self._steps

    def run(self, step: int, state: TrainState) -> bool:
        """Starts or ends the trace."""
        assert self._steps is not None
        if step == self._steps[0]:
            jax.profiler.start_trace(str(self._directory))
        else:
            jax.profiler.stop_trace()
        return False
