"""Does a learning rate found on a narrow model hold on a wide one? (Yang et al. 2022, Tensor Programs V.)

The coordinate check: after a few steps the size of activations must not depend on the width. And the sweep: at each
width the loss by learning rate, whose minimum must stay where it is.
"""

import math
from collections.abc import Callable

from blobjax.report import plots
from blobjax.studies import noise
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.noise import Mean
from blobjax.studies.results import Result, grouped

KIND, WIDTH, RATE = "parametrisation", "width", "learning_rate"
STANDARD, MUP = "standard", "mup"

# The coordinate check is made at the learning rate nearest to this.
CHECKED = 0.01
# Of it: µP under it, standard (largest over smallest) over it.
MUP_SPREAD, STANDARD_RATIO = 0.15, 2.0
# Nats by which the narrow model's learning rate may be worse on the wide one and count as transferred.
TRANSFERRED = 0.03


def coordinate(result: Result) -> float:
    """RMS of the residual stream after the last block, at the first probed step."""
    last = result.cell.config.model.n_layers - 1
    _, values = result.series(f"flow/block_{last:02d}/residual_rms")
    return values[0] if values else math.nan


def spread(values: list[float]) -> float:
    """(largest - smallest) / mean."""
    return (max(values) - min(values)) / (sum(values) / len(values))


def analyse(results: list[Result]) -> Finding:
    """Spread of the coordinates over widths, and what the narrow model's best learning rate costs on the widest."""
    kinds = grouped(sorted(results, key=lambda r: (_width(r), _rate(r))), KIND)
    checked = min((_rate(result) for result in results), key=lambda rate: abs(math.log(rate / CHECKED)))
    coordinates = {
        kind: noise.each([r for r in group if _rate(r) == checked], WIDTH, coordinate) for kind, group in kinds.items()
    }
    spreads = _within_seeds(results, lambda cells: spread(_coordinates_of(cells, checked)))
    ratios = _within_seeds(results, lambda cells: _ratio(_coordinates_of(cells, checked)))
    penalties = _within_seeds(results, _penalty)
    best = {kind: {width: _best(cells) for width, cells in grouped(group, WIDTH).items()}
            for kind, group in kinds.items()}  # fmt: skip
    words = []
    claims: list[bool | None] = [] if {STANDARD, MUP} <= kinds.keys() else [None]
    few = {kind: "there is one width" for kind in kinds if len(coordinates[kind]) < 2}

    def claimed(holds: bool | None, what: str, asked: str, doubt: str, kind: str) -> str:
        claims.append(None if kind in few else holds)
        return noise.claim(claims[-1], f"{what}.", f"{what}: not as expected.", asked, few.get(kind, doubt))

    if MUP in kinds:
        found = spreads[MUP]
        what = (
            f"Coordinate check at learning rate {checked:g}: with µP the RMS of the residual stream differs by "
            f"{found.shown('.0%')} of its mean over the widths"
        )
        asked = f"the residual stream keeps its size with µP: its RMS differs by {found.shown('.0%')} over the widths"
        words.append(claimed(found.below(MUP_SPREAD), what, asked, found.doubt, MUP))
    if STANDARD in kinds:
        found = ratios[STANDARD]
        what = f"With the standard parametrisation the largest is {found.shown('.2f')} times the smallest"
        asked = f"it grows with the standard parametrisation: the largest is {found.shown('.2f')} times the smallest"
        words.append(claimed(found.above(STANDARD_RATIO), what, asked, found.doubt, STANDARD))
    for kind, widths in best.items():
        where = ", ".join(f"{rate:g} at width {width}" for width, rate in widths.items())
        cost = penalties[kind]
        words.append(f"{kind}: the best learning rate is {where}; the narrowest model's costs {cost.shown()} nats on "
                     "the widest.")  # fmt: skip
        if kind == MUP:
            # At either end: a lower loss beyond the grid on the widest model would make the cost larger.
            of_widths = [*grouped(kinds[kind], WIDTH).values()]
            ends = {"narrowest": of_widths[0], "widest": of_widths[-1]}
            doubts = [noise.edge_in_a_seed(cells, _rate, f"learning rate of the {which} model")
                      for which, cells in ends.items()]  # fmt: skip
            doubt = next(filter(None, doubts), "")
            transfers = f"µP's learning rate transfers to within {TRANSFERRED} nats"
            no = f"µP's learning rate costs more than {TRANSFERRED} nats: not as expected"
            claims.append(None if doubt or kind in few else cost.below(TRANSFERRED))
            doubt = doubt or few.get(kind, cost.doubt)
            words.append(noise.claim(claims[-1], f"{transfers}.", f"{no}.", transfers, doubt))
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            "coordinate_spread": spreads,
            "coordinate_largest_over_smallest": ratios,
            "transfer_penalty": penalties,
            **{f"coordinate_{kind}": values for kind, values in coordinates.items()},
            **{f"best_learning_rate_{kind}": widths for kind, widths in best.items()},
        },
        pictures=(_sweeps(kinds), _coordinates(coordinates)),
    )


def _within_seeds(results: list[Result], measure: Callable[[list[Result]], float]) -> dict[str, Mean]:
    """Of each parametrisation, over the seeds."""
    return noise.across(results, lambda cells: {kind: measure(group) for kind, group in grouped(cells, KIND).items()})


def _coordinates_of(cells: list[Result], rate: float) -> list[float]:
    return [coordinate(result) for result in cells if _rate(result) == rate]


def _ratio(values: list[float]) -> float:
    return max(values) / min(values)


def _best(cells: list[Result]) -> float:
    """The learning rate of the lowest loss, the mean over the seeds."""
    losses = noise.across(cells, lambda those: {_rate(result): result.capped_loss for result in those})
    return min(losses, key=lambda rate: losses[rate].mean)


def _penalty(group: list[Result]) -> float:
    """Loss of the widest model at the narrowest model's best learning rate, above that at its own; of one seed."""
    widths = list(grouped(sorted(group, key=_width), WIDTH).values())
    rate = _rate(min(widths[0], key=lambda result: result.capped_loss))
    widest = widths[-1]
    there = next((result.capped_loss for result in widest if _rate(result) == rate), math.inf)
    return there - min(result.capped_loss for result in widest)


def _width(result: Result) -> int:
    return result.cell.config.model.d_model


def _rate(result: Result) -> float:
    return result.cell.config.optimizer.learning_rate


def _sweeps(kinds: dict[str, list[Result]]) -> Picture:
    figure, charts = plots.charts(len(kinds), share_y=True)
    rates = sorted({_rate(result) for group in kinds.values() for result in group})
    means: list[Mean] = []
    for n, (kind, group) in enumerate(kinds.items()):
        found = {width: noise.across(cells, lambda those: {_rate(r): r.capped_loss for r in those})
                 for width, cells in grouped(group, WIDTH).items()}  # fmt: skip
        lines = {f"width {width}": (list(each), [m.mean for m in each.values()]) for width, each in found.items()}
        y = "final loss, nats per token" if n == 0 else ""
        plots.draw(charts[n], lines, "learning rate", y, log_x=True, ticks=rates, title=kind, legend=n == 0)
        for i, each in enumerate(found.values()):
            noise.error_bars(charts[n], list(each), list(each.values()), i)
        means += [mean for each in found.values() for mean in each.values()]
    caption = (
        "Final loss by learning rate; the learning rate of a width transfers where the minima of the widths are at one "
        f"learning rate.{noise.caption(means)}"
    )
    return Picture("sweeps", caption, figure)


def _coordinates(coordinates: dict[str, dict[str, Mean]]) -> Picture:
    figure, (axes,) = plots.charts()
    lines = {kind: ([float(width) for width in values], [mean.mean for mean in values.values()])
             for kind, values in coordinates.items()}  # fmt: skip
    ticks = sorted({x for xs, _ in lines.values() for x in xs})
    y = "RMS of the residual stream"
    plots.draw(axes, lines, "width (d_model)", y, log_x=True, log_y=True, ticks=ticks)
    for n, (kind, values) in enumerate(coordinates.items()):
        noise.error_bars(axes, lines[kind][0], list(values.values()), n)
    caption = "The coordinate check: after the last block, at the first probed step. Flat is what transfers."
    caption += noise.caption([mean for values in coordinates.values() for mean in values.values()])
    return Picture("coordinates", caption, figure)
