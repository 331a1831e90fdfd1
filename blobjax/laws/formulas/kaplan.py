"""Kaplan's law of size and data, in which the lack of either becomes the other's.

    L(N, D) = [ (N_c / N)^(alpha_N / alpha_D) + D_c / D ]^alpha_D

There is no floor: the loss goes to zero with both. N counts no embeddings in the paper, and D is the size of the data
set, on which each run is trained until its loss falls no more: not the tokens of one run of given compute. So this law
has no best split of a budget; the paper takes that from its law of steps and size (equations 1.6 to 1.8), which gives
N* ~ C^0.73, where 6 N D = C put into this one would give C^0.58.
Source: Kaplan et al. 2020, equation 1.5 and section 4.1.
"""

import numpy as np

from blobjax.laws.formulas.law import Columns, Law, Parameter, apart, grid, log, log_sum_exp


def _curve(
    x: Columns, log_N_c: np.ndarray, log_D_c: np.ndarray, log_alpha_N: np.ndarray, log_alpha_D: np.ndarray
) -> np.ndarray:
    alpha_N, alpha_D = np.exp(log_alpha_N), np.exp(log_alpha_D)
    return alpha_D * log_sum_exp(alpha_N / alpha_D * (log_N_c - log(x, "params")), log_D_c - log(x, "tokens"))


def _starts(x: Columns) -> np.ndarray:
    mean = np.log(x["loss"]).mean()
    starts = grid(np.log([0.05, 0.1, 0.2, 0.4]), np.log([0.05, 0.1, 0.2, 0.4]), [-3.0, -1.0, 1.0], [-3.0, -1.0, 1.0])
    log_alpha_N, log_alpha_D, off_N, off_D = starts.T
    # Where the term stands alone it gives the mean loss; then some less or more.
    log_N_c = log(x, "params").mean() + mean / np.exp(log_alpha_N) + off_N
    log_D_c = log(x, "tokens").mean() + mean / np.exp(log_alpha_D) + off_D
    return np.stack([log_N_c, log_D_c, log_alpha_N, log_alpha_D], axis=1)


KAPLAN = Law(
    name="kaplan",
    formula="L(N, D) = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D",
    source="Kaplan et al. 2020, equation 1.5",
    parameters=(
        Parameter("N_c", "parameters at which size alone costs one nat"),
        Parameter("D_c", "tokens at which data alone costs one nat"),
        Parameter("alpha_N", "exponent of size"),
        Parameter("alpha_D", "exponent of data"),
    ),
    curve=_curve,
    starts=_starts,
    needs=("params", "tokens"),
    may_use=("flops",),
    distinct={"params": 3, "tokens": 3, "flops": 3},
    check=apart,
)
