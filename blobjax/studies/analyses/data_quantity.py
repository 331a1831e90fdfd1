"""What unique tokens are worth, and what repeating them costs (Muennighoff et al. 2023).

Runs of one size and as many tokens in all are compared by the loss of held-out text: the training loss of repeated text
is low because it is remembered. What repetition did harm to, a loss that rose with more epochs, is told and left out of
the law, which knows repetitions that bring nothing and none that do harm.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from blobjax.report import plots
from blobjax.scaling.laws.law import budgets
from blobjax.studies.analyses import law_plots
from blobjax.studies.analyses.fits import Point, fit_points, held_against, points, value
from blobjax.studies.analyses.reference import SAME
from blobjax.studies.finding import Finding, Picture, verdict
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
    harmed = [point for group in sizes.values() for point in overfitted(group)]
    law, why_not = fit_points(LAW, (point for group in sizes.values() for point in group if point not in harmed))
    fresh = {size: fit_points("power-flops", (p for p in group if epochs(p) < 1.5))[0] for size, group in sizes.items()}
    few = [cost for each in costs.values() for many, cost in each.items() if 1.5 < many <= HARMLESS * 1.1]
    repeated = [each for each in costs.values() if len(each) > 1]
    claims = [max(few) < SAME if few else None, all(map(_grows, repeated)) if repeated else None]
    words = _of_costs(costs)
    if few:
        words.append(f"Up to {HARMLESS} epochs cost {'less' if claims[0] else 'more'} than {SAME} nats.")
    if harmed:
        names = ", ".join(f"{p.result.cell.name} ({p.loss:.3f})" for p in harmed)
        words.append(f"With more epochs of the same data the loss rose, which is overfitting, no saturation: {names}.")
    if law is None:
        claims.append(None)
        words.append(f"The data-constrained law cannot be fitted: {why_not}.")
    else:
        R_D, R_N = law["parameters"]["R_D"], law["parameters"]["R_N"]
        claims.append(R_D["low"] is not None and R_D["low"] <= PAPERS_R_D <= R_D["high"])
        left_out = f", without what overfits ({len(harmed)} of the runs)," if harmed else ""
        inside = f"The paper's {PAPERS_R_D} is {'within' if claims[-1] else 'outside of'} that interval."
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
            f"{epochs(point):.3g} epochs of {point.row['unique_tokens']:,.0f} tokens, size {size}": held_against(
                fresh[size], point.flops, point.loss
            )
            for size, group in sizes.items()
            for point in at_the_longest(group)
            if epochs(point) > 1.5
        },
    )


def epochs(point: Point) -> float:
    """How often what was seen was seen."""
    return point.tokens / float(point.row["unique_tokens"])


def longest(group: Iterable[Point]) -> float:
    """The most tokens that any run of a size had."""
    return max(point.tokens for point in group)


def at_the_longest(group: list[Point]) -> list[Point]:
    """The runs of most tokens, the least repetition first."""
    last = budgets(np.array([point.tokens for point in group]))[-1]
    return sorted((group[i] for i in last), key=epochs)


def costs_at_the_longest(group: list[Point]) -> dict[float, float]:
    """Epochs to the loss above that of the fewest epochs, at most tokens; nats per token."""
    found = at_the_longest(group)
    return {epochs(point): point.loss - found[0].loss for point in found}


def overfitted(group: list[Point]) -> list[Point]:
    """Runs of one size that ended above one that repeated the same unique data less often."""
    found = []
    by_unique: dict[str, list[Point]] = {}
    for point in sorted(group, key=epochs):
        before = by_unique.setdefault(point.result.label(UNIQUE), [])
        if any(point.loss > other.loss for other in before):
            found.append(point)
        before.append(point)
    return found


def _grows(costs: dict[float, float]) -> bool:
    """Whether the most epochs cost the most, and more than nothing."""
    *_, last = costs.values()
    return last == max(costs.values()) > 0


def _of_costs(costs: dict[str, dict[float, float]]) -> list[str]:
    return [
        f"Size {size}, as many tokens in all: "
        + ", ".join(f"{many:.3g} epochs {cost:+.3f}" for many, cost in list(each.items())[1:])
        + " nats against data that is seen once."
        for size, each in costs.items()
        if len(each) > 1
    ]


def _by_epochs(sizes: dict[str, list[Point]], law: dict[str, Any] | None) -> Picture:
    figure, (axes,) = plots.charts()
    ends = {size: at_the_longest(group) for size, group in sizes.items()}
    lines = {f"size {size}": ([epochs(p) for p in found], [p.loss for p in found]) for size, found in ends.items()}
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
    drawn = {name: ([p.tokens / 1e3 for p in those], [p.loss for p in those]) for name, those in lines.items() if those}
    ticks = sorted({round(x) for xs, _ in drawn.values() for x in xs})
    x, y = "thousand tokens trained on", "held-out loss, nats per token"
    plots.draw(axes, drawn, x, y, log_x=True, log_y=True, ticks=ticks, title=f"size {size}")
    caption = "What repeating some unique data brings, beside as many tokens that are seen once."
    if (law := fresh[size]) and (once := lines["seen once"]):
        tokens = np.geomspace(once[0].tokens, once[-1].tokens, 60)
        flops = tokens * once[0].flops / once[0].tokens
        law_plots.curve(axes, law, {"flops": flops}, (tokens / 1e3).tolist(), 0)
        law_plots.error_bars(axes, law, drawn["seen once"], 0)
        caption += (
            " Of the latter also the power law (thin) with its interval, and as error bars their root mean square "
            "distance from it."
        )
    return Picture("loss_by_tokens", caption, figure)
