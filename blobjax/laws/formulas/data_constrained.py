"""Data that is repeated: more epochs, and parameters beyond what the unique data can use, are worth less and less.

    L = E + A N'^-alpha + B D'^-alpha
    D' = U_D + U_D R_D* (1 - exp(-R_D / R_D*)),   R_D = D / U_D - 1   (repetitions),   U_D = min(D, unique tokens)
    N' = U_N + U_N R_N* (1 - exp(-R_N / R_N*)),   R_N = N / U_N - 1   (excess parameters)
    U_N = min(N, the compute-optimal parameters for U_D unique tokens)

As in the paper both exponents are one, so that size and data are scaled in proportion.
Source: Muennighoff et al. 2023, equations 5 to 7 and appendix A.
"""

import numpy as np

from blobjax.laws.formulas.law import Columns, Law, Parameter, best_split, grid, log, log_non_negative, log_sum_exp


def _saturating(log_unique: np.ndarray, log_all: np.ndarray, log_R: np.ndarray) -> np.ndarray:
    """log of U + U R* (1 - exp(-R / R*)), where R = all / U - 1."""
    R = np.exp(log_R)
    return log_unique + np.log(1 - R * np.expm1(-np.expm1(log_all - log_unique) / R))


def _curve(
    x: Columns,
    log_E: np.ndarray,
    log_A: np.ndarray,
    log_B: np.ndarray,
    log_alpha: np.ndarray,
    log_R_D: np.ndarray,
    log_R_N: np.ndarray,
) -> np.ndarray:
    alpha = np.exp(log_alpha)
    log_N, log_D = log(x, "params"), log(x, "tokens")
    # Of data that is not gone through once, only what is seen is had.
    log_U = np.minimum(log(x, "unique_tokens"), log_D)
    # The optimum of Chinchilla's law, alpha A N^-alpha = alpha B U^-alpha, for the unique tokens.
    best = (log_A - log_B) / alpha + log_U
    log_U_N = np.where(np.real(best) < log_N, best, log_N)
    log_N_eff = _saturating(log_U_N, log_N, log_R_N)
    log_D_eff = _saturating(log_U, log_D, log_R_D)
    return log_sum_exp(log_E, log_A - alpha * log_N_eff, log_B - alpha * log_D_eff)


def _starts(x: Columns) -> np.ndarray:
    starts = []
    for alpha, R_D, R_N in grid([0.2, 0.3, 0.4, 0.6], [3, 10, 30], [1, 5, 20]):
        # As if parameters were never in excess, and data repeated R_D times worth twice the unique at most.
        size = x["params"] ** -alpha
        repeated = np.exp(_saturating(log(x, "unique_tokens"), log(x, "tokens"), np.log(R_D)))
        coefficients = log_non_negative([np.ones_like(size), size, repeated**-alpha], x["loss"])
        starts.append([*coefficients, np.log(alpha), np.log(R_D), np.log(R_N)])
    return np.array(starts)


def _check(x: Columns) -> list[str]:
    problems = []
    if np.any(x["unique_tokens"] > x["tokens"] * 1.001):
        problems.append("unique_tokens are more than tokens in some points; they count what was seen at least once")
    if not np.any(x["tokens"] > x["unique_tokens"] * 1.1):
        problems.append("no point repeats its data (tokens > unique_tokens); without one R_D cannot be found")
    return problems


DATA_CONSTRAINED = Law(
    name="data-constrained",
    formula="L = E + A N'^-alpha + B D'^-alpha, D' = U_D + U_D R_D (1 - exp(-(D/U_D - 1)/R_D)), N' alike with R_N",
    source="Muennighoff et al. 2023, equations 5 to 7",
    parameters=(
        Parameter("E", "loss that stays, nats per token", zero=True),
        Parameter("A", "what size costs, nats times params to the alpha"),
        Parameter("B", "what data costs, nats times tokens to the alpha"),
        Parameter("alpha", "exponent of both"),
        Parameter("R_D", "repetitions after which 1 - 1/e of all they can give is had"),
        Parameter("R_N", "the same of excess parameters"),
    ),
    curve=_curve,
    starts=_starts,
    needs=("params", "tokens", "unique_tokens"),
    may_use=("flops",),
    distinct={"params": 3, "tokens": 3, "flops": 3},
    check=_check,
    optimum=best_split,
)
