"""How far a fit can be trusted: intervals, profiles of what is weakly identified, and the future left out of it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import erf
from scipy.stats import chi2, norm
from scipy.stats import t as student

from blobjax.config import BadInputError
from blobjax.laws import fitting
from blobjax.laws.formulas.law import CHAIN, Columns, Estimate, Law, Settings, bins, budgets

# Steps of a profile on each side, each of half the bootstrap interval's distance.
_STEPS = 8
# An end of a profile is known to this part of the distance of a step, and a logarithm to as much.
_FINE = 1e-2
# The deviance of what is so far off that it cannot be computed, and the logarithm of what is nearly the largest number.
_BEYOND, _LARGEST_LOG = 1e6, 700.0
# A leave-future-out table has at most so many groups of budgets.
_GROUPS = 6


FEWEST = 10
"""Draws that an interval takes."""


def share(level: float, count: int, free: int) -> float:
    """The share of bootstrap draws that an interval of this level spans: some more than the level.

    Resamples spread less than samples do, as a fit bends to its points; so the percentiles are moved outwards as those
    of Student's distribution are (Hesterberg 2015, section 3.3: the expanded percentile interval).

    Args:
      count: points.
      free: parameters that were fitted.
    """
    freedom = max(count - free, 1)
    return float(1 - 2 * norm.cdf(-np.sqrt(count / freedom) * student.ppf((1 + level) / 2, freedom)))


def interval(draws: np.ndarray, within: float) -> tuple[float, float]:
    """The percentiles between which a share `within` of the draws lies."""
    ((low,), (high,)) = band(draws[:, None], within)
    return low, high


def band(draws: np.ndarray, within: float) -> tuple[list[float], list[float]]:
    """The same of each column of draws [R, N]: the lower ends, and the upper ones."""
    low, high = np.percentile(draws, [50 * (1 - within), 50 * (1 + within)], axis=0)
    return low.tolist(), high.tolist()


def spanned(draws: np.ndarray, within: float) -> tuple[float | None, float | None]:
    """The interval of the draws that have a value; none where fewer than half have one, or too few."""
    finite = draws[np.isfinite(draws)]
    return interval(finite, within) if len(finite) >= max(FEWEST, len(draws) / 2) else (None, None)


def weak(value: float, low: float, high: float) -> bool:
    """Whether an interval is wider than the value itself, which hardly pins it down."""
    return high - low > abs(value)


@dataclass(frozen=True)
class Profile:
    """The objective with one parameter held at a value and all others fitted.

    Attributes:
      values: of the parameter, ascending.
      deviance: twice the logarithm by which the points are less likely than at the optimum.
      low, high: where the deviance passes the level's quantile of chi-squared; None: not within the values tried.
    """

    values: list[float]
    deviance: list[float]
    low: float | None
    high: float | None


def log_likelihood(objective: float, count: int, delta: float) -> float:
    """The largest log-likelihood of errors whose density falls as exp(-lambda × Huber loss), over all lambda.

    The Huber fit is its maximum for any lambda, as least squares is for any variance; so it ranks fits by likelihood.
    """
    if objective <= 0:
        return np.inf
    if not np.isfinite(objective):
        return -np.inf
    if np.isinf(delta):
        return -count / 2 * (np.log(4 * np.pi * objective / count) + 1)

    def cost(log_rate: float) -> float:
        rate = np.exp(log_rate)
        normaliser = np.sqrt(2 * np.pi / rate) * erf(delta * np.sqrt(rate / 2))
        normaliser += 2 * np.exp(-rate * delta**2 / 2) / (rate * delta)
        return count * np.log(normaliser) + rate * objective

    middle = np.log(count / objective)
    found = minimize_scalar(cost, bounds=(middle - 4, middle + 4), method="bounded", options={"xatol": 1e-8})
    return -float(found.fun)


def profile(law: Law, x: Columns, settings: Settings, found: Estimate, name: str, half_width: float) -> Profile:
    """The profile of one parameter of a law that is fitted by the Huber loss.

    Args:
      half_width: half of the parameter's bootstrap interval, of its logarithm where it is positive.
    """
    i = law.names.index(name)
    best = log_likelihood(found.objective, len(found.residuals), settings.delta)
    limit = float(chi2.ppf(settings.level, 1))
    centre = law.internal(found.values)[i]

    def natural(z: float) -> float:
        return float(np.exp(min(z, _LARGEST_LOG))) if law.positive[i] else float(z)

    def at(z: float, near: np.ndarray) -> tuple[float, np.ndarray]:
        held = replace(settings, fixed={**settings.fixed, name: natural(z)})
        estimate = fitting.descend_from(law, x, held, near)
        likelihood = log_likelihood(estimate.objective, len(estimate.residuals), settings.delta)
        deviance = 2 * (best - likelihood)
        return float(deviance) if np.isfinite(deviance) else _BEYOND, estimate.values

    points, crossings = [(float(found.values[i]), 0.0)], []
    for side in (-1, 1) if np.isfinite(best) else ():
        near, before, crossing = found.values, centre, None
        for step in range(1, _STEPS + 1):
            z = centre + side * step * half_width / 2
            deviance, values = at(z, near)
            if deviance < _BEYOND:
                points.append((natural(z), deviance))
            if deviance >= limit:
                # Over a step of a wide interval the deviance is no parabola, so its end is looked for.
                start, fine = near, _FINE * min(abs(z - before), 1.0 if law.positive[i] else np.inf)
                crossing = float(brentq(lambda z, start=start: at(z, start)[0] - limit, before, z, xtol=fine))
                break
            near, before = values, z
        crossings.append(crossing)
    points.sort()
    if not crossings:  # an exact fit tells nothing of errors
        return Profile([p[0] for p in points], [p[1] for p in points], None, None)
    low, high = (None if c is None else natural(c) for c in crossings)
    return Profile([p[0] for p in points], [p[1] for p in points], low, high)


def groups(values: np.ndarray, downwards: bool, tolerance: float = Settings.budget_tolerance) -> list[np.ndarray]:
    """Points in at most six groups along a column, the past first; each holds whole budgets, as one is not its past.

    Where values follow one another without a gap there are no budgets, and they are cut into bins instead.
    """
    found = [each[part] for each in budgets(values, tolerance) for part in bins(values[each], CHAIN)]
    parts = np.array_split(np.arange(len(found)), min(len(found), _GROUPS))
    whole = [np.concatenate([found[i] for i in part]) for part in parts]
    return whole[::-1] if downwards else whole


def leave_future_out(law: Law, x: Columns, settings: Settings, found: Estimate) -> tuple[list[dict[str, Any]], str]:
    """Fits on ever more of the past, each held against what lies beyond.

    Returns:
      a row for each pair of a past and a group beyond it: `up_to` and `at` (of the column `law.future`), `points`
      fitted and `unseen` ones predicted, their mean `measured` and `predicted` target and the mean `error` and
      `absolute_error`, relative, or of a signed target in its own unit; of laws of the best at a
      budget also `params_measured` and `params_predicted`. And why there is no such table, where there is none.
    """
    along = law.future
    if along not in x:
        return [], f"there is no column '{along}' to tell the past from the future"
    downwards = along == "loss"
    # Losses are of one group only where they are the same.
    order = groups(x[along], downwards, 0.0 if along == "loss" else settings.budget_tolerance)
    held = dict(law.measured(x, settings) if law.measured is not None else x)
    rows: list[dict[str, Any]] = []
    reason = f"all points are of one group along {along}"
    for k in range(1, len(order)):
        past = {name: column[np.concatenate(order[:k])] for name, column in x.items()}
        if problems := law.problems(past, settings.fixed):
            reason = problems[0]
            continue
        try:
            estimate = fitting.fit(law, past, replace(settings, starts=min(settings.starts, 5)), found.values)
        except BadInputError as error:
            reason = error.problems[0]
            continue
        # From the edge of one group to that of the next.
        edges = [_edge(x[along][group], downwards) for group in order]
        for j in range(k, len(order)):
            within = _between(held[along], edges[j - 1], edges[j])
            if within.any():
                unseen = {name: column[within] for name, column in held.items()}
                rows.append(_row(law, estimate, unseen, along, edges[k - 1], len(past[along])))
    return rows, "" if rows else reason


def _edge(values: np.ndarray, downwards: bool) -> float:
    return float(values.min() if downwards else values.max())


def _between(values: np.ndarray, last: float, edge: float) -> np.ndarray:
    """Beyond the edge of one group and up to that of the next, but for rounding."""
    if edge < last:
        return (values < last * (1 - 1e-9)) & (values >= edge * (1 - 1e-9))
    return (values > last * (1 + 1e-9)) & (values <= edge * (1 + 1e-9))


def _row(law: Law, estimate: Estimate, unseen: Columns, along: str, up_to: float, count: int) -> dict[str, Any]:
    measured, predicted = unseen[law.target], law.predict(estimate.values, unseen)
    error = predicted - measured if law.signed else predicted / measured - 1
    row = {
        "up_to": up_to,
        "points": count,
        "at": float(np.exp(np.log(unseen[along]).mean())),
        "unseen": len(measured),
        "measured": float(measured.mean()),
        "predicted": float(predicted.mean()),
        "error": float(error.mean()),
        "absolute_error": float(np.abs(error).mean()),
    }
    if law.measured is not None and law.optimum is not None:
        best = [law.optimum(law, estimate.values, float(C), {})[0] for C in unseen["flops"]]
        row["params_measured"] = float(np.exp(np.log(unseen["params"]).mean()))
        row["params_predicted"] = float(np.exp(np.log(best).mean()))
    return row
