"""Chinchilla's first approach: the envelope of training curves.

At each of many budgets the size whose training curve is lowest is the best. Nothing is assumed of how the loss depends
on size and tokens.

Source: Hoffmann et al. 2022, section 3.1.
"""

from collections.abc import Callable

import numpy as np

from blobjax.laws.formulas.growth import Best, columns, grow, law, thinned
from blobjax.laws.formulas.law import Columns, Settings, bins


def envelope(x: Columns, count: int = 1500) -> Best:
    """The lowest of the training curves at `count` budgets, where sizes on both sides of it are known to be worse."""
    curves = []
    for group in bins(x["params"], 0.01):
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
    return Best(columns(rows), tuple(notes), (), np.zeros(0))


def _other_curves(x: Columns, settings: Settings) -> Callable[[np.random.Generator], dict[str, np.ndarray]]:
    """Whole training curves drawn with replacement: points of one curve are not independent."""
    groups = bins(x["params"], 0.01)

    def draw(rng: np.random.Generator) -> dict[str, np.ndarray]:
        chosen = np.unique(rng.integers(len(groups), size=len(groups)))
        rows = np.concatenate([groups[i] for i in chosen])
        return {name: column[rows] for name, column in x.items()}

    return draw


CHINCHILLA_1 = law(
    "chinchilla-1",
    "3.1",
    estimate=lambda x, settings: grow(envelope(x)),
    resampler=_other_curves,
    measured=lambda x, settings: thinned(envelope(x).columns),
    distinct={"params": 3, "flops": 3},
    curves=True,
)
