"""Fitting a law: the least Huber loss from many starts, and resamples of the points for intervals.

The objective is the sum over points of the Huber loss of a residual (Huber 1964), linear beyond delta. With the delta
of 1e-3 that Hoffmann et al. 2022 use it is nearly the sum of absolute residuals: flat almost everywhere in its second
derivative, and badly scaled, as a prefactor and its exponent nearly cancel. An optimiser that is given it as it is
stops long before the optimum (Besiroglu et al. 2024). So each descent is in variables in which the law's own curvature
is one in all directions, of an objective of order one, and begins anew from where it stopped until nothing is gained.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import huber

from blobjax.config import BadInputError
from blobjax.laws.formulas.law import Columns, Estimate, Law, Settings, came_out_as_zero

# So small that it never shows in the real part: the derivative is exact to rounding.
_STEP = 1e-30
# A descent has converged when a step of Newton's method would gain less than this share of the objective.
_GAIN = 1e-9
_ROUNDS = 12
# A parameter matters no more where its logarithm moves no prediction by this part: no slope leads back from there.
_NOTHING = 1e-4


@dataclass(frozen=True)
class _HuberLoss:
    """The objective of one law and one set of points, as a function of the parameters that are free.

    Attributes:
      weights: how often each point counts.
      base: all parameters as the curve takes them; those that are not free stay.
      free: which are.
    """

    law: Law
    x: Columns
    y: np.ndarray
    weights: np.ndarray
    delta: float
    base: np.ndarray
    free: np.ndarray

    def predicted(self, z: np.ndarray) -> np.ndarray:
        """[starts, free parameters] to [starts, points]; may be complex."""
        full = np.repeat(self.base[:, None].astype(z.dtype), len(z), axis=1)
        full[self.free] = z.T
        with np.errstate(all="ignore"):
            return self.law.curve(self.x, *full[..., None])

    def linearised(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals of the points, and how the predictions change with each parameter: [points], [free, points]."""
        stepped = self.predicted(z + 1j * _STEP * np.eye(len(z)))
        return self.y - stepped[0].real, stepped.imag / _STEP

    def value(self, z: np.ndarray) -> np.ndarray:
        """The objective for each start; infinite where the law has no value."""
        residuals = self.y - self.predicted(z)
        # The floats that a plain square would overflow at are no candidates.
        found = np.sum(self.weights * huber(self.delta, np.clip(residuals, -1e100, 1e100)), axis=-1)
        return np.where(np.isfinite(found), found, np.inf)

    def gradient(self, z: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The objective, its gradient, and the curvature that Gauss, Newton and the weights of Huber's loss give it."""
        residuals, slopes = self.linearised(z)
        if not np.all(np.isfinite(residuals)) or not np.all(np.isfinite(slopes)):
            return np.inf, np.zeros(len(z)), np.eye(len(z))
        value = float(np.sum(self.weights * huber(self.delta, residuals)))
        gradient = -slopes @ (self.weights * np.clip(residuals, -self.delta, self.delta))
        size = np.maximum(np.abs(residuals), 1e-300)
        curvature = (slopes * self.weights * np.minimum(1.0, self.delta / size)) @ slopes.T
        return value, gradient, curvature


def _descend(objective: _HuberLoss, start: np.ndarray, rounds: int = _ROUNDS) -> tuple[np.ndarray, float, bool]:
    """The lowest point that is reached from a start: parameters, objective, and whether it is one."""
    z = start
    value, gradient, curvature = objective.gradient(z)
    if not np.isfinite(value):
        return z, np.inf, False
    converged = False
    for _ in range(rounds):
        if value < 1e-24:  # an exact fit
            return z, value, True
        scaled = _whitening(curvature, value)

        def rescaled(u: np.ndarray, z: np.ndarray = z, scaled: np.ndarray = scaled, unit: float = value) -> tuple:
            v, g, _ = objective.gradient(z + scaled @ u)
            return (v / unit, scaled.T @ g / unit) if np.isfinite(v) else (1e10, np.zeros_like(u))

        found = minimize(rescaled, np.zeros(len(z)), jac=True, method="BFGS", options={"gtol": 1e-6, "maxiter": 300})
        z = z + scaled @ found.x
        before, (value, gradient, curvature) = value, objective.gradient(z)
        steepness = _whitening(curvature, value).T @ gradient / max(value, 1e-300)
        converged = bool(steepness @ steepness / 2 < _GAIN)
        if converged and before - value <= _GAIN * before:
            break
    return z, value, converged


def _whitening(curvature: np.ndarray, value: float) -> np.ndarray:
    """A matrix whose columns are directions of curvature one, of an objective divided by its value."""
    eigenvalues, directions = np.linalg.eigh(curvature / max(value, 1e-300))
    # Directions that hardly matter are not blown up without end.
    return directions / np.sqrt(np.maximum(eigenvalues, 1e-12 * eigenvalues[-1] + 1e-300))


def target(law: Law, x: Columns) -> np.ndarray:
    """What the curve is to give for each point."""
    return np.log(x[law.target]) if law.log else x[law.target]


def _objective(law: Law, x: Columns, settings: Settings, weights: np.ndarray | None = None) -> _HuberLoss:
    y = target(law, x)
    free = np.array([name not in settings.fixed for name in law.names])
    base = law.internal(np.array([settings.fixed.get(name, 1.0) for name in law.names]))
    return _HuberLoss(law, x, y, np.ones_like(y) if weights is None else weights, settings.delta, base, free)


def fit(law: Law, x: Columns, settings: Settings, near: np.ndarray | None = None) -> Estimate:
    """The law's best parameters for these points.

    Args:
      near: parameters (in their own units) to start from besides the law's own starts.

    Raises:
      BadInputError: the points do not allow it.
    """
    if law.estimate is not None:
        return law.estimate(x, settings)
    objective = _objective(law, x, settings)
    if not objective.free.any():
        z = np.zeros(0)
        return _estimate(objective, z, float(objective.value(z[None])[0]), True)
    starts = _starts(objective)
    best = [*starts[: settings.starts]]
    if near is not None:
        best.insert(0, law.internal(near)[objective.free])
    # A few rounds tell the good ones; the best is then followed to its end.
    reached = [_descend(objective, start, 2) for start in best]
    z, value, _ = min(reached, key=lambda each: each[1])
    z, value, converged = _descend(objective, z)
    if not np.isfinite(value):
        raise BadInputError(f"--law {law.name}: no start gives the law a value at all points; look at their columns")
    agree = sum(each[1] <= value * (1 + 1e-4) for each in reached)
    found = _estimate(objective, z, value, converged)
    details = {"starts": len(best), "starts_agreeing": agree}
    return replace(found, notes=found.notes + _vanished(objective, z, starts), details=details)


def _starts(objective: _HuberLoss) -> np.ndarray:
    """The law's own starts, the best first: [starts, free parameters]."""
    assert objective.law.starts is not None
    starts = objective.law.starts(objective.x)[:, objective.free]
    starts = starts[np.all(np.isfinite(starts), axis=1)]
    # In parts, so that ten thousand points do not take gigabytes.
    values = np.concatenate([objective.value(part) for part in np.array_split(starts, -(-len(starts) // 256))])
    return starts[np.argsort(values, kind="stable")]


def _vanished(objective: _HuberLoss, z: np.ndarray, starts: np.ndarray) -> tuple[str, ...]:
    """A sentence for each parameter that no prediction depends on at z, as its term has run off or is not needed."""
    names, notes = np.array(objective.law.names)[objective.free], []
    for i in np.flatnonzero(_idle(objective, z)):
        if starts[:, i].min() <= z[i] <= starts[:, i].max():
            notes.append(f"no prediction depends on {names[i]} here: the points do not tell it")
        elif z[i] < starts[:, i].min():
            notes.append(came_out_as_zero(names[i]))
        else:
            notes.append(f"{names[i]} came out as infinity: the points do not tell it from that")
    return tuple(notes)


def _idle(objective: _HuberLoss, z: np.ndarray) -> np.ndarray:
    """Which free parameters, of those fitted as logarithms, no prediction depends on: [free]."""
    _, slopes = objective.linearised(z)
    unit = 1.0 if objective.law.log else np.ptp(objective.y)
    return objective.law.positive[objective.free] & (np.abs(slopes).max(axis=1) < _NOTHING * unit)


def _estimate(objective: _HuberLoss, z: np.ndarray, value: float, converged: bool) -> Estimate:
    full = objective.base.copy()
    full[objective.free] = z
    residuals = objective.y - objective.predicted(z[None])[0]
    notes = () if converged else ("the optimiser did not converge: the objective falls on beyond these values",)
    return Estimate(objective.law.natural(full), value, residuals, converged, notes)


def descend_from(law: Law, x: Columns, settings: Settings, start: np.ndarray) -> Estimate:
    """The optimum reached from given parameters alone."""
    objective = _objective(law, x, settings)
    return _estimate(objective, *_descend(objective, law.internal(start)[objective.free]))


def bootstrap(law: Law, x: Columns, settings: Settings, found: Estimate) -> np.ndarray:
    """Parameters fitted to resamples of the points; those of resamples that allow no fit are missing.

    Points are drawn with replacement, where the law does not say otherwise. Each fit starts from the optimum. Where
    a term has vanished there, no slope in its logarithm leads out of zero, so that all resamples would find zero again,
    as if it were certain; but the sign of that slope tells whether a resample would have the term back (the condition
    of Karush, Kuhn and Tucker). Those that would are fitted from the best of the law's own starts too.

    Returns:
      [at most settings.bootstrap, parameters]; none where no noise is known that resamples could differ by.
    """
    if not found.noise_known:
        return np.zeros((0, len(law.names)))
    rng = np.random.default_rng(settings.seed)
    draws = []
    count = len(found.residuals)
    others, idle = np.zeros((0, 0)), np.zeros(0, bool)
    if law.estimate is None:
        given = _objective(law, x, settings)
        optimum = law.internal(found.values)[given.free]
        idle = _idle(given, optimum) if given.free.any() else idle
        if idle.any():
            others = _starts(given)[: settings.starts]
            # Out of zero the way leads up, out of infinity down.
            upwards = np.where(optimum < others.min(axis=0), 1, -1)[idle]
    if law.settled is not None:
        settings = law.settled(x, settings)
    resample = law.resampler(x, settings) if law.resampler is not None else None
    for _ in range(settings.bootstrap):
        if law.estimate is None:
            weights = np.bincount(rng.integers(count, size=count), minlength=count).astype(float)
            objective = _objective(law, x, settings, weights)
            if not objective.free.any():
                draws.append(found.values)
                continue
            z, value, _ = _descend(objective, optimum, 3)
            if idle.any() and np.any(objective.gradient(z)[1][idle] * upwards <= 0):
                own = others[np.argmin(objective.value(others))]
                z, value, _ = min((z, value, True), _descend(objective, own, 3), key=lambda each: each[1])
            full = objective.base.copy()
            full[objective.free] = z
            if np.isfinite(value):
                draws.append(law.natural(full))
            continue
        if resample is not None:
            sample = resample(rng)
        else:
            chosen = rng.integers(count, size=count)
            sample = {name: column[chosen] for name, column in x.items()}
        try:
            draws.append(law.estimate(sample, settings).values)
        except (BadInputError, np.linalg.LinAlgError, ValueError):
            continue
    finite = [draw for draw in draws if np.all(np.isfinite(draw))]
    return np.array(finite).reshape(len(finite), len(law.names))
