"""What unique tokens are worth, and what repeating them costs (Muennighoff et al. 2023).

Runs of one size and as many tokens in all are compared by the loss of held-out text: the training loss of repeated text
is low because it is remembered. What repetition did harm to, a loss that rose with more epochs, is told and left out of
the law, which knows repetitions that bring nothing and none that do harm.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from blobjax.laws.formulas.law import bins
from blobjax.report import plots
from blobjax.studies import noise
from blobjax.studies.analyses import fits, law_plots
from blobjax.studies.analyses.fits import Point, fit_points, held_against, points, value
from blobjax.studies.analyses.reference import SAME
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.noise import Mean
from blobjax.studies.results import Result

SIZE, UNIQUE, EPOCHS = "size", "unique", "epochs"
LAW = "data-constrained"
# Section 6: up to so many epochs there is hardly a difference; R_D was 15.4.
HARMLESS, PAPERS_R_D = 4, 15.4
# Beyond this the term of the law is the same for any value.
ENDLESS = 1e6


def analyse(results: list[Result]) -> Finding:
    """The cost of repetition at equal tokens, the law, and what repeated data was worth in compute of fresh data."""
    sizes: dict[str, list[Point]] = {}
    for point in points(results):
        sizes.setdefault(point.result.label(SIZE), []).append(point)
    if not sizes:
        return Finding(None, ("No cell finished.",), {}, ())
    costs = {size: costs_at_the_longest(group) for size, group in sizes.items()}
    few = noise.across(results, lambda cells: _most(cells, _little)).get("most", noise.mean_of([]))
    grows = noise.across(results, lambda cells: _most(cells, _growth)).get("most", noise.mean_of([]))
    harmed = [point for group in sizes.values() for point in overfitted(group)]
    law, why_not = fit_points(LAW, (point for group in sizes.values() for point in group if point not in harmed))
    fresh = {size: fit_points("power-flops", (p for p in group if epochs(p) < 1.5))[0] for size, group in sizes.items()}
    claims = [few.below(SAME), grows.above(0)]
    words = _of_costs(costs)
    if few.seeds:
        cost = f"Up to {HARMLESS} epochs cost {few.shown()} nats at most"
        asked = f"up to {HARMLESS} epochs cost less than {SAME} nats ({few.shown()})"
        words.append(noise.claim(claims[0], f"{cost}, less than {SAME}.", f"{cost}, more than {SAME}.", asked,
                                 few.doubt))  # fmt: skip
    if grows.seeds and not claims[1]:
        words.append(
            noise.claim(
                claims[1],
                "",
                "The most epochs do not cost the most: not as expected.",
                f"the most epochs cost the most ({grows.shown('+.3f')} nats above the others)",
                grows.doubt,
            )
        )
    if harmed:
        names = ", ".join(f"{p.result.cell.name} ({p.loss:.3f})" for p in harmed)
        words.append(f"With more epochs of the same data the loss rose, which is overfitting, no saturation: {names}.")
    if law is None:
        claims.append(None)
        words.append(f"The data-constrained law cannot be fitted: {why_not}.")
    else:
        R_D, R_N = law["parameters"]["R_D"], law["parameters"]["R_N"]
        claims.append(None if R_D["low"] is None else R_D["low"] <= PAPERS_R_D <= R_D["high"])
        if claims[-1] and R_D["high"] > ENDLESS:
            claims[-1] = None  # an interval without an end has any value in it
        left_out = f", without what overfits ({len(harmed)} of the runs)," if harmed else ""
        inside = f"The paper's {PAPERS_R_D} is {'within' if claims[-1] else 'outside of'} that interval."
        if claims[-1] is None:
            inside = noise.cannot_tell(f"whether it is the paper's {PAPERS_R_D}", fits.doubt(R_D))
        words.append(
            f"The data-constrained law{left_out} has R_D = {value(R_D)} and explains "
            f"{law['objective']['r_squared']:.1%} of the variance of the loss. {inside}"
        )
        if R_N["value"] > ENDLESS:
            words.append(
                "R_N has run away to infinity: what parameters beyond those that the unique data can use are worth "
                "does not show in these points."
            )
        else:
            words.append(f"R_N = {value(R_N)}.")
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            f"cost_at_{longest(group):,.0f}_tokens, size {size}": {f"{e:.3g} epochs": c for e, c in costs[size].items()}
            for size, group in sizes.items()
        },
        pictures=(_by_epochs(sizes, law), _by_tokens(sizes, fresh)),
        laws=({LAW: law} if law else {}) | {f"fresh-{size}": each for size, each in fresh.items() if each},
        worth={
            f"{many:.3g} epochs of {unique:,.0f} tokens, size {size}": held_against(fresh[size], flops, loss)
            for size, group in sizes.items()
            for many, unique, flops, loss in _over_seeds(at_the_longest(group))
            if many > 1.5
        },
    )


def _over_seeds(group: list[Point]) -> list[tuple[float, float, float, float]]:
    """Epochs, unique tokens, FLOPs and the mean loss over the seeds, the least repetition first."""
    found: dict[str, list[Point]] = {}
    for point in group:
        found.setdefault(noise.name(point.result), []).append(point)
    firsts = [(those[0], sum(point.loss for point in those) / len(those)) for those in found.values()]
    return [(epochs(first), float(first.row["unique_tokens"]), first.flops, loss) for first, loss in firsts]


def epochs(point: Point) -> float:
    """How often what was seen was seen."""
    return point.tokens / float(point.row["unique_tokens"])


def longest(group: Iterable[Point]) -> float:
    """The most tokens that any run of a size had."""
    return max(point.tokens for point in group)


def at_the_longest(group: list[Point]) -> list[Point]:
    """The runs of most tokens, the least repetition first."""
    last = bins(np.array([point.tokens for point in group]), 0.25)[-1]
    return sorted((group[i] for i in last), key=epochs)


def costs_at_the_longest(group: list[Point]) -> dict[float, Mean]:
    """Epochs to the loss above that of the fewest epochs and the same seed, at most tokens; nats per token."""
    found = at_the_longest(group)
    # By cell: what an epoch is may differ by a window from seed to seed.
    many = {noise.name(point.result): epochs(point) for point in reversed(found)}
    costs = noise.across([point.result for point in found], lambda cells: dict(_costs(points(cells)).values()))
    return {many[name]: cost for name, cost in costs.items()}


def _costs(group: list[Point]) -> dict[float, tuple[str, float]]:
    """Epochs to the cell and its cost, of one seed, the least repetition first."""
    found = at_the_longest(group)
    return {epochs(point): (noise.name(point.result), point.loss - found[0].loss) for point in found}


def _most(cells: list[Result], of: Callable[[dict[float, float]], float]) -> dict[str, float]:
    """Of the sizes, of one seed, the one that says most against what is claimed; none where there is none."""
    sizes: dict[str, list[Point]] = {}
    for point in points(cells):
        sizes.setdefault(point.result.label(SIZE), []).append(point)
    costs = [{many: cost for many, (_, cost) in _costs(group).items()} for group in sizes.values()]
    found = [value for each in costs if not math.isnan(value := of(each))]
    return {"most": (min if of is _growth else max)(found)} if found else {}


def _little(costs: dict[float, float]) -> float:
    """The largest cost of a few epochs."""
    return max((cost for many, cost in costs.items() if 1.5 < many <= HARMLESS * 1.1), default=math.nan)


def _growth(costs: dict[float, float]) -> float:
    """By how much the most epochs cost more than any fewer, and than nothing."""
    *others, last = costs.values()
    return last - max(others) if others else math.nan


def overfitted(group: list[Point]) -> list[Point]:
    """Runs of one size that ended above one of the same seed that repeated the same unique data less often."""
    found = []
    alike: dict[tuple[str, int], list[Point]] = {}
    for point in sorted(group, key=epochs):
        before = alike.setdefault((point.result.label(UNIQUE), point.result.cell.config.seed), [])
        if any(point.loss > other.loss for other in before):
            found.append(point)
        before.append(point)
    return found


def _of_costs(costs: dict[str, dict[float, Mean]]) -> list[str]:
    return [
        f"Size {size}, as many tokens in all: "
        + ", ".join(f"{many:.3g} epochs {cost.shown('+.3f')}" for many, cost in list(each.items())[1:])
        + " nats against data that is seen once."
        for size, each in costs.items()
        if len(each) > 1
    ]


def _by_epochs(sizes: dict[str, list[Point]], law: dict[str, Any] | None) -> Picture:
    figure, (axes,) = plots.charts()
    ends = {size: at_the_longest(group) for size, group in sizes.items()}
    lines = {f"size {size}": ([e for e, *_ in found], [loss for *_, loss in found])
             for size, found in ((size, _over_seeds(group)) for size, group in ends.items())}  # fmt: skip
    ticks = sorted({float(f"{x:.2g}") for xs, _ in lines.values() for x in xs})
    tokens = max(longest(group) for group in sizes.values())
    y = "held-out loss, nats per token"
    title = f"{tokens:,.0f} tokens in all"
    plots.draw(axes, lines, "epochs of the unique data", y, log_x=True, log_y=True, ticks=ticks, title=title)
    for n, line in enumerate(lines.values()):
        law_plots.error_bars(axes, law, line, n)
    caption = "The same tokens in all, of ever less unique data, repeated."
    if law:
        caption += " Error bars: the root mean square distance of all points from the data-constrained law."
    return Picture("loss_by_epochs", caption, figure)


def _by_tokens(sizes: dict[str, list[Point]], fresh: dict[str, dict[str, Any] | None]) -> Picture:
    # The size in the middle stands for all.
    size, group = list(sizes.items())[len(sizes) // 2]
    lines: dict[str, list[Point]] = {"seen once": []}
    for point in sorted(group, key=lambda point: point.tokens):
        if epochs(point) < 1.5:
            lines["seen once"].append(point)
        if any(other.result.label(UNIQUE) == point.result.label(UNIQUE) and epochs(other) > 1.5 for other in group):
            lines.setdefault(f"{point.row['unique_tokens']:,.0f} unique", []).append(point)
    figure, (axes,) = plots.charts()
    drawn = {name: noise.mean_points([p.tokens / 1e3 for p in those], [p.loss for p in those])
             for name, those in lines.items() if those}  # fmt: skip
    ticks = sorted({round(x) for xs, _ in drawn.values() for x in xs})
    x, y = "thousand tokens trained on", "held-out loss, nats per token"
    plots.draw(axes, drawn, x, y, log_x=True, log_y=True, ticks=ticks, title=f"size {size}")
    caption = "Tokens that are seen once."
    if len(drawn) > 1:
        caption = "What repeating some unique data brings, beside as many tokens that are seen once."
    if (law := fresh[size]) and (once := lines["seen once"]):
        tokens = np.geomspace(once[0].tokens, once[-1].tokens, 60)
        flops = tokens * once[0].flops / once[0].tokens
        law_plots.curve(axes, law, {"flops": flops}, (tokens / 1e3).tolist(), 0)
        law_plots.error_bars(axes, law, drawn["seen once"], 0)
        caption += (
            " Of those seen once also the power law (thin) with its interval, and as error bars their root mean square "
            "distance from it."
        )
    return Picture("loss_by_tokens", caption, figure)
