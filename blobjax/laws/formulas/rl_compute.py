"""Reward against the compute of reinforcement learning: a sigmoid in log compute, and a straight line beside it.

    R(C) = R_0 + (A - R_0) / (1 + (C_mid / C)^B)
    R(C) = r + s log10 C

Compute may be zero: R(0) = R_0, the reward before training, which the line does not have.
Rewards are bounded, so a line must break somewhere; over a short range it may fit as well, which is why both are shown.
Source: Khatri et al. 2025, equation 1. There R_0 is the reward before training: `--fix R_0=…` where it is known.
"""

import numpy as np

from blobjax.laws.formulas.law import Columns, Estimate, Law, Parameter, Settings, grid


def _curve(x: Columns, A: np.ndarray, R_0: np.ndarray, log_C_mid: np.ndarray, log_B: np.ndarray) -> np.ndarray:
    # 1 / (1 + e^-u) as a tanh, which does not overflow. Before training there is nothing of it, whatever B is.
    C = np.where(x["flops"] > 0, x["flops"], 1.0)
    sigmoid = (1 + np.tanh(np.exp(log_B) * (np.log(C) - log_C_mid) / 2)) / 2
    return R_0 + (A - R_0) * np.where(x["flops"] > 0, sigmoid, 0.0)


def _starts(x: Columns) -> np.ndarray:
    reward, log_C = x["reward"], np.log(x["flops"][x["flops"] > 0])
    low, high = reward.min(), reward.max()
    span = high - low or 1.0
    tops, bottoms = high + span * np.array([0.0, 0.2, 0.6]), low - span * np.array([0.0, 0.2, 0.6])
    return grid(tops, bottoms, np.quantile(log_C, [0.0, 0.25, 0.5, 0.75, 1.0]), np.log([0.3, 1.0, 3.0]))


RL_COMPUTE = Law(
    name="rl-compute",
    formula="R(C) = R_0 + (A - R_0) / (1 + (C_mid / C)^B)",
    source="Khatri et al. 2025, equation 1",
    parameters=(
        Parameter("A", "reward that is never passed", positive=False),
        Parameter("R_0", "reward without training", positive=False),
        Parameter("C_mid", "flops (or the unit given) at which half of the gain is had"),
        Parameter("B", "how steep: efficiency"),
    ),
    curve=_curve,
    starts=_starts,
    needs=("flops",),
    distinct={"flops": 4},
    target="reward",
    origin={"flops": True},
    log=False,
    signed=True,
    delta=np.inf,
    beside=("rl-log-linear",),
)


def _line(x: Columns, settings: Settings) -> Estimate:
    log_C = np.log10(x["flops"])
    slope, start = np.polyfit(log_C, x["reward"], 1)
    residuals = x["reward"] - start - slope * log_C
    return Estimate(np.array([start, slope]), float(np.sum(residuals**2)) / 2, residuals)


LOG_LINEAR = Law(
    name="rl-log-linear",
    formula="R(C) = r + s log10(C)",
    source="the line that Khatri et al. 2025 hold their sigmoid against",
    parameters=(
        Parameter("r", "reward at one flop", positive=False),
        Parameter("s", "reward gained with each tenfold compute", positive=False),
    ),
    curve=lambda x, r, s: r + s * np.log10(x["flops"]),
    estimate=_line,
    minimises="half the sum of squares of reward",
    needs=("flops",),
    distinct={"flops": 3},
    target="reward",
    origin={"flops": False},
    log=False,
    signed=True,
    delta=np.inf,
    beside=("rl-compute",),
)
