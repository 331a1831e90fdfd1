"""What is best at each budget, and how that grows with compute: what Chinchilla's first two approaches have in common.

    N*(C) = G_N C^a,   D*(C) = G_D C^b,   L*(C) = E + A C^-gamma

Source: Hoffmann et al. 2022, sections 3.1 and 3.2.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from blobjax.config import BadInputError
from blobjax.laws import fitting
from blobjax.laws.formulas.law import Columns, Estimate, Law, Parameter, Settings, came_out_as_zero
from blobjax.laws.formulas.power import POWER_FLOPS

PARAMETERS = (
    Parameter("G_N", "params that are best at one flop"),
    Parameter("a", "exponent of params", positive=False),
    Parameter("G_D", "tokens that are best at one flop"),
    Parameter("b", "exponent of tokens", positive=False),
    Parameter("E", "loss that stays, nats per token"),
    Parameter("A", "nats times flops to the gamma"),
    Parameter("gamma", "exponent of the loss", positive=False),
)


# Of each kind of trouble so many budgets are named one by one.
_NAMED = 5


@dataclass(frozen=True)
class Best:
    """What is best at some budgets.

    Attributes:
      columns: flops, params, tokens and loss, one value for each budget.
      refused: a sentence for each budget that says nothing.
      notes: sentences about the others.
      scatter: how far points lie off the curves of their budgets, relative to the loss; empty where that is not known.
    """

    columns: dict[str, np.ndarray]
    refused: tuple[str, ...]
    notes: tuple[str, ...]
    scatter: np.ndarray


def columns(rows: list[tuple[float, float, float, float]]) -> dict[str, np.ndarray]:
    """Rows of flops, params, tokens and loss by name."""
    names = ("flops", "params", "tokens", "loss")
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}


def grow(best: Best) -> Estimate:
    """The three power laws through what is best at each budget.

    Raises:
      BadInputError: there are fewer than three best sizes.
    """
    columns = best.columns
    found = len(np.unique(columns["params"]))
    if found < 3:
        raise BadInputError(
            f"{found} different best sizes inside of what was sampled; a power law needs 3",
            *best.refused[:_NAMED],
            *([f"and {len(best.refused) - _NAMED} budgets more"] if len(best.refused) > _NAMED else []),
        )
    log_C = np.log(columns["flops"])
    middle = log_C.mean()
    values, objective = [], 0.0
    for name in ("params", "tokens"):
        exponent, height = np.polyfit(log_C - middle, np.log(columns[name]), 1)
        values += [np.exp(height - exponent * middle), exponent]
        objective += float(np.sum((np.log(columns[name]) - height - exponent * (log_C - middle)) ** 2))
    notes, converged = best.refused + best.notes, True
    if found >= 4:
        loss = fitting.fit(POWER_FLOPS, thinned(columns, 100), Settings(delta=np.inf, starts=2))
        values += list(loss.values)
        residuals, converged = loss.residuals, loss.converged
        notes += loss.notes
    else:
        slope, height = np.polyfit(log_C - middle, np.log(columns["loss"]), 1)
        values += [0.0, np.exp(height - slope * middle), -slope]
        residuals = np.log(columns["loss"]) - height - slope * (log_C - middle)
        notes += (came_out_as_zero("E", "three budgets cannot tell what loss stays"),)
    scatter = best.scatter if len(best.scatter) else residuals
    details = {"budgets": {name: column.tolist() for name, column in thinned(columns).items()}}
    return Estimate(np.array(values), objective, scatter, converged, notes, details)


def thinned(columns: dict[str, np.ndarray], most: int = 40) -> dict[str, np.ndarray]:
    """At most so many of the budgets, evenly spread."""
    count = len(columns["flops"])
    chosen = np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(int))
    return {name: column[chosen] for name, column in columns.items()}


def _curve(x: Columns, log_G_N, a, log_G_D, b, log_E, log_A, gamma) -> np.ndarray:  # type: ignore[no-untyped-def]
    return POWER_FLOPS.curve(x, log_E, log_A, gamma)


def _optimum(law: Law, values: np.ndarray, flops: float, x: Columns) -> tuple[float, float]:
    G_N, a, G_D, b, *_ = values
    return float(G_N * flops**a), float(G_D * flops**b)


def law(name: str, section: str, **more: Any) -> Law:
    """A law of the best at a budget; what it is estimated by, and from what, is given."""
    return Law(
        name=name,
        formula="N*(C) = G_N C^a, D*(C) = G_D C^b, L*(C) = E + A C^-gamma",
        source=f"Hoffmann et al. 2022, section {section}",
        parameters=PARAMETERS,
        curve=_curve,
        minimises="sum of squares of log params and log tokens about their power laws",
        needs=("params", "tokens", "flops"),
        delta=np.inf,
        optimum=_optimum,
        **more,
    )
