"""What a scaling law is: a formula with free parameters, where it was published, and what it needs to be fitted.

A formula is written once, on arrays that broadcast. It takes parameters that must be positive as their logarithms
(`log_A`) and is analytic in all of them, so that its derivatives come from a complex step, exact to rounding (Squire &
Trapp 1998): nothing is derived by hand, and nothing can be derived wrongly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar, nnls

Columns = Mapping[str, np.ndarray]
"""Name to one value for each point."""

Values = dict[str, float]
"""Name of a parameter to its value, in its own unit (never a logarithm)."""


RANGE = (1e-50, 1e50)
"""Between these lie the values a law is of: far beyond any, and near enough that no power or product overflows."""

MOST_RESAMPLES = 100_000
"""More would only take time and fill the fit file."""

CHAIN = 0.25
"""Budgets that follow one another over more than this part are no one budget."""

VERTICES = ("parabola", "akima")
"""How the lowest point of an IsoFLOP budget can be found."""

# Values of a column are different where they are further apart than a hundredth; losses where they differ at all.
_APART = {"loss": 0.0}
_ROUNDING = 1e-9

# A best split is looked for where params are at most e to this times above or below the square root of flops / 6.
_SPLIT = 12


@dataclass(frozen=True)
class Parameter:
    """A free parameter.

    Attributes:
      name: as the paper calls it.
      meaning: what it is, with its unit.
      positive: only positive values make sense; it is fitted as its logarithm.
      zero: it may be held at zero, as its term then drops out: a floor or a coefficient.
    """

    name: str
    meaning: str
    positive: bool = True
    zero: bool = False


@dataclass(frozen=True)
class Settings:
    """What a fit is made with, besides its points.

    Attributes:
      delta: where the Huber loss turns from square to linear, in units of the residual; infinity: least squares.
      starts: how many of the best points of the grid of starts are descended from.
      bootstrap: how many times the points are resampled.
      level: probability that an interval is meant to hold.
      seed: of the resampling.
      fixed: parameters that are not fitted, and their values.
      budget_tolerance: of IsoFLOP budgets: neighbours in FLOPs that differ by this part or less are one budget.
      window: of IsoFLOP parabolas: sizes within this factor of the lowest point are fitted; None: the data choose.
      vertex: how the lowest point of an IsoFLOP budget is found, one of `VERTICES`.
    """

    delta: float = 1e-3
    starts: int = 40
    bootstrap: int = 200
    level: float = 0.9
    seed: int = 0
    fixed: Values = field(default_factory=dict)
    budget_tolerance: float = 0.02
    window: float | None = None
    vertex: str = "parabola"


@dataclass(frozen=True)
class Estimate:
    """What an estimator found.

    Attributes:
      values: one for each parameter of the law, in their order.
      objective: the sum that was minimised.
      residuals: measured minus predicted of each point; of logarithms where the law predicts a logarithm.
      converged: no step from here would lower the objective noticeably.
      notes: what a reader must know, a sentence each.
      details: more numbers, by name, for the fit file.
      noise_known: False where the points tell nothing of their noise: resamples would all be alike.
    """

    values: np.ndarray
    objective: float
    residuals: np.ndarray
    converged: bool = True
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    noise_known: bool = True


@dataclass(frozen=True)
class Law:
    """A law and how it is fitted.

    Attributes:
      name: what `--law` takes.
      formula: as a line of text.
      source: paper and section.
      parameters: in the order that the formula takes them.
      curve: the formula: columns and parameters (logarithms of positive ones) to what is predicted.
      needs: columns without which there is no fit.
      may_use: columns that are used where they exist.
      target: the column that is predicted.
      origin: columns that may be zero, before training; whether the law has a value there. If not, those points are
        left out.
      log: the curve gives the target's logarithm, and residuals are of logarithms.
      signed: the target may be zero or less, as a reward is, and an error is none of its shares.
      delta: where the Huber loss turns linear by default.
      starts: points to try, parameters as the curve takes them; None where `estimate` needs none.
      estimate: an estimator of its own; None: the curve is fitted by minimising the Huber loss.
      minimises: what that estimator minimises, in words.
      options: the settings that this law alone has a use for, by their names.
      settled: the settings with what the data choose in them, so that all resamples are fitted alike.
      resampler: makes what draws one resample of the columns for the bootstrap; None: points drawn with replacement.
      measured: the points that the curve can be held against (the best of each budget); None: all of them.
      curves: the points lie along training curves, one for each size: those of one curve are not independent.
      derived: more quantities that follow from the parameters; NaN where they do not.
      exponents: coefficient to the exponent that means nothing where an estimator finds the coefficient to be zero.
      optimum: the law itself, its parameters, FLOPs and further columns to the best params and tokens, if it has one;
        NaN where these parameters have none.
      future: the column along which a fit is held against what it has not seen.
      distinct: column to how many different values there must be.
      check: more to refuse: one line for each problem of the columns.
      beside: laws that are fitted to the same points, to be held against this one.
    """

    name: str
    formula: str
    source: str
    parameters: tuple[Parameter, ...]
    curve: Callable[..., np.ndarray]
    needs: tuple[str, ...]
    distinct: Mapping[str, int]
    may_use: tuple[str, ...] = ()
    target: str = "loss"
    origin: Mapping[str, bool] = field(default_factory=dict)
    log: bool = True
    signed: bool = False
    delta: float = 1e-3
    starts: Callable[[Columns], np.ndarray] | None = None
    estimate: Callable[[Columns, Settings], Estimate] | None = None
    minimises: str = ""
    options: tuple[str, ...] = ()
    settled: Callable[[Columns, Settings], Settings] | None = None
    resampler: Callable[[Columns, Settings], Callable[[np.random.Generator], dict[str, np.ndarray]]] | None = None
    measured: Callable[[Columns, Settings], dict[str, np.ndarray]] | None = None
    curves: bool = False
    exponents: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[..., Values] | None = None
    optimum: "Callable[[Law, np.ndarray, float, Columns], tuple[float, float]] | None" = None
    future: str = "flops"
    check: Callable[[Columns], list[str]] | None = None
    beside: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def positive(self) -> np.ndarray:
        """Which parameters the curve takes as logarithms."""
        return np.array([parameter.positive for parameter in self.parameters])

    def internal(self, values: np.ndarray) -> np.ndarray:
        """Parameters as the curve takes them; the last dim is that of the parameters."""
        # A term that an estimator found to be zero is minus infinity here.
        with np.errstate(divide="ignore"):
            return np.where(self.positive, np.log(np.where(self.positive, values, 1.0)), values)

    def natural(self, z: np.ndarray) -> np.ndarray:
        """The inverse of `internal`; a parameter too large for a float is infinite."""
        with np.errstate(over="ignore"):
            return np.where(self.positive, np.exp(np.where(self.positive, z, 0.0)), z)

    def predict(self, values: np.ndarray, x: Columns) -> np.ndarray:
        """The target in its own unit.

        Args:
          values: [..., parameters], in their own units.
          x: columns of n points.

        Returns:
          [..., n].
        """
        z = np.moveaxis(self.internal(values)[..., None], -2, 0)
        with np.errstate(all="ignore"):
            predicted = self.curve(x, *z)
            return np.exp(predicted) if self.log else predicted

    def problems(self, x: Columns, fixed: Mapping[str, float]) -> list[str]:
        """Why this law cannot be fitted to these points, a line each; none where it can."""
        count, free = len(x[self.target]), len(self.parameters) - len(fixed)
        if count <= free:
            return [f"{count} points for {free} free parameters; it takes at least {free + 1}"]
        if np.ptp(x[self.target]) <= 1e-12 * np.abs(x[self.target]).max():
            return [f"{self.target} is {x[self.target][0]:g} at all points, so there is nothing to fit"]
        wanted = {name: most for name, most in self.distinct.items() if name in x}
        found = {name: len(bins(x[name], _APART.get(name, 0.01))) for name in wanted}
        too_few = [
            f"{found[name]} different {'budgets (flops)' if name == 'flops' else name}, and it takes {wanted[name]}"
            for name in wanted
            if found[name] < wanted[name]
        ]
        return too_few or (self.check(x) if self.check is not None else [])

    @property
    def uses(self) -> tuple[str, ...]:
        """Columns that the curve depends on: of a law of the best at a budget the budget alone."""
        return self.needs if self.measured is None else ("flops",)

    def independent(self, x: Columns, found: Estimate) -> int:
        """How many independent measurements the estimate is made from."""
        if self.curves:
            return len(bins(x["params"], 0.01))
        return len(found.residuals)

    def as_values(self, values: np.ndarray) -> Values:
        """By name."""
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}


def came_out_as_zero(name: str, why: str = "the points do not tell it from that") -> str:
    """What is said of a floor or a coefficient that was found to be zero, of whatever law."""
    return f"{name} came out as zero: {why}"


def log_sum_exp(*terms: Any) -> np.ndarray:
    """log(exp(a) + exp(b) + …) without overflow; unlike numpy's own it takes complex numbers."""
    stacked = np.broadcast_arrays(*terms)
    largest = np.max(np.real(stacked), axis=0)
    return largest + np.log(sum(np.exp(term - largest) for term in stacked))


def grid(*axes: Any) -> np.ndarray:
    """Every combination of the axes' values, [combinations, axes]."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def log(x: Columns, name: str) -> np.ndarray:
    """The logarithm of a column."""
    return np.log(x[name])


def budgets(values: np.ndarray, tolerance: float = Settings.budget_tolerance) -> list[np.ndarray]:
    """Which points have one budget, in ascending order: neighbours that differ by `tolerance` or less, relatively.

    Steps are whole and sizes are what widths allow, so runs of one budget differ by a percent or so. A group does not
    depend on the order of rows. It may be a chain, whose ends are further apart than its neighbours.
    """
    order = np.argsort(values, kind="stable")
    low, high = values[order[:-1]], values[order[1:]]
    return np.split(order, np.flatnonzero(high > low * (1 + tolerance) * (1 + _ROUNDING)) + 1)


def bins(values: np.ndarray, width: float) -> list[np.ndarray]:
    """Points in ascending order, cut where one is more than `width` above the smallest of its bin, relatively."""
    order = np.argsort(values, kind="stable")
    starts = [0]
    for i, value in enumerate(values[order]):
        if value > values[order[starts[-1]]] * (1 + width):
            starts.append(i)
    return np.split(order, starts[1:])


def non_negative(features: list[np.ndarray], target: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients, none below zero, of the sum of features nearest to the target; and the distance squared."""
    # To unit length, as powers of 1e9 and of 1 stand side by side.
    scales = np.array([np.linalg.norm(feature) for feature in features])
    found, distance = nnls(np.stack(features, axis=1) / scales, target)
    return found / scales, distance**2


def log_non_negative(features: list[np.ndarray], target: np.ndarray) -> np.ndarray:
    """Logarithms of those coefficients to start from; one that is zero becomes small instead."""
    found, _ = non_negative(features, target)
    return np.log(np.maximum(found, [1e-3 * target.mean() / feature.mean() for feature in features]))


def best_split(law: Law, values: np.ndarray, flops: float, x: Columns) -> tuple[float, float]:
    """The params and tokens with the lowest loss where 6 × params × tokens = flops.

    NaN where the loss falls all the way to one side, as it does where size or data is not worth anything.
    """
    z = law.internal(values)

    def loss(log_n: float) -> float:
        n = np.exp(log_n)
        return law.curve({**x, "params": n, "tokens": flops / (6 * n), "flops": np.array([flops])}, *z).item()

    middle = np.log(flops / 6) / 2
    found = minimize_scalar(loss, bounds=(middle - _SPLIT, middle + _SPLIT), method="bounded", options={"xatol": 1e-9})
    if not abs(found.x - middle) < _SPLIT - 1e-3:
        return np.nan, np.nan
    return float(np.exp(found.x)), float(flops / 6 / np.exp(found.x))


def apart(x: Columns) -> list[str]:
    """Refuses points that cannot tell what params do from what tokens do."""
    log_n, log_d = (log(x, name) - log(x, name).mean() for name in ("params", "tokens"))
    if abs(log_n @ log_d) > 0.9999 * np.linalg.norm(log_n) * np.linalg.norm(log_d):
        return ["tokens follow from params in all points, so their effects cannot be told apart; vary one at a time"]
    return []
