"""Does a learning rate found on a narrow model hold on a wide one? (Yang et al. 2022, Tensor Programs V.)

The coordinate check: after a few steps the size of activations must not depend on the width. And the sweep: at each
width the loss by learning rate, whose minimum must stay where it is.
"""

import math

from blobjax.report import plots
from blobjax.studies.finding import Finding, Picture, verdict
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
        kind: {r.label(WIDTH): coordinate(r) for r in group if _rate(r) == checked} for kind, group in kinds.items()
    }
    spreads = {kind: spread(list(values.values())) for kind, values in coordinates.items()}
    ratios = {kind: max(v.values()) / min(v.values()) for kind, v in coordinates.items()}
    best = {
        kind: {width: min(cells, key=lambda r: r.capped_loss) for width, cells in grouped(group, WIDTH).items()}
        for kind, group in kinds.items()
    }
    penalties = {kind: _penalty(group) for kind, group in kinds.items()}
    words = []
    claims: list[bool | None] = [] if {STANDARD, MUP} <= kinds.keys() else [None]
    if MUP in kinds:
        claims += [spreads[MUP] < MUP_SPREAD, penalties[MUP] < TRANSFERRED]
        words.append(
            f"Coordinate check at learning rate {checked:g}: with µP the RMS of the residual stream differs by "
            f"{spreads[MUP]:.0%} of its mean over the widths" + (_fails(claims[-2]))
        )
    if STANDARD in kinds:
        claims.append(ratios[STANDARD] > STANDARD_RATIO)
        words.append(
            f"With the standard parametrisation the largest is {ratios[STANDARD]:.2f} times the smallest"
            + _fails(claims[-1])
        )
    for kind, widths in best.items():
        where = ", ".join(f"{_rate(result):g} at width {width}" for width, result in widths.items())
        words.append(
            f"{kind}: the best learning rate is {where}; the narrowest model's costs {penalties[kind]:.3f} nats on the "
            "widest."
        )
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            "coordinate_spread": spreads,
            "coordinate_largest_over_smallest": ratios,
            "transfer_penalty": penalties,
            **{f"coordinate_{kind}": values for kind, values in coordinates.items()},
            **{
                f"best_learning_rate_{kind}": {width: _rate(result) for width, result in widths.items()}
                for kind, widths in best.items()
            },
        },
        pictures=(_sweeps(kinds), _coordinates(coordinates)),
    )


def _fails(holds: bool | None) -> str:
    return "." if holds else ": not as expected."


def _penalty(group: list[Result]) -> float:
    """Loss of the widest model at the narrowest model's best learning rate, above that at its own."""
    widths = list(grouped(group, WIDTH).values())
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
    for n, (kind, group) in enumerate(kinds.items()):
        lines = {
            f"width {width}": ([_rate(r) for r in cells], [r.capped_loss for r in cells])
            for width, cells in grouped(group, WIDTH).items()
        }
        y = "final loss, nats per token" if n == 0 else ""
        plots.draw(charts[n], lines, "learning rate", y, log_x=True, ticks=rates, title=kind, legend=n == 0)
    caption = (
        "Final loss by learning rate; the learning rate of a width transfers where the minima stand one below the "
    )
    return Picture("sweeps", caption + "other.", figure)


def _coordinates(coordinates: dict[str, dict[str, float]]) -> Picture:
    figure, (axes,) = plots.charts()
    lines = {kind: ([float(width) for width in values], list(values.values())) for kind, values in coordinates.items()}
    ticks = sorted({x for xs, _ in lines.values() for x in xs})
    y = "RMS of the residual stream"
    plots.draw(axes, lines, "width (d_model)", y, log_x=True, log_y=True, ticks=ticks)
    caption = "The coordinate check: after the last block, at the first probed step. "
    return Picture("coordinates", caption + "Flat is what transfers.", figure)
