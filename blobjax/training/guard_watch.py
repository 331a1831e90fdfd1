"""The host's side of the guard: says which steps were refused, and when a run cannot go on like this."""

from collections.abc import Callable

from blobjax.config.schema import Guard
from blobjax.runs.directory import EventLog
from blobjax.training.loop import StepReport


class Trouble(Exception):  # noqa: N818 (it is no error: a run may have a way out of it)
    """The numbers stayed bad for longer than the guard has patience; the same on every process.

    Args:
      step: the step it was found at.
      first: the step it began with.
      reason: what is wrong, for a person.
    """

    def __init__(self, step: int, first: int, reason: str):
        self.step, self.first, self.reason = step, first, reason
        super().__init__(reason)


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
