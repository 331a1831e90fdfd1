"""Whether a run's numbers still are numbers.

A step's loss is taken before its update, so a finite loss says nothing of the state after it: what decides is whether
all parameters are finite, which every save finds out. Without a guard nothing mends parameters that are not: the run
halts, and goes on, if it does, from a checkpoint that is finite.
"""

import math

from blobjax.config import Config
from blobjax.training.guard_watch import Trouble
from blobjax.training.loop import StepReport


class NotFinite(Trouble):
    """The loss stayed, or the parameters are, not finite: trouble that no rollback of the guard's has met."""


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
