"""The host's side of trouble: when a run's numbers say that it cannot go on like this.

With a guard the device refuses bad steps and counts them, and a run may have a way out (recovery.py). Without one
nothing mends parameters that are not finite: the run halts, and goes on, if it does, from a checkpoint that is finite.
A step's loss is computed before its update, so a finite loss says nothing of the state after it: what decides is
whether all parameters are finite, which every save finds out.
"""

import math
from collections.abc import Callable

from blobjax.config import Config
from blobjax.config.schema import Guard
from blobjax.runs.directory import EventLog
from blobjax.training.loop import StepReport


class Trouble(Exception):  # noqa: N818 (it is no error: a run may have a way out of it)
    """The numbers stayed bad for too long; the same on every process.

    Args:
      step: the step it was found at.
      first: the step it began with.
      reason: what is wrong, for a person.
    """

    def __init__(self, step: int, first: int, reason: str):
        self.step, self.first, self.reason = step, first, reason
        super().__init__(reason)


class NotFinite(Trouble):
    """The loss stayed, or the parameters are, not finite: trouble that no rollback of the guard's has met."""


class GuardWatch:
    """Takes the loop's reports. It remembers nothing that a decision hangs on: the device counts, a restart goes on.

    Args:
      guard: its patience, and what makes a loss that stays high trouble.
      say: prints a line for the person watching.

    Attributes:
      calm: the newest step was accepted, and its loss not too high.
    """

    def __init__(self, guard: Guard, say: Callable[[str], None], events: EventLog):
        self._patience = guard.patience
        self._sustained = guard.rollback.sustained if guard.rollback else None
        self._say = say
        self._events = events
        self.calm = True

    def report(self, done: StepReport) -> None:
        """Reads a few scalars of a finished step, so no device is waited for.

        Raises:
          Trouble: more steps in a row were refused than the guard has patience for, or the loss stayed too high.
        """
        refused = int(done.metrics["skipped_in_a_row"])
        troubled = int(done.metrics.get("troubled", refused))
        self.calm = not troubled
        if done.metrics["skipped"]:
            loss, norm = float(done.metrics["loss"]), float(done.metrics["grad_norm"])
            # As text: JSON has no NaN.
            self._events.write("skip", step=done.step, loss=str(loss), grad_norm=str(norm))
            self._say(f"step {done.step} skipped: loss {loss:.4g}, gradient norm {norm:.4g}")
        first = done.step - troubled + 1
        if refused > self._patience:
            raise Trouble(
                done.step,
                first,
                f"{refused} step{'s' if refused > 1 else ''} in a row had a loss or gradients that are not finite or "
                f"spike (conditioning.guard.patience {self._patience})",
            )
        if self._sustained and troubled >= self._sustained.steps:
            raise Trouble(
                done.step,
                first,
                f"for {troubled} steps in a row the loss was {self._sustained.sigmas:g} standard deviations above its "
                f"best window, now {float(done.metrics['loss']):.4g} (conditioning.guard.rollback.sustained)",
            )


class FiniteWatch:
    """Takes the loop's reports of a run without a guard, and ends it when its loss stays not finite.

    Args:
      limit: steps in a row that end it (`reliability.nonfinite_limit`).
      length: the run's last step, at which one is enough.
    """

    def __init__(self, limit: int, length: int):
        self._limit = limit
        self._length = length
        self._in_a_row = 0

    def report(self, done: StepReport) -> None:
        """Reads one scalar of a step that is finished, while the next one runs: no device is waited for.

        Raises:
          NotFinite: the same on every process.
        """
        if math.isfinite(float(done.metrics["loss"])):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        first = done.step - self._in_a_row + 1
        if self._in_a_row >= self._limit:
            raise NotFinite(
                done.step,
                first,
                f"the loss has not been finite since step {first} (reliability.nonfinite_limit {self._limit})",
            )
        # A step that loss scaling skipped has left the state as it was.
        if done.step == self._length and not done.metrics.get("skipped", 0):
            raise NotFinite(done.step, first, f"the loss has not been finite since step {first}, and this is the last")


def remedy(config: Config, found: str) -> str:
    """The switch that would have helped, as far as config and post-mortem tell.

    A switch changes what the optimizer's state or the parameters consist of, so it takes a new run; a rate does not.

    Args:
      found: the first place whose numbers went bad, as `post_mortem.first_bad` says it.
    """
    conditioning = config.conditioning
    lower = (
        f"go on with --allow-config-change and a lower optimizer.learning_rate (now {config.optimizer.learning_rate:g})"
    )
    if found.startswith("the batch itself"):
        return "start anew with conditioning.guard={}, which skips such batches"
    if conditioning.precision == "float16" and conditioning.loss_scaling.kind == "none":
        switch = "conditioning.loss_scaling.kind=dynamic"
    elif conditioning.precision == "float16":
        switch = "conditioning.precision=bfloat16, which has float32's range"
    elif not conditioning.qk_norm and "attention" in found:
        switch = "conditioning.qk_norm=true"
    elif conditioning.clip == "global_norm" and not conditioning.clip_norm:
        switch = "conditioning.clip_norm=1"
    else:
        return f"{lower}, or start anew with conditioning.guard={{}}, which skips such steps"
    return f"start anew with {switch}, or {lower}"
