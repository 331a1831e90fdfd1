"""Chinchilla's first two approaches: what is best at each budget, and how that grows with compute.

    N*(C) = G_N C^a,   D*(C) = G_D C^b,   L*(C) = E + A C^-gamma

Approach 1 takes the envelope of training curves: at each of many budgets the size whose curve is lowest. Approach 2
takes runs that used a budget up, fits a parabola to their loss against log N (and another against log D), and reads
its lowest point off. Neither assumes how the loss depends on N and D.

Source: Hoffmann et al. 2022, sections 3.1 and 3.2. How approach 2 errs where budgets are sampled off their centres, or
widely: the parabola is the first terms of a series only.
"""

from dataclasses import dataclass

import numpy as np

from blobjax.config import BadInputError
from blobjax.scaling import fitting
from blobjax.scaling.laws.law import Columns, Estimate, Law, Parameter, Settings, budgets
from blobjax.scaling.laws.power import POWER_FLOPS

PARAMETERS = (
    Parameter("G_N", "params that are best at one flop"),
    Parameter("a", "exponent of params", positive=False),
    Parameter("G_D", "tokens that are best at one flop"),
    Parameter("b", "exponent of tokens", positive=False),
    Parameter("E", "loss that stays, nats per token"),
    Parameter("A", "nats times flops to the gamma"),
    Parameter("gamma", "exponent of the loss", positive=False),
)


@dataclass(frozen=True)
class Best:
    """What is best at some budgets.

    Attributes:
      columns: flops, params, tokens and loss, one value for each budget.
      refused: a sentence for each budget that says nothing.
      scatter: of all points about their parabolas, relative to the loss.
    """

    columns: dict[str, np.ndarray]
    refused: tuple[str, ...]
    scatter: np.ndarray


def _columns(rows: list[tuple[float, float, float, float]]) -> dict[str, np.ndarray]:
    names = ("flops", "params", "tokens", "loss")
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}


def parabolas(x: Columns) -> Best:
    """The lowest point of each budget's parabola."""
    rows, refused, scatter = [], [], []
    for group in budgets(x["flops"]):
        C = float(np.exp(np.log(x["flops"][group]).mean()))
        loss = x["loss"][group]
        lowest = []
        for name in ("params", "tokens"):
            log_size = np.log(x[name][group])
            if len(np.unique(log_size)) < 4:
                refused.append(f"budget {C:.3g}: {len(np.unique(log_size))} sizes; a parabola needs 4 to be checked")
                break
            middle = log_size.mean()
            bend, slope, height = np.polyfit(log_size - middle, loss, 2)
            if bend <= 0:
                refused.append(f"budget {C:.3g}: the parabola is concave, it has no lowest point")
                break
            vertex = middle - slope / (2 * bend)
            if not log_size.min() <= vertex <= log_size.max():
                refused.append(
                    f"budget {C:.3g}: the lowest point, {name} {np.exp(vertex):.3g}, is outside of what was sampled, "
                    f"{np.exp(log_size.min()):.3g} to {np.exp(log_size.max()):.3g}"
                )
                break
            lowest.append((float(np.exp(vertex)), float(height - slope**2 / (4 * bend))))
            if name == "params":
                errors = loss / np.polyval([bend, slope, height], log_size - middle) - 1
                degrees = max(len(loss) - 3, 1)
        if len(lowest) == 2:
            rows.append((C, lowest[0][0], lowest[1][0], lowest[0][1]))
            scatter.append(errors * np.sqrt(len(loss) / degrees))
    return Best(_columns(rows), tuple(refused), np.concatenate(scatter) if scatter else np.zeros(0))


def _another_sample(x: Columns, values: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The losses of the parabolas, with errors drawn from all that there were: a budget has too few points to draw."""
    scatter = parabolas(x).scatter
    loss = x["loss"].copy()
    for group in budgets(x["flops"]):
        log_size = np.log(x["params"][group])
        if len(np.unique(log_size)) >= 4:
            fitted = np.polyval(np.polyfit(log_size, loss[group], 2), log_size)
            loss[group] = fitted * (1 + rng.choice(scatter, len(group)))
    return {**x, "loss": loss}


def envelope(x: Columns, count: int = 1500) -> Best:
    """The lowest of the training curves at `count` budgets, where sizes on both sides of it are known to be worse."""
    curves = []
    for group in budgets(x["params"], 0.01):
        group = group[np.argsort(x["flops"][group])]
        if len(group) >= 2:
            curves.append((x["params"][group[0]], *(np.log(x[name][group]) for name in ("flops", "tokens", "loss"))))
    rows, edges = [], 0
    if len(curves) >= 3:
        C = np.linspace(min(c[1][0] for c in curves), max(c[1][-1] for c in curves), count)
        losses = np.stack([np.interp(C, c[1], c[3], left=np.nan, right=np.nan) for c in curves])
        for at, column in zip(C, losses.T, strict=True):
            known = np.flatnonzero(np.isfinite(column))
            if len(known) < 3:
                continue
            best = known[np.argmin(column[known])]
            if best in (known[0], known[-1]):
                edges += 1
                continue
            size, flops, tokens, _ = curves[best]
            rows.append((np.exp(at), size, np.exp(np.interp(at, flops, tokens)), np.exp(column[best])))
    notes = [f"{len(rows)} of {count} budgets have a best size with worse ones known on both sides"]
    if edges:
        notes.append(f"at {edges} budgets the best size is the smallest or the largest known there; they say nothing")
    return Best(_columns(rows), tuple(notes), np.zeros(0))


def _other_curves(x: Columns, values: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Whole training curves drawn with replacement: points of one curve are not independent."""
    groups = budgets(x["params"], 0.01)
    chosen = np.unique(rng.integers(len(groups), size=len(groups)))
    rows = np.concatenate([groups[i] for i in chosen])
    return {name: column[rows] for name, column in x.items()}


def _grow(best: Best, settings: Settings) -> Estimate:
    """The three power laws through what is best at each budget."""
    columns = best.columns
    found = len(np.unique(columns["params"]))
    if found < 3:
        raise BadInputError(
            f"{found} different best sizes inside of what was sampled; a power law needs 3",
            *best.refused[:5],
            *([f"and {len(best.refused) - 5} budgets more"] if len(best.refused) > 5 else []),
        )
    log_C = np.log(columns["flops"])
    middle = log_C.mean()
    values, objective = [], 0.0
    for name in ("params", "tokens"):
        exponent, height = np.polyfit(log_C - middle, np.log(columns[name]), 1)
        values += [np.exp(height - exponent * middle), exponent]
        objective += float(np.sum((np.log(columns[name]) - height - exponent * (log_C - middle)) ** 2))
    notes = best.refused
    if found >= 4:
        loss = fitting.fit(POWER_FLOPS, _thinned(columns, 100), Settings(delta=np.inf, starts=2))
        values += list(loss.values)
        residuals = loss.residuals
    else:
        slope, height = np.polyfit(log_C - middle, np.log(columns["loss"]), 1)
        values += [0.0, np.exp(height - slope * middle), -slope]
        residuals = np.log(columns["loss"]) - height - slope * (log_C - middle)
        notes += ("three budgets cannot tell what loss stays: E is taken to be zero",)
    scatter = best.scatter if len(best.scatter) else residuals
    details = {"budgets": {name: column.tolist() for name, column in _thinned(columns).items()}}
    return Estimate(np.array(values), objective, scatter, True, notes, details)


def _thinned(columns: dict[str, np.ndarray], most: int = 40) -> dict[str, np.ndarray]:
    count = len(columns["flops"])
    chosen = np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(int))
    return {name: column[chosen] for name, column in columns.items()}


def _curve(x: Columns, log_G_N, a, log_G_D, b, log_E, log_A, gamma) -> np.ndarray:  # type: ignore[no-untyped-def]
    return POWER_FLOPS.curve(x, log_E, log_A, gamma)


def _optimum(law: Law, values: np.ndarray, flops: float, x: Columns) -> tuple[float, float]:
    G_N, a, G_D, b, *_ = values
    return float(G_N * flops**a), float(G_D * flops**b)


def _law(name, section, estimate, resample, measured, distinct, curves=False) -> Law:  # type: ignore[no-untyped-def]
    return Law(
        name=name,
        formula="N*(C) = G_N C^a, D*(C) = G_D C^b, L*(C) = E + A C^-gamma",
        source=f"Hoffmann et al. 2022, section {section}",
        parameters=PARAMETERS,
        curve=_curve,
        estimate=estimate,
        minimises="sum of squares of log params and log tokens about their power laws",
        resample=resample,
        measured=measured,
        curves=curves,
        needs=("params", "tokens", "flops"),
        distinct=distinct,
        delta=np.inf,
        optimum=_optimum,
    )


CHINCHILLA_1 = _law(
    "chinchilla-1",
    "3.1",
    lambda x, settings: _grow(envelope(x), settings),
    _other_curves,
    lambda x: _thinned(envelope(x).columns),
    {"params": 3, "flops": 3},
    curves=True,
)
CHINCHILLA_2 = _law(
    "chinchilla-2",
    "3.2",
    lambda x, settings: _grow(parabolas(x), settings),
    _another_sample,
    lambda x: parabolas(x).columns,
    {"params": 4, "flops": 3},
)
