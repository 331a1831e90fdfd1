"""Chinchilla's second approach: IsoFLOP curves.

Runs of several sizes use the same budget up. Where their loss is lowest, as a function of the logarithm of the size, is
what is best at that budget. Nothing is assumed of how the loss depends on size and tokens, but for its form near the
lowest point.

Source: Hoffmann et al. 2022, section 3.2.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.special import fdtrc

from blobjax.laws.formulas.growth import Best, columns, grow, law
from blobjax.laws.formulas.law import CHAIN, RANGE, Columns, Estimate, Settings, budgets
from blobjax.laws.formulas.lowest import CHECKED, FEWEST, Budget, Lowest, akima, parabola, widest

# A budget whose points lie so many times as far off their parabola as those of the others do is named, where chance
# would do that with less than this probability: a budget of four sizes has one degree of freedom.
_MISFIT, _CHANCE = 2.0, 1e-3
# Relative to the loss: what is nearer to its parabola than losses are written down is no misfit.
_NOTHING, _EXACT = 1e-5, 1e-300
# Of each kind of trouble so many budgets are named one by one.
_NAMED = 5


@dataclass(frozen=True)
class Valley:
    """One budget: which points it has, and its lowest points along params and along tokens, or why there are none."""

    flops: float
    group: np.ndarray
    params: Lowest | str
    tokens: Lowest | str

    @property
    def refused(self) -> str:
        """Why it says nothing; empty where it says something."""
        return next((each for each in (self.params, self.tokens) if isinstance(each, str)), "")


def valleys(x: Columns, settings: Settings) -> list[Valley]:
    """All budgets, the smallest first.

    Args:
      x: params, tokens, flops and loss; where there is one `weight`, the inverse of each loss's variance in any unit.
      settings: budget_tolerance, window (None: the data choose) and vertex are used.
    """
    settings = settled(x, settings)
    return [_valley(x, group, settings) for group in budgets(x["flops"], settings.budget_tolerance)]


def _valley(x: Columns, group: np.ndarray, settings: Settings) -> Valley:
    C = x["flops"][group]
    if C.max() > C.min() * (1 + CHAIN):
        chained = (
            f"FLOPs up to {C.max():.3g} follow it within {settings.budget_tolerance:.3g}, so no budgets can be told "
            "apart there; a smaller --budget-tolerance may"
        )
        return Valley(float(C.min()), group, chained, chained)
    found = [
        akima(each) if settings.vertex == "akima" else parabola(each, settings.window or np.inf)
        for each in (_budget(x, group, name) for name in ("params", "tokens"))
    ]
    return Valley(float(np.exp(np.log(C).mean())), group, *found)


def _budget(x: Columns, group: np.ndarray, name: str) -> Budget:
    weight = x["weight"] / x["weight"].mean() if "weight" in x else np.ones_like(x["loss"])
    return Budget(name, np.log(x[name][group]), x["loss"][group], weight[group])


def settled(x: Columns, settings: Settings) -> Settings:
    """The settings with the window that the data choose, where none is given."""
    if settings.window is not None or settings.vertex != "parabola":
        return settings
    groups = budgets(x["flops"], settings.budget_tolerance)
    whole = [group for group in groups if x["flops"][group].max() <= x["flops"][group].min() * (1 + CHAIN)]
    return replace(settings, window=widest([_budget(x, group, "params") for group in whole]))


def best_of_budgets(x: Columns, settings: Settings) -> Best:
    """The lowest point of each budget."""
    chosen = settled(x, settings)
    found = valleys(x, chosen)
    rows, scatter = [], []
    for each in found:
        if isinstance(each.params, Lowest) and isinstance(each.tokens, Lowest):
            sizes = (float(np.exp(each.params.log_size)), float(np.exp(each.tokens.log_size)))
            rows.append((each.flops, *sizes, each.params.loss))
            scatter.append(each.params.errors)
    kept = [each for each in found if not each.refused]
    notes = [_grouped(x, found, settings), *_ambiguous(x, found, settings), _way(x, found, settings, chosen)]
    notes += [*_of_three(x, kept, chosen), *_misfits(x, kept, chosen)]
    errors = np.concatenate([*scatter, np.zeros(0)])
    if kept and not len(errors):
        notes.append("no budget with a lowest point has more than three sizes: no noise is known, so no intervals")
    return Best(columns(rows), _refused(x, found), tuple(notes), errors)


def _sizes(x: Columns, valley: Valley) -> int:
    return len(np.unique(x["params"][valley.group]))


def _refused(x: Columns, found: list[Valley]) -> tuple[str, ...]:
    """A sentence for each budget that says nothing; of those with too few sizes one for all where they are many."""
    refused = [each for each in found if each.refused]
    few = [each for each in refused if _sizes(x, each) < FEWEST]
    if len(few) <= _NAMED:
        return tuple(f"budget {each.flops:.3g}: {each.refused}" for each in refused)
    named = ", ".join(f"{each.flops:.3g}" for each in few[:_NAMED])
    return (
        *(f"budget {each.flops:.3g}: {each.refused}" for each in refused if _sizes(x, each) >= FEWEST),
        f"{len(few)} budgets have fewer than three sizes and say nothing: {named} and {len(few) - _NAMED} more",
    )


def _grouped(x: Columns, found: list[Valley], settings: Settings) -> str:
    sizes = sorted({len(each.group) for each in found})
    each = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return (
        f"{len(found)} {'budget' if len(found) == 1 else 'budgets'} of {each} points, {len(x['flops'])} in all; "
        f"FLOPs within {settings.budget_tolerance:.3g} of the next are one budget (--budget-tolerance)"
    )


def _ambiguous(x: Columns, found: list[Valley], settings: Settings) -> list[str]:
    """A sentence for each chain, and for each two budgets that could be one and lie nearly as close as its points."""
    tolerance, ranges = settings.budget_tolerance, [(x["flops"][each.group].min(), x["flops"][each.group].max())
                                                    for each in found]  # fmt: skip
    notes = [
        f"the {len(each.group)} points at {each.flops:.3g} FLOPs are a chain: each lies within {tolerance:.3g} of the "
        f"next, but the ends {high / low - 1:.3g} apart; they count as one budget"
        for each, (low, high) in zip(found, ranges, strict=True)
        if tolerance * (1 + 1e-9) < high / low - 1 <= CHAIN
    ]
    close = []
    for (low, high), (next_low, next_high) in pairwise(ranges):
        gap, widest_range = next_low / high - 1, max(high / low, next_high / next_low) - 1
        # Together over more than CHAIN they would be refused, and no tolerance above it is accepted.
        if gap <= max(2 * tolerance, widest_range) and next_high / low - 1 <= CHAIN:
            close.append(
                f"budgets up to {high:.4g} and from {next_low:.4g} FLOPs lie only {gap:.2g} apart; if they are one, "
                f"give --budget-tolerance {_rounded_up(gap)}"
            )
    for kind in (notes, close):
        if len(kind) > _NAMED:
            kind[_NAMED:] = [f"and {len(kind) - _NAMED} more of the kind"]
    return notes + close


def _rounded_up(gap: float) -> str:
    return f"{np.ceil(gap * 1000) / 1000:.3g}"


def _way(x: Columns, found: list[Valley], settings: Settings, chosen: Settings) -> str:
    """How the lowest points were found."""
    if chosen.vertex == "akima":
        return "lowest points are those of Akima splines through the mean loss of each size"
    assert chosen.window is not None
    whole = chosen.window >= RANGE[1]
    sizes = "all sizes" if whole else f"sizes within a factor of {chosen.window:.3g} of the lowest point"
    if settings.window is not None:
        return f"parabolas are fitted to {sizes}, as given"
    why = "no cubic term is missed there" if whole else "over a wider window the losses are no parabolas"
    if whole and max(_sizes(x, each) for each in found) <= CHECKED:
        why = f"{CHECKED} sizes or fewer cannot tell whether they are too wide"
    return f"parabolas are fitted to {sizes}, which the data chose: {why}; --window FACTOR chooses otherwise"


def _of_three(x: Columns, kept: list[Valley], chosen: Settings) -> list[str]:
    three = [f"{each.flops:.3g}" for each in kept if _sizes(x, each) == FEWEST]
    if not three:
        return []
    curve = "spline" if chosen.vertex == "akima" else "parabola"
    return [f"at {', '.join(three)} FLOPs there are three sizes: the {curve} goes through them and cannot be checked"]


def _misfits(x: Columns, kept: list[Valley], chosen: Settings) -> list[str]:
    """A sentence for each budget whose points lie far further off their parabola than those of the others."""
    if chosen.vertex == "akima":
        return []
    errors = {n: each.params.errors for n, each in enumerate(kept)
              if isinstance(each.params, Lowest) and len(each.params.errors)}  # fmt: skip
    freedom = {n: len(each) - 3 for n, each in errors.items()}
    notes = []
    for n, each in errors.items():
        others = [m for m in errors if m != n]
        free = sum(freedom[m] for m in others)
        off = float(np.sqrt(np.mean(each**2)))
        usual = float(np.sqrt(sum(freedom[m] * np.mean(errors[m] ** 2) for m in others) / max(free, 1))) or _EXACT
        if off <= max(_NOTHING, _MISFIT * usual) or not free or fdtrc(freedom[n], free, (off / usual) ** 2) > _CHANCE:
            continue
        lowest, group = kept[n].params, kept[n].group
        assert isinstance(lowest, Lowest)
        worst = group[lowest.used][np.argmax(np.abs(each))]
        notes.append(
            f"at {kept[n].flops:.3g} FLOPs the parabola misfits: its points lie {off:.2%} off it, those of the other "
            f"budgets {usual:.2%}; furthest off is params {x['params'][worst]:.3g}, "
            f"loss {x['loss'][worst]:.4g}"
        )
    return notes


def _another_sample(x: Columns, settings: Settings) -> Callable[[np.random.Generator], dict[str, np.ndarray]]:
    """The losses of the curves, with errors drawn from all that there were: a budget has too few points to draw.

    Points that no curve was fitted to are taken as they were measured. Some curve must have errors.
    """
    found = valleys(x, settings)
    centre = x["loss"].copy()
    for each in found:
        if isinstance(each.params, Lowest):
            used = each.group[each.params.used]
            centre[used] = each.params.curve(np.log(x["params"][used]))
    errors = [each.params.errors for each in found if not each.refused and isinstance(each.params, Lowest)]
    scatter = np.concatenate(errors)
    scale = np.sqrt(x["weight"].mean() / x["weight"]) if "weight" in x else np.ones_like(centre)

    def draw(rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {**x, "loss": centre * (1 + rng.choice(scatter, len(centre)) * scale)}

    return draw


def _estimate(x: Columns, settings: Settings) -> Estimate:
    best = best_of_budgets(x, settings)
    found = grow(best)
    chosen = settled(x, settings)
    bounded = chosen.window is not None and chosen.window < RANGE[1]
    details = found.details | {"window": chosen.window if bounded else None}
    return replace(found, details=details, noise_known=len(best.scatter) > 0)


CHINCHILLA_2 = law(
    "chinchilla-2",
    "3.2",
    estimate=_estimate,
    options=("budget_tolerance", "window", "vertex"),
    settled=settled,
    resampler=_another_sample,
    measured=lambda x, settings: best_of_budgets(x, settings).columns,
    may_use=("weight",),
    distinct={"params": 3, "flops": 3},
)
