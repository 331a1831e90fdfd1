"""What a run does about trouble: it goes back to a good state and passes over data, or it halts with a report.

Random numbers and batches are functions of seed and position, so the run after a rollback follows from its config and
the windows of data it passes over, and from nothing else. A snapshot, a checkpoint and the initial state are points of
one and the same way: which of them is gone back to decides how much is computed again, never what comes of it. That is
why the windows, written down before training goes on, are all that a restart needs to know of a rollback.
"""

import json
from collections.abc import Callable
from typing import Any, NoReturn

import jax

from blobjax.config import DivergedError, HaltedError
from blobjax.objectives import Batch, BatchSource
from blobjax.processes.agreement import check_agreement
from blobjax.program.state import TrainState
from blobjax.program.step import Metrics
from blobjax.runs.directory import write_atomically
from blobjax.runs.passages import write_passages
from blobjax.training import loop
from blobjax.training.inputs import windows
from blobjax.training.loop import Hook, StepReport
from blobjax.training.post_mortem import Examiner, as_json, first_bad
from blobjax.training.run import Run
from blobjax.training.snapshots import SnapshotRing
from blobjax.training.trouble import NotFinite, Trouble, remedy

# What a signal's line says during the post-mortem, which stops at no step.
_HALTING = "the run is halting; ending once the first bad numbers are found"

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class _KeepsNewest:
    """A train step that keeps hold of the newest state, for when trouble ends the loop."""

    def __init__(self, train_step: TrainStep):
        self._train_step = train_step
        self._newest: TrainState | None = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        self._newest, metrics = self._train_step(state, batch)
        return self._newest, metrics

    def give_up(self) -> TrainState | None:
        """The newest state, of which no reference stays here."""
        newest, self._newest = self._newest, None
        return newest


def _run_until_trouble(*arguments: Any) -> TrainState | Trouble:
    """The loop's last state, or the trouble that ended it. Arguments as of `loop.run`."""
    try:
        return loop.run(*arguments)
    except Trouble as trouble:
        # Its traceback would keep the loop's state on the devices, where another has to find room.
        return trouble.with_traceback(None)


def _unfound(error: Exception) -> str:
    return f"not found ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"[:200]


class Recovery:
    """Decides what follows on trouble, the same on every process.

    Args:
      sources: where the batches of these steps come from, which count from 1, from the stream as it is then.
      ring: snapshots to go back to; None: there are none.
    """

    def __init__(self, run: Run, sources: Callable[[range], BatchSource], ring: SnapshotRing | None):
        guard = run.config.conditioning.guard
        self._rollback = guard.rollback if guard else None
        self._run = run
        self._sources = sources
        self._ring = ring

    def run(
        self,
        train_step: TrainStep,
        state: TrainState,
        report: Callable[[StepReport], None],
        hooks: list[Hook],
    ) -> TrainState:
        """Runs the loop from a state to the run's length, again after each rollback; returns the last state.

        Raises:
          HaltedError: on trouble, where there is no rollback, or no more of them.
          DivergedError: the numbers are not finite, and no guard has kept the state from it.
        """
        step = _KeepsNewest(train_step)
        while True:
            steps = range(int(state.step) + 1, self._run.length + 1)
            outcome = _run_until_trouble(step, state, self._sources(steps), steps, report, hooks)
            if not isinstance(outcome, Trouble):
                return outcome
            # Steps that may be undone have an entry of their own.
            self._run.clock.write(self._run.events)
            with self._run.pause("going back", "rollback"):
                state = self._after(outcome, step)

    def _after(self, trouble: Trouble, step: _KeepsNewest) -> TrainState:
        """The state to go on from, the stream without what led to the trouble."""
        if isinstance(trouble, NotFinite):
            self._diverge(trouble, step)
        if self._rollback is None:
            self._halt(trouble, trouble.first - 1, step.give_up())
        # The last step whose state is taken to be good.
        good = max(trouble.first - 1 - self._rollback.margin, self._run.past.first)
        if len(self._run.passages) >= self._rollback.at_most:
            self._halt(trouble, good, step.give_up())
        step.give_up()
        outlook = "going back to a good step, and stopping after the one that follows it, saving"
        with self._run.stopping.during(outlook):
            self._run.saver.finish()
            state = self._state(good)
            self._pass_over(trouble, good, int(state.step))
        return state

    def _state(self, step: int) -> TrainState:
        """The newest state at hand that is not after a step."""
        snapshot = self._ring.newest(step) if self._ring else None
        saved = [each for each in self._run.checkpointer.steps() if each <= step]
        if snapshot is not None and (not saved or saved[-1] <= snapshot.step):
            return snapshot.restore(self._run.program.state)
        restored = self._run.checkpointer.restore_newest(self._run.program.state, None, step, self._run.quarantined)
        if restored is None:
            return self._run.first_state(None)[0]
        if snapshot is not None and restored.step < snapshot.step:
            return snapshot.restore(self._run.program.state)
        return restored.state

    def _pass_over(self, trouble: Trouble, good: int, back_to: int) -> None:
        """Leaves out the data from the last good step on, and everything that came of it."""
        assert self._rollback is not None
        number, sequences = self._run.stream.passed_over.number, self._run.position.sequences
        first, last = number(sequences(good)), number(sequences(trouble.step + self._rollback.skip))
        self._run.passages.append({"first": first, "last": last, "step": trouble.step, "reason": trouble.reason})
        # In this order: a run that is killed in between comes back without the window, from before the trouble, and
        # decides the same once more. The other way round it could come back from a state that has seen the window.
        self._run.saver.undo(good)
        if jax.process_index() == 0:
            write_passages(self._run.directory.passed_over, self._run.passages)
        check_agreement(**{"data passed over": json.dumps(self._run.passages)})
        self._run.stream.passed_over = windows(self._run.passages)
        if self._ring:
            self._ring.undo(good)
        self._run.recorder.undo(back_to)
        self._run.events.write(
            "rollback", step=trouble.step, to_step=back_to, reason=trouble.reason, passed_over=[first, last]
        )
        self._run.say(
            f"step {trouble.step}: {trouble.reason}; rolled back to step {back_to} "
            f"({len(self._run.passages)} of {self._rollback.at_most}), sequences {first:,} to {last:,} are passed over"
        )

    def _diverge(self, trouble: NotFinite, step: _KeepsNewest) -> NoReturn:
        step.give_up()
        try:
            with self._run.stopping.during(_HALTING):
                self._run.saver.finish()
                good = self._state(max(trouble.first - 2, self._run.past.first))
                examiner = Examiner(self._run.program, self._sources)
                found = examiner.search(good, trouble.first, step, self._run.watchdog.patience)
            place = f"{found.place} at step {found.step}"
            if jax.process_index() == 0:
                facts = {"step": trouble.step, "reason": trouble.reason, "first_bad": found.place}
                facts |= {"first_bad_step": found.step, "good_step": found.step - 1 if found.good else None}
                write_atomically(self._run.directory.halt, as_json(found.bad, found.good, **facts))
        except Exception as error:
            place = _unfound(error)
        finite = self._run.checkpointer.newest_finite()
        left = "no checkpoint is finite" if finite is None else f"the newest finite checkpoint is that of step {finite}"
        raise DivergedError(
            f"halted at step {trouble.step}: {trouble.reason}; first bad numbers: {place}; "
            f"{remedy(self._run.config, place)}; {left}"
        )

    def _halt(self, trouble: Trouble, good: int, newest: TrainState | None) -> NoReturn:
        count = len(self._run.passages)
        rollbacks = f"{count} rollback{'s' if count > 1 else ''}"
        used = f", after {rollbacks} (conditioning.guard.rollback.at_most)" if self._rollback else ""
        try:
            with self._run.stopping.during(_HALTING):
                found = self._examine(trouble, good, newest)
        except Exception as error:  # whatever goes wrong here must not hide why the run halts
            found = _unfound(error)
        raise HaltedError(
            f"halted at step {trouble.step}: {trouble.reason}{used}; first bad numbers: {found}; lower "
            "optimizer.learning_rate, lengthen duration.warmup, or look at the data of these steps"
        )

    def _examine(self, trouble: Trouble, good: int, newest: TrainState | None) -> str:
        """Writes halt.json and returns the first place whose numbers went bad."""
        assert newest is not None
        self._run.saver.finish()
        examiner = Examiner(self._run.program, self._sources)
        # Refused steps have changed nothing: these are the parameters of the bad step, or those one good step on.
        bad, finite = examiner.probe(newest, trouble.step)
        state = self._state(good)
        step = int(state.step)
        # A good state with the batch that led to it, which was accepted.
        reference, _ = examiner.probe(state, max(step, 1))
        found = first_bad(bad, reference, finite)
        if jax.process_index() == 0:
            facts = {"step": trouble.step, "reason": trouble.reason, "first_bad": found, "good_step": step}
            write_atomically(self._run.directory.halt, as_json(bad, reference, **facts))
        return found
