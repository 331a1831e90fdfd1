"""What happens between steps: evaluation, saving, stopping early, and a profiler window."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import jax

from blobjax.config import Duration
from blobjax.data import Stream
from blobjax.reliability.run_directory import EventLog
from blobjax.reliability.timers import Every, process_zero_says
from blobjax.training.batches import Position
from blobjax.training.checkpoints import Checkpointer
from blobjax.training.evaluation import by_position, evaluate
from blobjax.training.program import Program
from blobjax.training.recorder import Recorder
from blobjax.training.state import TrainState


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
        self._newest = -1
        self._in_flight: dict[str, Any] | None = None

    def due(self, step: int) -> bool:
        """Every so often, and at the end."""
        return self._every.due(step) or step == self._length

    def run(self, step: int, state: TrainState) -> bool:
        """Starts an asynchronous save; training waits only until the state is off the devices."""
        if step != self._newest:
            began = time.perf_counter()
            self.finish()
            self._checkpointer.save(state, step, self._position.sequences(step), self._data)
            self._newest = step
            self._in_flight = {"step": step, "stall_seconds": time.perf_counter() - began}
        return False

    def undo(self, step: int) -> None:
        """Lets go of every checkpoint after a step, on all processes: the run goes another way from there."""
        self.finish()
        self._checkpointer.delete_after(step)
        self._newest = -1

    def finish(self) -> None:
        """Waits for the save in flight to be committed; only then is it an event."""
        if self._in_flight is not None:
            self._checkpointer.wait()
            self._events.write("save", **self._in_flight)
            self._in_flight = None


class EvaluateHook:
    """Evaluates every domain when due and after the last step; compiled on first use, so training starts sooner."""

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
        how = (self._eval_step, state.params, self._held_out, self._program.batch_sharding, self._program.part_BT)
        metrics = evaluate(*how)
        if config.evaluation.by_position:
            metrics |= by_position(*how)
        self._recorder.write(step, metrics)
        figures = "  ".join(f"{domain} {metrics[f'eval/{domain}/bits_per_byte']:.3f}" for domain in self._held_out)
        self._recorder.say(f"step {step}  held-out bits/byte: {figures}")
        self._events.write("evaluate", step=step, seconds=time.perf_counter() - began)
        return False


class StopHook:
    """Ends the loop, saved, at the wall-clock limit, or when a single process is interrupted or told to terminate.

    Args:
      limit: how long this process may run.
      began: when it began, by time.monotonic().
      save: the hook that saves.
    """

    # With several processes, asking process 0 for the time is a broadcast, so it is not done at every step.
    _ASK_EVERY = 10

    def __init__(self, limit: Duration | None, began: float, save: SaveHook):
        self._deadline = None if limit is None or limit.seconds is None else began + limit.seconds
        self._save = save
        self._signal: str | None = None
        self.reason = ""

    def __enter__(self) -> "StopHook":
        # Several processes must agree on a step to stop at, which a signal to one of them cannot arrange.
        self._previous = {}
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._take_note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take_note(self, number: int, frame: object) -> None:
        self._signal = signal.Signals(number).name
        # The second signal finds the handlers that were there before, and stops at once.
        self.__exit__()

    def due(self, step: int) -> bool:
        """Whether to stop after this step."""
        if self._signal is not None:
            self.reason = self._signal
        elif self._deadline is None or (jax.process_count() > 1 and step % self._ASK_EVERY):
            return False
        elif process_zero_says(time.monotonic() >= self._deadline):
            self.reason = "wall-clock limit"
        return bool(self.reason)

    def run(self, step: int, state: TrainState) -> bool:
        """Saves and stops."""
        self._save.run(step, state)
        return True


class ProfileHook:
    """Traces the steps after `first` up to `last` with jax.profiler; a context manager, so that no trace stays open.

    Args:
      steps: first and last, or None for no trace.
      start: the step this attempt begins after.
      directory: where the trace goes.
    """

    def __init__(self, steps: tuple[int, int] | None, start: int, directory: Path):
        self._first, self._last = steps or (-1, -1)
        self._start = start
        self._directory = directory
        self._tracing = False

    def __enter__(self) -> "ProfileHook":
        if self._first <= self._start < self._last:
            self._begin()
        return self

    def __exit__(self, *error: object) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

    def _begin(self) -> None:
        self._tracing = True
        jax.profiler.start_trace(str(self._directory))

    def due(self, step: int) -> bool:
        """At both ends of the window."""
        return step in (self._first, self._last)

    def run(self, step: int, state: TrainState) -> bool:
        """Starts or ends the trace."""
        if step == self._last:
            self.__exit__()
        elif not self._tracing:  # a rollback comes here twice
            self._begin()
        return False
