"""THE OBJECTIVE: where batches come from, and a loss over them, made of the log-probabilities of target tokens."""

from collections.abc import Callable

from blobjax.config.schema import Config
from blobjax.objectives.logprobs import TokenScores
from blobjax.objectives.loss import LossReport, loss
from blobjax.objectives.next_token import NextToken
from blobjax.objectives.objective import Batch, BatchSource, Context, HeldOut, Objective, Parts
from blobjax.objectives.supervised import Supervised

OBJECTIVES: dict[str, Callable[[Config], Objective]] = {"next_token": NextToken, "supervised": Supervised}
"""`objective.kind` to what makes the objective from a config."""


def make_objective(config: Config) -> Objective:
    """The config's objective."""
    return OBJECTIVES[config.objective.kind](config)


__all__ = [
    "OBJECTIVES",
    "Batch",
    "BatchSource",
    "Context",
    "HeldOut",
    "LossReport",
    "Objective",
    "Parts",
    "TokenScores",
    "loss",
    "make_objective",
]
