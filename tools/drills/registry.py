"""What a drill is, and all of them by name."""

from collections.abc import Callable
from dataclasses import dataclass

from tools.drills.run import Drills


@dataclass(frozen=True)
class Drill:
    """One drill.

    Attributes:
      does: what is done to the run.
      must: what must happen.
      function: does it; returns in one line what happened, or raises DrillFailedError or CannotRunError.
      quick: whether `make test` runs it too.
    """

    name: str
    does: str
    must: str
    function: Callable[[Drills], str]
    quick: bool


DRILLS: dict[str, Drill] = {}


def drill(does: str, must: str, quick: bool = False) -> Callable[[Callable[[Drills], str]], Callable[[Drills], str]]:
    """Registers a function under its own name, with hyphens."""

    def register(function: Callable[[Drills], str]) -> Callable[[Drills], str]:
        name = function.__name__.replace("_", "-")
        DRILLS[name] = Drill(name, does, must, function, quick)
        return function

    return register
