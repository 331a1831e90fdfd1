"""What happens between steps: evaluation, stopping early, and a profiler window. (Saving: saving.py.)"""

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from blobjax.config import Duration
from blobjax.data import Stream
from blobjax.reliability.clock import Clock
from blobjax.reliability.run_directory import EventLog
from blobjax.reliability.stopping import LIMIT, Stopping
from blobjax.reliability.timers import Every, everyone
from blobjax.reliability.watchdog import Watchdog
from blobjax.training.evaluation import by_position, evaluate, summing
from blobjax.training.loop import Hook
from blobjax.training.program import Program
from blobjax.training.recorder import Recorder
from blobjax.training.saving import SaveHook
from blobjax.training.state import TrainState


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
        self._newest: tuple[int, dict[str, float]] = (-1, {})

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
        sums = summing(self._eval_step, state.params, self._program.batch_sharding, self._program.part_BT)
        metrics = evaluate(sums, self._held_out)
        if config.evaluation.by_position:
            metrics |= by_position(sums, self._held_out)
        self._newest = (step, metrics)
        self._recorder.write(step, metrics)
        figures = "  ".join(f"{domain} {metrics[f'eval/{domain}/bits_per_byte']:.3f}" for domain in self._held_out)
        self._recorder.say(f"step {step}  held-out bits/byte: {figures}")
        self._events.write("evaluate", step=step, seconds=time.perf_counter() - began)
        return False

    def newest(self, metric: str, step: int) -> float | None:
        """What the newest evaluation found, if it was made by this process and at or before a step."""
        evaluated, metrics = self._newest
        return metrics.get(metric) if evaluated <= step else None


class StopHook:
    """Ends the loop, saved, when this process or another was told to stop, or at the wall-clock limit.

    Args:
      limit: how long process 0 may run.
      began: when it began, by time.monotonic().
      save: the hook that saves.

    Attributes:
      reason: why the loop ended, the same on every process.
    """

    def __init__(self, stopping: Stopping, limit: Duration | None, began: float, save: SaveHook, events: EventLog):
        self._stopping = stopping
        seconds = limit.seconds if limit is not None and jax.process_index() == 0 else None
        self._deadline = None if seconds is None else began + seconds
        self._save = save
        self._events = events
        self.reason = ""

    def due(self, step: int) -> bool:
        """Whether to stop after this step."""
        self._stopping.resumable = self._save.resumable
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._stopping.request(LIMIT)
        return self._stopping.agreed()

    def run(self, step: int, state: TrainState) -> bool:
        """Saves and stops."""
        self.explain(step)
        self._save.save_now(step, state)
        return True

    def explain(self, step: int) -> None:
        """Finds out, with all the others, which of them was told to stop, and by what."""
        reasons = ["SIGTERM", "SIGHUP", "SIGINT", LIMIT]  # where several stand, the first is named
        mine = reasons.index(self._stopping.reason) if self._stopping.reason else len(reasons)
        everywhere = everyone([mine]).ravel()
        process = int(np.argmin(everywhere))
        # jax takes the signal from its own initialisation on, a moment before us.
        reason = [*reasons, "SIGTERM"][everywhere[process]]
        self.reason = reason
        if reason != LIMIT:
            self._events.write("preempt", step=step, signal=reason, process=process)
            if jax.process_count() > 1:
                self.reason = f"{reason} to process {process}"


# What a signal's line says while a hook works, by account; in any other account the step is what is stopped after.
_OUTLOOKS = {"evaluate": "stopping after this evaluation, saving", "save": "stopping once this save is written"}


class Watched:
    """A hook whose work may take longer than a step, and has an account of its own."""

    def __init__(self, hook: Hook, account: str, watchdog: Watchdog, clock: Clock, stopping: Stopping):
        self._hook = hook
        self._account = account
        self._watchdog = watchdog
        self._clock = clock
        self._stopping = stopping
        self.due = hook.due

    def run(self, step: int, state: TrainState) -> bool:
        """Does what the hook does."""
        outlook = _OUTLOOKS.get(self._account)
        with (
            self._watchdog.patience(f"{type(self._hook).__name__} after step {step}"),
            self._clock.on(self._account),
            self._stopping.during(outlook) if outlook else contextlib.nullcontext(),
        ):
            return self._hook.run(step, state)


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
