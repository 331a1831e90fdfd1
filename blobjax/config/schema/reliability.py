"""KEEPING THE RUN ALIVE: its keys."""

from blobjax.config.durations import Duration
from blobjax.config.schema.section import Count, Positive, Section


class Reliability(Section):
    """KEEPING THE RUN ALIVE: when to give up on a process, and what is looked at twice."""

    check_every: Count = 0
    """Steps between looks for silent corruption: a step is run twice and compared bit by bit, and so are the copies of
    each parameter on different devices. Costs a step and a copy of the state; 0: never."""
    grace: Duration = Duration(25, "seconds")
    """A process told to terminate (SIGTERM) is gone within this time, saved if it can be: less than what its scheduler
    gives it (Kubernetes: 30 seconds)."""
    hang_limit: Duration | None = Duration(10, "minutes")
    """A process that makes no progress for this long writes every thread's stack to RUN/hang-PROCESS.txt and ends;
    ten times as long around compilation, saves, evaluations and the like. null: never."""
    nonfinite_limit: Positive = 10
    """Steps in a row with a loss that is not finite after which a run without a guard halts. With a guard
    conditioning.guard.patience decides, since refused steps leave the state as it was."""
    stragglers_every: Duration = Duration(200, "steps")
    """Between reports of which of several processes holds up the others; `0 steps`: never."""
