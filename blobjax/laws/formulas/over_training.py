"""Over-training: how the loss follows compute when more tokens per parameter are seen than is compute-optimal.

    L(C, M) = E + (a M^eta + b M^-eta) C^-eta,   M = D / N tokens per parameter

Chinchilla's law with one exponent for both, alpha = beta = 2 eta, in other variables.
Source: Gadre et al. 2024, equation 4.
"""

import numpy as np

from blobjax.laws.formulas.law import Columns, Law, Parameter, Values, log, log_non_negative, log_sum_exp

_ABSURD = 50.0


def _curve(x: Columns, log_E: np.ndarray, log_a: np.ndarray, log_b: np.ndarray, log_eta: np.ndarray) -> np.ndarray:
    eta = np.exp(log_eta)
    log_C, log_M = log(x, "flops"), log(x, "overtraining")
    logarithm = log_sum_exp(log_E, log_a + eta * (log_M - log_C), log_b - eta * (log_M + log_C))
    # Far beyond any loss a descent only has to turn back, and not to overflow.
    return np.exp(np.where(logarithm.real > _ABSURD, _ABSURD, logarithm))


def _starts(x: Columns) -> np.ndarray:
    starts = []
    for eta in np.geomspace(0.02, 1, 15):
        C, M = x["flops"] ** -eta, x["overtraining"] ** eta
        starts.append([*log_non_negative([np.ones_like(C), M * C, C / M], x["loss"]), np.log(eta)])
    return np.array(starts)


def _best(E: float, a: float, b: float, eta: float) -> Values:
    """The multiplier with the lowest loss: a M^eta = b M^-eta."""
    with np.errstate(all="ignore"):
        M = (np.float64(b) / a) ** (1 / (2 * np.float64(eta)))
    return {"best_multiplier": float(M) if 0 < M < np.inf else np.nan}


def _optimum(law: Law, values: np.ndarray, flops: float, x: Columns) -> tuple[float, float]:
    """The best multiplier as params and tokens with 6 N D = C."""
    M = _best(*values)["best_multiplier"]
    return float(np.sqrt(flops / 6 / M)), float(np.sqrt(flops * M / 6))


OVER_TRAINING = Law(
    name="over-training",
    formula="L(C, M) = E + (a M^eta + b M^-eta) C^-eta, M = D / N",
    source="Gadre et al. 2024, equation 4",
    parameters=(
        Parameter("E", "loss that stays, nats per token", zero=True),
        Parameter("a", "what size costs, nats times flops per multiplier to the eta", zero=True),
        Parameter("b", "what data costs, nats times flops times multiplier to the eta", zero=True),
        Parameter("eta", "exponent of compute, half that of size and data"),
    ),
    curve=_curve,
    starts=_starts,
    needs=("flops", "overtraining"),
    distinct={"flops": 3, "overtraining": 2},
    # Least squares of the loss itself, as in the paper's released code (scaling/laws.py of mlfoundations/scaling).
    log=False,
    delta=np.inf,
    derived=_best,
    optimum=_optimum,
)
