"""Chinchilla's third approach, and the same law by variable projection.

    L(N, D) = E + A N^-alpha + B D^-beta

What follows for C = 6 N D: N* = G (C/6)^a, D* = (C/6)^b / G with a = beta / (alpha + beta), b = alpha / (alpha + beta),
G = (alpha A / (beta B))^(1 / (alpha + beta)).

Source: Hoffmann et al. 2022, section 3.3 and equations 2 to 4; the grid of starts: appendix D.3. The published fit had
not converged: Besiroglu et al. 2024, section 3.
"""

import numpy as np
from scipy.optimize import minimize

from blobjax.laws.formulas.law import (
    Columns,
    Estimate,
    Law,
    Parameter,
    Settings,
    Values,
    apart,
    best_split,
    came_out_as_zero,
    grid,
    log,
    log_non_negative,
    log_sum_exp,
    non_negative,
)

PARAMETERS = (
    Parameter("E", "loss that stays: entropy of the text, nats per token", zero=True),
    Parameter("A", "what size costs, nats times params to the alpha", zero=True),
    Parameter("B", "what data costs, nats times tokens to the beta", zero=True),
    Parameter("alpha", "exponent of size", positive=False),
    Parameter("beta", "exponent of data", positive=False),
)


def _curve(
    x: Columns, log_E: np.ndarray, log_A: np.ndarray, log_B: np.ndarray, alpha: np.ndarray, beta: np.ndarray
) -> np.ndarray:
    return log_sum_exp(log_E, log_A - alpha * log(x, "params"), log_B - beta * log(x, "tokens"))


def _starts(x: Columns) -> np.ndarray:
    e, a, b = np.arange(-1, 1.5, 0.5), np.arange(0, 30, 5), np.arange(0, 30, 5)
    exponents = np.arange(0, 2.5, 0.5)
    papers = grid(e, a, b, exponents, exponents)
    # The exponents that are likely, each pair with the best coefficients it can have.
    likely = grid([0.2, 0.35, 0.5], [0.2, 0.35, 0.5])
    own = [[*log_non_negative(_features(x, *pair), x["loss"]), *pair] for pair in likely]
    return np.concatenate([own, papers])


def _derived(E: float, A: float, B: float, alpha: float, beta: float) -> Values:
    if not (alpha > 0 and beta > 0 and A > 0 and B > 0):  # there is no best split
        return dict.fromkeys(("a", "b", "G"), np.nan)
    a = beta / (alpha + beta)
    with np.errstate(all="ignore"):
        G = np.power(np.float64(alpha * A / (beta * B)), 1 / (alpha + beta))
    return {"a": a, "b": 1 - a, "G": float(G)}


CHINCHILLA_3 = Law(
    name="chinchilla-3",
    formula="L(N, D) = E + A N^-alpha + B D^-beta",
    source="Hoffmann et al. 2022, section 3.3; Besiroglu et al. 2024",
    parameters=PARAMETERS,
    curve=_curve,
    starts=_starts,
    needs=("params", "tokens"),
    may_use=("flops",),
    distinct={"params": 3, "tokens": 3, "flops": 3},
    check=apart,
    derived=_derived,
    exponents={"A": "alpha", "B": "beta"},
    optimum=best_split,
)


# Between these exponents are searched.
_EXPONENTS = (1e-3, 5)


def _features(x: Columns, alpha: float, beta: float) -> list[np.ndarray]:
    return [np.ones_like(x["params"]), x["params"] ** -alpha, x["tokens"] ** -beta]


def _project(x: Columns, settings: Settings) -> Estimate:
    """Least squares of the loss. For given exponents it is linear in E, A, B >= 0, so only the exponents are searched.

    Source: Golub & Pereyra 1973; the inner problem: Lawson & Hanson 1974, chapter 23.
    """

    def cost(exponents: np.ndarray) -> float:
        return non_negative(_features(x, *exponents), x["loss"])[1]

    start = min(grid(np.arange(0.1, 1.2, 0.1), np.arange(0.1, 1.2, 0.1)), key=cost)
    scale = max(cost(start), 1e-300)
    found = minimize(
        lambda exponents: cost(exponents) / scale,
        start,
        method="Nelder-Mead",
        bounds=[_EXPONENTS, _EXPONENTS],
        options={"xatol": 1e-10, "fatol": 1e-14, "maxfev": 2000, "maxiter": 2000},
    )
    coefficients, objective = non_negative(_features(x, *found.x), x["loss"])
    notes = [came_out_as_zero(name) for name, value in zip("EAB", coefficients, strict=True) if value == 0]
    for name, exponent, coefficient in zip(("alpha", "beta"), found.x, coefficients[1:], strict=True):
        if coefficient == 0:
            notes.append(f"{name} is not identified: no prediction depends on it where its coefficient is zero")
        elif np.isclose(exponent, _EXPONENTS, rtol=1e-3).any():
            notes.append(f"{name} came out as {exponent:.3g}, where the search ends: no power law describes the points")
    values = np.array([*coefficients, *found.x])
    with np.errstate(all="ignore"):
        predicted = np.log(np.stack(_features(x, *found.x), axis=1) @ coefficients)
    return Estimate(values, objective, np.log(x["loss"]) - predicted, bool(found.success), tuple(notes))


VARIABLE_PROJECTION = Law(
    name="variable-projection",
    formula=CHINCHILLA_3.formula,
    source="the law: Hoffmann et al. 2022, equation 2; variable projection: Golub & Pereyra 1973",
    parameters=PARAMETERS,
    curve=_curve,
    estimate=_project,
    minimises="sum of squares of the loss",
    needs=("params", "tokens"),
    may_use=("flops",),
    distinct={"params": 3, "tokens": 3, "flops": 3},
    delta=np.inf,
    check=apart,
    derived=_derived,
    exponents={"A": "alpha", "B": "beta"},
    optimum=best_split,
)
