"""What something was worth in compute: how many times the compute the baseline would have needed for the same loss.

The equivalent compute is read off the baseline's law, backwards: the C with L(C) = loss. A law says little beyond the
points it was fitted to, and near its floor a small error of the loss is a large one of the compute, so a loss that the
baseline did not come to within the budgets it was measured at is refused, with what can be said instead.

Source: the compute-equivalent gain of Davidson et al. 2023 (arXiv:2312.07413).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

from blobjax.config import BadInputError
from blobjax.laws import fit_file
from blobjax.laws.formulas import LAWS, Law

# Of the logarithm of a budget: far finer than any interval.
_EXACT = 1e-9


@dataclass(frozen=True)
class Worth:
    """A run beside the compute that its loss would have cost the baseline.

    Attributes:
      flops: what the run took.
      loss: what it came to.
      equivalent: FLOPs at which the baseline comes to that loss; None where its law does not tell.
      multiplier: `equivalent` over `flops`: above 1 the run was better than the baseline.
      low, high: interval of the multiplier, from the uncertainty of the baseline's law; None: open on that side.
      refused: why there is no multiplier, in a sentence; empty where there is one.
    """

    flops: float
    loss: float
    equivalent: float | None = None
    multiplier: float | None = None
    low: float | None = None
    high: float | None = None
    refused: str = ""


def worth(baseline: dict[str, Any], flops: float, loss: float) -> Worth:
    """What a run was worth in the baseline's compute.

    Args:
      baseline: content of a fit file: a law that has a loss for FLOPs alone (power-flops; or a law of params and
        tokens, such as chinchilla-1, -2 or -3, at whose best split it is taken).
      flops: that the run took, counted as the baseline's are: of chinchilla-3 6 × params × tokens.
      loss: nats per token, measured as the baseline's was.

    Raises:
      BadInputError: the law has no loss for FLOPs alone, or FLOPs and loss are not positive.
    """
    law = LAWS[baseline["law"]]
    alone = set(law.needs) <= ({"flops"} if law.optimum is None else {"flops", "params", "tokens", "overtraining"})
    if law.target != "loss" or not alone:
        raise BadInputError(f"{law.name} has no loss for flops alone; fit power-flops or a chinchilla law")
    if not (0 < flops < np.inf and 0 < loss < np.inf):
        raise BadInputError(f"flops {flops:g} and loss {loss:g} must be positive numbers")
    values = fit_file.values(baseline)
    budgets = _budgets(law, baseline)
    first, last = float(budgets.min()), float(budgets.max())
    best, worst = _loss(law, values, last), _loss(law, values, first)
    if not (np.isfinite(best) and np.isfinite(worst)):
        return Worth(flops, loss, refused=f"of the baseline's law {fit_file.no_split(law, values)}")
    if loss < best:
        least = last / flops
        return Worth(flops, loss, refused=f"the baseline's largest budget, {last:.3g} FLOPs, comes to {best:.4g} only: "
                     f"more than {least:.3g} times, and how much more would be an extrapolation")  # fmt: skip
    if loss > worst:
        most = first / flops
        return Worth(flops, loss, refused=f"the baseline's smallest budget, {first:.3g} FLOPs, comes to {worst:.4g} "
                     f"already: less than {most:.3g} times, and how much less would be an extrapolation")  # fmt: skip
    equivalent = _inverse(law, values, loss, first, last)
    low, high = _interval(law, baseline, loss, first, last)
    return Worth(flops, loss, equivalent, equivalent / flops, low and low / flops, high and high / flops)


def _budgets(law: Law, baseline: dict[str, Any]) -> np.ndarray:
    """The budgets that the law knows: of chinchilla-1 and -2 those that were not refused."""
    if found := baseline["details"].get("budgets"):
        return np.array(found["flops"])
    columns = {name: np.array(values) for name, values in baseline["points"]["columns"].items()}
    return columns["flops"] if "flops" in law.needs else 6 * columns["params"] * columns["tokens"]


def _loss(law: Law, values: np.ndarray, flops: float) -> float:
    x = {"flops": np.array([flops])}
    if law.optimum is not None:
        params, tokens = law.optimum(law, values, flops, x)
        x |= {"params": np.array([params]), "tokens": np.array([tokens]), "overtraining": np.array([tokens / params])}
    return law.predict(values, x).item()


def _inverse(law: Law, values: np.ndarray, loss: float, first: float, last: float) -> float:
    """The budget at which the law has this loss; it falls all along, so there is one."""
    found = brentq(
        lambda log_flops: _loss(law, values, np.exp(log_flops)) - loss, np.log(first), np.log(last), xtol=_EXACT
    )
    return float(np.exp(found))


def _interval(
    law: Law, baseline: dict[str, Any], loss: float, first: float, last: float
) -> tuple[float | None, float | None]:
    """Between which budgets the resamples' laws have this loss; open where they have it beyond what was measured."""
    draws = fit_file.draws(baseline)
    if not len(draws):
        return None, None
    found = []
    for draw in draws:
        ends = _loss(law, draw, first), _loss(law, draw, last)
        if loss > ends[0]:
            found.append(0.0)
        elif loss < ends[1] or not np.all(np.isfinite(ends)):
            found.append(np.inf)
        else:
            found.append(_inverse(law, draw, loss, first, last))
    # Whole draws, as between a number and infinity there is no mean.
    share = baseline["bootstrap"]["share"]
    low, high = np.percentile(found, [50 * (1 - share), 50 * (1 + share)], method="nearest")
    return (float(low) if low > 0 else None), (float(high) if np.isfinite(high) else None)
