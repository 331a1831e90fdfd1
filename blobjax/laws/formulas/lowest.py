"""Where the losses of one budget are lowest, as a function of the logarithm of the size.

A parabola is the first terms of a series about the lowest point. Sizes far from it bend otherwise, and move the lowest
point of the parabola away from that of the losses, without any noise. So the parabola is fitted to the sizes within a
window around its own lowest point. The other way is a spline through the mean loss of each size, which assumes no form
but takes all noise for signal.

Source: the parabola: Hoffmann et al. 2022, section 3.2; the spline: Akima 1970, used so by Porian et al. 2024;
errors of points about a curve that is not known: Gasser, Sroka & Jennen-Steinmetz 1986.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import Akima1DInterpolator
from scipy.special import fdtrc

WINDOWS = (np.inf, 16.0, 11.3, 8.0, 5.66, 4.0, 2.83, 2.0)
"""The factors among which the data choose, the widest first."""

# A window is too wide where a cubic term would gain this much by chance with less than this probability. It is no 5%:
# a term that is left out in doubt costs more than one degree of freedom (Bancroft 1964).
_DOUBT = 0.25
# A parabola has three coefficients, and four sizes are the fewest that can contradict it.
FEWEST, CHECKED = 3, 4


@dataclass(frozen=True)
class Budget:
    """The runs of one budget.

    Attributes:
      name: of the size, params or tokens.
      log_size: its logarithm of each.
      loss: of each, nats per token.
      weight: of each, with a mean of about one: the inverse of its variance, in any unit.
    """

    name: str
    log_size: np.ndarray
    loss: np.ndarray
    weight: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """The different ones, ascending."""
        return np.unique(self.log_size)

    def means(self) -> np.ndarray:
        """The mean loss of each size."""
        _, size = np.unique(self.log_size, return_inverse=True)
        return np.bincount(size, self.weight * self.loss) / np.bincount(size, self.weight)

    @property
    def inside(self) -> bool:
        """Whether the lowest loss was measured at neither the smallest nor the largest size."""
        return 0 < int(np.argmin(self.means())) < len(self.sizes) - 1


@dataclass(frozen=True)
class Lowest:
    """The lowest point of one budget.

    Attributes:
      log_size, loss: of the point.
      used: which points it was found from.
      errors: of those points, relative to the loss and scaled to a weight of one, as large as the noise of one run;
        empty where the points leave no freedom to tell it.
      curve: logarithm of the size to loss.
    """

    log_size: float
    loss: float
    used: np.ndarray
    errors: np.ndarray
    curve: Callable[[np.ndarray], np.ndarray]


def parabola(budget: Budget, window: float) -> Lowest | str:
    """The vertex of the least-squares parabola of the sizes within a factor of it; or why there is none.

    The window is moved until it is centred at the vertex that it gives. Where it holds fewer than four sizes it takes
    the four nearest to its centre.
    """
    sizes = budget.sizes
    if len(sizes) < FEWEST:
        return f"{len(sizes)} sizes; a lowest point takes {FEWEST}"
    used, coefficients, centre = _settled(budget, window)
    bend, slope, height = coefficients
    if bend <= 0:
        return "the parabola is concave, it has no lowest point"
    vertex = centre - slope / (2 * bend)
    ends = budget.log_size[used].min(), budget.log_size[used].max()
    if not ends[0] <= vertex <= ends[1]:
        return _outside(budget.name, vertex, *ends)

    def curve(log_size: np.ndarray) -> np.ndarray:
        return np.polyval(coefficients, log_size - centre)

    errors = budget.loss[used] / curve(budget.log_size[used]) - 1
    freedom = len(errors) - 3
    scaled = errors * np.sqrt(budget.weight[used] * len(errors) / freedom) if freedom > 0 else np.zeros(0)
    return Lowest(float(vertex), float(height - slope**2 / (4 * bend)), used, scaled, curve)


def _settled(budget: Budget, window: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Points of the window that is centred at its own vertex, and the parabola's coefficients about a middle."""
    sizes = budget.sizes
    centre = float(sizes[np.argmin(budget.means())])
    seen: set[bytes] = set()
    while True:
        used = _within(budget.log_size, sizes, centre, window)
        middle = float(budget.log_size[used].mean())
        x, y, weight = budget.log_size[used] - middle, budget.loss[used], budget.weight[used]
        coefficients = np.polyfit(x, y, 2, w=np.sqrt(weight))
        # What comes round again would go round for ever.
        if used.tobytes() in seen or coefficients[0] <= 0:
            return used, coefficients, middle
        seen.add(used.tobytes())
        centre = float(np.clip(middle - coefficients[1] / (2 * coefficients[0]), sizes[0], sizes[-1]))


def _within(log_size: np.ndarray, sizes: np.ndarray, centre: float, window: float) -> np.ndarray:
    """Which points lie within a factor of the centre, or are of the four sizes nearest to it."""
    nearest = np.sort(np.abs(sizes - centre))[min(CHECKED, len(sizes)) - 1]
    # A size at the window's very edge is in it, however its logarithm was rounded.
    return np.abs(log_size - centre) <= max(np.log(window), nearest) + 1e-9


def _outside(name: str, lowest: float, low: float, high: float) -> str:
    where = "at the end of" if low <= lowest <= high else "outside of"
    sampled = f"{np.exp(low):.3g} to {np.exp(high):.3g}"
    return f"the lowest point, {name} {np.exp(lowest):.3g}, is {where} what was sampled, {sampled}"


def akima(budget: Budget) -> Lowest | str:
    """The lowest point of the Akima spline through the mean loss of each size; or why there is none."""
    sizes, means = budget.sizes, budget.means()
    if len(sizes) < FEWEST:
        return f"{len(sizes)} sizes; a lowest point takes {FEWEST}"
    if not budget.inside:
        return _outside(budget.name, float(sizes[np.argmin(means)]), sizes[0], sizes[-1])
    curve = Akima1DInterpolator(sizes, means)
    at = int(np.argmin(means))
    turns = curve.derivative().roots(extrapolate=False)
    near = turns[np.isfinite(turns) & (turns > sizes[at - 1]) & (turns < sizes[at + 1])]
    places = np.append(near, sizes[at])
    losses = curve(places)
    lowest = int(np.argmin(losses))
    return Lowest(float(places[lowest]), float(losses[lowest]), np.ones(len(budget.loss), bool), _noise(budget), curve)


def _noise(budget: Budget) -> np.ndarray:
    """How far the mean of each inner size lies off the polynomial through its nearest neighbours, up to two on a side.

    Scaled to a weight of one by the variance that such a difference has, so that it is as large as a run's noise.
    """
    sizes, means = budget.sizes, budget.means()
    _, size = np.unique(budget.log_size, return_inverse=True)
    weights = np.bincount(size, budget.weight)
    found = []
    for i in range(1, len(sizes) - 1):
        others = np.array([j for j in range(max(i - 2, 0), min(i + 3, len(sizes))) if j != i])
        if len(others) < FEWEST:
            continue
        # Lagrange's weights: what the polynomial through the others has at this size.
        share = np.array([np.prod([(sizes[i] - sizes[k]) / (sizes[j] - sizes[k]) for k in others if k != j])
                          for j in others])  # fmt: skip
        variance = 1 / weights[i] + float(np.sum(share**2 / weights[others]))
        found.append((means[i] / float(share @ means[others]) - 1) / np.sqrt(variance))
    return np.array(found)


def widest(given: Sequence[Budget]) -> float:
    """The widest window in which a parabola is what the losses are.

    In each window a cubic is held against the parabola, over all budgets whose lowest loss was measured inside: an F
    test of one term more for each budget. The widest window that passes is taken, or has too few sizes for the test.
    """
    for window in WINDOWS:
        gained = left = 0.0
        terms = freedom = 0
        for budget in given:
            if not budget.inside:
                continue
            used = _settled(budget, window)[0]
            if len(np.unique(budget.log_size[used])) > CHECKED:
                square, cube = (_squares(budget, used, degree) for degree in (2, 3))
                gained, left = gained + square - cube, left + cube
                terms, freedom = terms + 1, freedom + int(used.sum()) - 4
        if not terms:
            return window
        # Rounding is no misfit.
        if gained <= 1e-20 or fdtrc(terms, freedom, (gained / terms) / max(left / freedom, 1e-300)) > _DOUBT:
            return window
    return WINDOWS[-1]


def _squares(budget: Budget, used: np.ndarray, degree: int) -> float:
    """The weighted sum of squares that a polynomial leaves, relative to the losses."""
    x, y = budget.log_size[used] - budget.log_size[used].mean(), budget.loss[used]
    root = np.sqrt(budget.weight[used])
    coefficients = np.polyfit(x, y, degree, w=root)
    return float(np.sum((root * (y - np.polyval(coefficients, x)) / y.mean()) ** 2))
