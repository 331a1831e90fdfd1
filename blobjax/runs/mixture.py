"""What a run's tokens were: shares of the domains, how often they were gone through, and losses weighted alike."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from blobjax.config import Config
from blobjax.runs.outcome import as_float
from blobjax.runs.ledger import as_float


def shares(config: Config) -> dict[str, float]:
    """Domain that is trained on to its share of the tokens."""
    weights = {name: float(weight) for name, weight in config.data.mixture.items() if weight > 0}
    whole = sum(weights.values())
    return {name: weight / whole for name, weight in weights.items()}


def epochs(metrics: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Domain to how often its training text has been seen, by the newest line of metrics.jsonl that says so."""
    return {
        name.split("/")[1]: as_float(value)
        for line in metrics
        for name, value in line.items()
        if name.startswith("data/") and name.endswith("/epochs")
    }


def unique_tokens(config: Config, tokens: float, seen: Mapping[str, float]) -> float:
    """Tokens seen at least once: of each domain its share of all, over the times it was gone through.

    Args:
      tokens: trained on.
      seen: `epochs`; where a domain that is trained on is missing, nothing is known and the result is NaN.
    """
    of = shares(config)
    if not of.keys() <= seen.keys():
        return math.nan
    return sum(tokens * share / max(seen[name], 1.0) for name, share in of.items())


HELD_OUT = "the mean over the domains that are trained on, weighted as in the mixture"
"""What one number of several domains' held-out text is, wherever there is one, in the words of a page."""


def held_out_loss(config: Config, losses: Mapping[str, Any], metric: str = "cross_entropy") -> float:
    """Of held-out text, the mean over the domains by their weights in the mixture; NaN where one was not evaluated.

    Runs of different lengths end at different batches, whose losses differ by more than the runs do; the held-out text
    is the same for all.

    Args:
      losses: a line of metrics.jsonl with an evaluation, or `Outcome.held_out`.
      metric: of `eval/DOMAIN/…`; cross_entropy is in nats per token.
    """
    return sum(as_float(losses.get(f"eval/{name}/{metric}")) * share for name, share in shares(config).items())
