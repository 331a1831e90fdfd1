"""The host's side of the guard: says which steps were refused, and ends a run that only refuses."""

from collections.abc import Callable

from blobjax.config import HaltedError
from blobjax.config.schema import Guard
from blobjax.training.loop import StepReport
from blobjax.training.run_directory import EventLog


class GuardWatch:
    """Takes the loop's reports.

    Args:
      guard: its patience is read.
      say: prints a line for the person watching.
    """

    def __init__(self, guard: Guard, say: Callable[[str], None], events: EventLog):
        self._patience = guard.patience
        self._say = say
        self._events = events
        self._in_a_row = 0

    def report(self, done: StepReport) -> None:
        """Reads one scalar of a finished step, so no device is waited for.

        Raises:
          HaltedError: more steps in a row were refused than the guard has patience for.
        """
        if not done.metrics["skipped"]:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        loss, norm = float(done.metrics["loss"]), float(done.metrics["grad_norm"])
        # As text: JSON has no NaN.
        self._events.write("skip", step=done.step, loss=str(loss), grad_norm=str(norm))
        self._say(f"step {done.step} skipped: loss {loss:.4g}, gradient norm {norm:.4g}")
        if self._in_a_row > self._patience:
            raise HaltedError(
                f"halted at step {done.step}: {self._in_a_row} steps in a row had a loss or gradients that are not "
                f"finite or spike (conditioning.guard.patience {self._patience}); lower optimizer.learning_rate, "
                "lengthen duration.warmup, or look at the data of these steps"
            )
