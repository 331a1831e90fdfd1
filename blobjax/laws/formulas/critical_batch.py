"""The critical batch size: up to it a larger batch saves steps, beyond it it wastes examples.

Steps S and examples S × B that reach one loss, at different batch sizes B, lie on a hyperbola:

    (S / S_min - 1) (S B / E_min - 1) = 1,   that is   S = S_min (1 + B_crit / B),   B_crit = E_min / S_min

Source: McCandlish et al. 2018, equation 2.11 and section 2.3; Kaplan et al. 2020, equation 5.1.

How critical batch sizes themselves follow the loss, or the tokens trained on:

    B_crit(L) = B_star L^(-1 / alpha_B)      Kaplan et al. 2020, equation 5.3
    B_crit(D) = B_star D^gamma               Zhang et al. 2024, section 4
"""

import numpy as np

from blobjax.laws.formulas.law import Columns, Estimate, Law, Parameter, Settings, grid, log


def _hyperbola(x: Columns, log_S_min: np.ndarray, log_B_crit: np.ndarray) -> np.ndarray:
    return log_S_min + np.log(1 + np.exp(log_B_crit - log(x, "batch_size")))


CRITICAL_BATCH = Law(
    name="critical-batch",
    formula="S(B) = S_min (1 + B_crit / B)",
    source="McCandlish et al. 2018, equation 2.11",
    parameters=(
        Parameter("S_min", "steps below which no batch reaches the loss"),
        Parameter("B_crit", "critical batch size, in the unit of batch_size"),
    ),
    curve=_hyperbola,
    starts=lambda x: grid(
        log(x, "steps").min() + np.log([0.5, 0.8, 1.0]), np.quantile(log(x, "batch_size"), [0, 0.25, 0.5, 0.75, 1])
    ),
    needs=("batch_size",),
    distinct={"batch_size": 3},
    target="steps",
    delta=np.inf,
    derived=lambda S_min, B_crit: {"E_min": S_min * B_crit},
    future="batch_size",
)


def _straight(name: str, x: Columns) -> Estimate:
    """A straight line through logarithms."""
    measured = log(x, "critical_batch")
    slope, start = np.polyfit(log(x, name), measured, 1)
    residuals = measured - start - slope * log(x, name)
    return Estimate(np.array([np.exp(start), slope]), float(np.sum(residuals**2)) / 2, residuals)


def _of_loss(x: Columns, settings: Settings) -> Estimate:
    found = _straight("loss", x)
    return Estimate(np.array([found.values[0], -1 / found.values[1]]), found.objective, found.residuals)


CRITICAL_BATCH_LOSS = Law(
    name="critical-batch-loss",
    formula="B_crit(L) = B_star L^(-1 / alpha_B)",
    source="Kaplan et al. 2020, equation 5.3",
    parameters=(
        Parameter("B_star", "critical batch size at a loss of one nat"),
        Parameter("alpha_B", "inverse of the exponent", positive=False),
    ),
    curve=lambda x, log_B_star, alpha_B: log_B_star - log(x, "loss") / alpha_B,
    estimate=_of_loss,
    minimises="half the sum of squares of log critical_batch",
    needs=("loss",),
    distinct={"loss": 3},
    target="critical_batch",
    delta=np.inf,
    future="loss",
)
CRITICAL_BATCH_TOKENS = Law(
    name="critical-batch-tokens",
    formula="B_crit(D) = B_star D^gamma",
    source="Zhang et al. 2024, section 4",
    parameters=(
        Parameter("B_star", "critical batch size at one token"),
        Parameter("gamma", "exponent", positive=False),
    ),
    curve=lambda x, log_B_star, gamma: log_B_star + gamma * log(x, "tokens"),
    estimate=lambda x, settings: _straight("tokens", x),
    minimises="half the sum of squares of log critical_batch",
    needs=("tokens",),
    distinct={"tokens": 3},
    target="critical_batch",
    delta=np.inf,
    future="tokens",
)
