"""Training in low precision: fewer bits act as fewer parameters.

    L = E + A N_eff^-alpha + B D^-beta
    N_eff = N (1 - exp(-P_w / gamma_w)) (1 - exp(-P_a / gamma_a)) (1 - exp(-P_kv / gamma_kv))

P are the bits of weights, activations, and keys and values during training.
Source: Kumar et al. 2024, section 4: equation 3 (weights alone) and equation 4.
"""

from functools import partial

import numpy as np

from blobjax.laws.formulas.law import (
    Columns,
    Law,
    Parameter,
    apart,
    best_split,
    grid,
    log,
    log_non_negative,
    log_sum_exp,
)


def _log_kept(x: Columns, bits: tuple[str, ...], log_gammas: tuple[np.ndarray, ...]) -> np.ndarray:
    """log of N_eff / N."""
    factors = zip(bits, log_gammas, strict=True)
    return sum((np.log(-np.expm1(-x[name] / np.exp(log_gamma))) for name, log_gamma in factors), np.zeros(()))


def _curve(
    bits: tuple[str, ...],
    x: Columns,
    log_E: np.ndarray,
    log_A: np.ndarray,
    log_B: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    *log_gammas: np.ndarray,
) -> np.ndarray:
    log_N_eff = log(x, "params") + _log_kept(x, bits, log_gammas)
    return log_sum_exp(log_E, log_A - alpha * log_N_eff, log_B - beta * log(x, "tokens"))


def _starts(bits: tuple[str, ...], x: Columns) -> np.ndarray:
    starts = []
    for alpha, beta, *gammas in grid([0.2, 0.35, 0.5], [0.2, 0.35, 0.5], *([1, 3] for _ in bits)):
        kept = np.exp(_log_kept(x, bits, tuple(np.log(gammas))))
        features = [np.ones_like(kept), (x["params"] * kept) ** -alpha, x["tokens"] ** -beta]
        starts.append([*log_non_negative(features, x["loss"]), alpha, beta, *np.log(gammas)])
    return np.array(starts)


def _law(name: str, formula: str, equation: str, gammas: dict[str, Parameter]) -> Law:
    bits = tuple(gammas)
    return Law(
        name=name,
        formula=f"L = E + A N_eff^-alpha + B D^-beta, N_eff = N {formula}",
        source=f"Kumar et al. 2024, section 4, equation {equation}",
        parameters=(
            Parameter("E", "loss that stays, nats per token", zero=True),
            Parameter("A", "what size costs, nats times params to the alpha"),
            Parameter("B", "what data costs, nats times tokens to the beta"),
            Parameter("alpha", "exponent of size", positive=False),
            Parameter("beta", "exponent of data", positive=False),
            *gammas.values(),
        ),
        curve=partial(_curve, bits),
        starts=partial(_starts, bits),
        needs=("params", "tokens", *bits),
        may_use=("flops",),
        distinct={"params": 3, "tokens": 3, "flops": 3, **dict.fromkeys(bits, 2)},
        check=apart,
        optimum=best_split,
    )


_WEIGHTS = {"weight_bits": Parameter("gamma_w", "bits of weights at which 1 - 1/e of the parameters count")}
PRECISION_WEIGHTS = _law("precision-weights", "(1 - e^(-P_w/gamma_w))", "3", _WEIGHTS)
PRECISION = _law(
    "precision",
    "(1 - e^(-P_w/gamma_w)) (1 - e^(-P_a/gamma_a)) (1 - e^(-P_kv/gamma_kv))",
    "4",
    _WEIGHTS
    | {
        "activation_bits": Parameter("gamma_a", "the same of activations"),
        "kv_bits": Parameter("gamma_kv", "the same of keys and values"),
    },
)
