"""The same run in fewer and fewer bits: what it costs in loss, and what is left of weights and gradients, by block."""

import math
from collections.abc import Callable

from blobjax.report import plots
from blobjax.studies.analyses.reference import SAME, gap, listed, loss_curves
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result

PRECISION = "precision"
REFERENCE = "float32"
# Formats of the MX family, from more bits to fewer. MXFP6 spends its two bits less on the exponent, which a block's
# scale makes up for: its significand is MXFP8's.
LADDER = ("mxfp8", "mxfp6", "mxfp4")
EIGHT_BITS = ("fp8", "mxfp8")


def analyse(results: list[Result]) -> Finding:
    """Loss gaps, signal-to-noise ratios of the weights, and the share of gradients that flush to zero."""
    cells = {result.label(PRECISION): result for result in results}
    gaps = {name: gap(result, cells[REFERENCE]) for name, result in cells.items() if name != REFERENCE}
    ratios = {name: result.by_block("weight_sqnr_db") for name, result in cells.items()}
    noise = {name: sum(values) / len(values) for name, values in ratios.items() if values}
    words = [f"Loss above float32's: {listed(gaps, '+.3f')} nats per token."]
    claims: list[bool | None] = [] if {*EIGHT_BITS, *LADDER} <= gaps.keys() else [None]
    for name in EIGHT_BITS:
        if name in gaps:
            claims.append(abs(gaps[name]) < SAME)
            close = "within" if claims[-1] else "not within"
            words.append(f"{name} is {close} {SAME} nats of float32, which is less than another seed may change.")
    steps = [name for name in LADDER if math.isfinite(gaps.get(name, math.inf))]
    if len(steps) > 1:
        claims.append(gaps[steps[-1]] > gaps[steps[0]])
        words.append(f"{steps[-1]} costs {gaps[steps[-1]] - gaps[steps[0]]:+.3f} nats against {steps[0]}.")
        if noise.keys() >= set(steps):
            claims.append(noise[steps[-1]] < noise[steps[0]])
            words.append("Signal to noise of the weights: " + listed({n: noise[n] for n in steps}, ".1f") + " dB.")
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            "final_loss": {name: result.final_loss for name, result in cells.items()},
            "gap": gaps,
            "weight_sqnr_db": noise,
            "largest_flushed_share": {
                name: r.flow_of("grad_flush_fraction") for name, r in cells.items() if name in noise
            },
        },
        pictures=(
            loss_curves(cells.values(), PRECISION, "loss_curves", "Training loss in each precision."),
            _blocks(cells),
        ),
    )


def _blocks(cells: dict[str, Result]) -> Picture:
    figure, (left, right) = plots.charts(2)

    def by_block(of: Callable[[Result], list[float]]) -> dict[str, plots.Line]:
        # float32 has no such numbers, but its place among the colours of the curves.
        return {name: (list(range(len(of(r)))), of(r)) for name, r in cells.items()}

    blocks = range(max(len(result.by_block("grad_rms")) for result in cells.values()))
    ratios = by_block(lambda r: r.by_block("weight_sqnr_db"))
    plots.draw(left, ratios, "block", "weights: signal to noise, dB", ticks=blocks, legend=False)
    shares = by_block(lambda r: r.by_block("grad_flush_fraction"))
    plots.draw(right, shares, "block", "share of gradients flushed to zero", ticks=blocks, legend=False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=11)
    caption = "By block at the last probed step. Left: the weights against themselves rounded to the cell's format. "
    return Picture("blocks", caption + "Right: gradients that are not zero and would be in that format.", figure)
