"""What happens between steps: evaluation, saving, stopping early, a profiler window and the search for stragglers.

The other hooks: stages.py, corruption.py, landscape.py, snapshots.py. Each is built by `make(run)`, which returns None
where the run's config does not need it.
"""

import time
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from blobjax.config import Duration
from blobjax.processes.stopping import LIMIT, Stopping
from blobjax.processes.stragglers import Stragglers
from blobjax.processes.timers import Earliest, Every, everyone
from blobjax.program.state import TrainState
from blobjax.runs.directory import EventLog
from blobjax.training.loop import Hook, StepReport
from blobjax.training.run import Run
from blobjax.training.saving import Saver
from blobjax.training.trouble import NotFinite


class RunHook(Hook, Protocol):
    """A hook that says what its time is.

    Attributes:
      account: of the clock, which its time goes to.
      patient: it may take longer than a step, so the watchdog has more patience.
    """

    account: str
    patient: bool


# What the line after a signal says while a hook works, by account; in any other account, the step is finished first.
_OUTLOOKS = {"evaluate": "stopping after this evaluation, saving", "save": "stopping once this save is written"}


class Accounted:
    """A hook of a run, whose time goes to the account that it declares, with the patience that it declares."""

    def __init__(self, hook: RunHook, run: Run):
        self._hook = hook
        self._run = run
        self.due = hook.due

    def run(self, step: int, state: TrainState) -> bool:
        """Does what the hook does."""
        hook, doing = self._hook, f"{type(self._hook).__name__} after step {step}"
        pause = self._run.pause(doing, hook.account, _OUTLOOKS.get(hook.account, ""))
        with pause if hook.patient else self._run.clock.on(hook.account):
            return hook.run(step, state)


class EvaluateHook:
    """Evaluates as the objective does, when due and after the last step."""

    account, patient = "evaluate", True

    def __init__(self, run: Run):
        self._run = run
        self._every = Every(run.config.evaluation.every, run.program.clockwork)

    @classmethod
    def make(cls, run: Run) -> "EvaluateHook":
        """Every run evaluates, at its end at least."""
        return cls(run)

    def due(self, step: int) -> bool:
        """Every so often, and at the end."""
        return self._every.due(step) or step == self._run.length

    def run(self, step: int, state: TrainState) -> bool:
        """Evaluates, records and says it in one line."""
        began = time.perf_counter()
        run, objective = self._run, self._run.program.objective
        metrics = objective.evaluate(run.context, state.params)
        run.evaluated = (step, metrics)
        run.recorder.write(step, metrics)
        name, label = objective.watched
        figures = "  ".join(
            f"{key.removeprefix('eval/').removesuffix(f'/{name}')} {value:.3f}"
            for key, value in metrics.items()
            if key.endswith(f"/{name}")
        )
        run.say(f"step {step}  held-out {label}: {figures}")
        run.events.write("evaluate", step=step, seconds=time.perf_counter() - began)
        return False


class SaveHook:
    """Saves the state when due and after the last step.

    Args:
      every: when a save is due.
      length: the run's last step, which is always saved.
    """

    account, patient = "save", True

    def __init__(self, saver: Saver, every: Earliest, length: int):
        self._saver = saver
        self._every = every
        self._length = length

    @classmethod
    def make(cls, run: Run) -> "SaveHook":
        """Every run is saved, at its end at least."""
        return cls(run.saver, Earliest(run.config.checkpoint.every, run.program.clockwork), run.length)

    def due(self, step: int) -> bool:
        """Every so often, and at the end. What has become of the save in flight is told as soon as it is known."""
        self._saver.look()
        return self._every.due(step) or step == self._length

    def run(self, step: int, state: TrainState) -> bool:
        """Starts a save; waits for the last one.

        Raises:
          NotFinite: the parameters are not finite after the last step; on every process.
        """
        if step != self._length:
            self._saver.save(step, state)
            return False
        self._saver.save_now(step, state)
        if not self._saver.finite:
            raise NotFinite(step, step + 1, "its parameters are not finite, although its loss was")
        return False


class StopHook:
    """Ends the loop, saved, when this process or another was told to stop, or at the wall-clock limit.

    Args:
      limit: how long process 0 may run.
      began: when it began, by time.monotonic().
      saver: saves the state before the end.

    Attributes:
      reason: why the loop ended, the same on every process.
    """

    account, patient = "save", True

    def __init__(self, stopping: Stopping, limit: Duration | None, began: float, saver: Saver, events: EventLog):
        self._stopping = stopping
        seconds = limit.seconds if limit is not None and jax.process_index() == 0 else None
        self._deadline = None if seconds is None else began + seconds
        self._saver = saver
        self._events = events
        self.reason = ""

    @classmethod
    def make(cls, run: Run) -> "StopHook":
        """Every run can be stopped."""
        return cls(run.stopping, run.config.duration.wall_clock_limit, run.began, run.saver, run.events)

    def due(self, step: int) -> bool:
        """Whether to stop after this step."""
        self._stopping.resumable = self._saver.resumable
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._stopping.request(LIMIT)
        return self._stopping.agreed()

    def run(self, step: int, state: TrainState) -> bool:
        """Saves and stops."""
        self.explain(step)
        self._saver.save_now(step, state)
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


class ProfileHook:
    """Traces the steps after `first` up to `last` with jax.profiler; a context manager, so that no trace stays open.

    Args:
      steps: first and last.
      start: the step this attempt begins after.
      directory: where the trace goes.
    """

    account, patient = "other", True

    def __init__(self, steps: tuple[int, int], start: int, directory: Path):
        self._first, self._last = steps
        self._start = start
        self._directory = directory
        self._tracing = False

    @classmethod
    def make(cls, run: Run) -> "ProfileHook | None":
        """With `logging.profile_steps`; the run closes it."""
        steps = run.config.logging.profile_steps
        return run.stack.enter_context(cls(steps, run.position.start, run.directory.profile)) if steps else None

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


class StragglersHook(Stragglers):
    """Says now and then which of several processes holds up the others."""

    account, patient = "other", True

    @classmethod
    def make(cls, run: Run) -> "StragglersHook | None":
        """With several processes, and `reliability.stragglers_every`."""
        every = run.config.reliability.stragglers_every
        if jax.process_count() == 1 or not every.amount:
            return None
        return cls(Every(every, run.program.clockwork), run.events, run.say)

    def report(self, done: StepReport) -> None:
        """Takes note of a step's time."""
        self.note(done.seconds, done.data_wait, done.device_wait)
