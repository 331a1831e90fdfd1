"""The same run in fewer and fewer bits: what it costs in loss, and what is left of weights and gradients, by block."""

import itertools
from collections.abc import Callable

from blobjax.studies import plots
from blobjax.studies.analyses.reference import SAME, gap, listed, loss_curves
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result

PRECISION = "precision"
REFERENCE = "float32"
# Formats with scales for blocks of 32 (NVFP4: 16) values, from more bits to fewer.
LADDER = ("mxfp8", "mxfp6", "mxfp4")
EIGHT_BITS = ("fp8", "mxfp8")


def analyse(results: list[Result]) -> Finding:
    """Loss gaps, signal-to-noise ratios of the weights, and the share of gradients that flush to zero."""
    cells = {result.label(PRECISION): result for result in results}
    gaps = {name: gap(result, cells[REFERENCE]) for name, result in cells.items() if name != REFERENCE}
    ratios = {name: result.by_block("weight_sqnr_db") for name, result in cells.items()}
    noise = {name: sum(values) / len(values) for name, values in ratios.items() if values}
    words = [f"Loss above float32's: {listed(gaps, '+.3f')} nats per token."]
    claims = []
    for name in EIGHT_BITS:
        if name in gaps:
            claims.append(abs(gaps[name]) < SAME)
            close = "within" if claims[-1] else "further from float32 than"
            words.append(f"{name} is {close} {SAME} nats, which is what another seed may change.")
    steps = [name for name in LADDER if name in gaps]
    if len(steps) > 1:
        claims.append(gaps[steps[-1]] > gaps[steps[0]])
        words.append(f"{steps[-1]} costs {gaps[steps[-1]] - gaps[steps[0]]:+.3f} nats against {steps[0]}.")
        if noise.keys() >= set(steps):
            claims.append(all(noise[a] > noise[b] for a, b in itertools.pairwise(steps)))
            words.append("Signal to noise of the weights: " + listed({n: noise[n] for n in steps}, ".1f") + " dB.")
    return Finding(
        reproduced=verdict(*claims) if claims else None,
        words=tuple(words),
        numbers={
            "final_loss": {name: result.final_loss for name, result in cells.items()},
            "gap": gaps,
            "weight_sqnr_db": noise,
            "largest_flushed_share": {name: result.flow_of("grad_flush_fraction") for name, result in cells.items()},
        },
        pictures=(
            loss_curves(cells.values(), PRECISION, "loss_curves", "Training loss in each precision."),
            _blocks(cells),
        ),
    )


def _blocks(cells: dict[str, Result]) -> Picture:
    figure, (left, right) = plots.charts(2)

    def by_block(of: Callable[[Result], list[float]]) -> dict[str, plots.Line]:
        return {name: (list(range(len(of(r)))), of(r)) for name, r in cells.items() if of(r)}

    plots.draw(left, by_block(lambda r: r.by_block("weight_sqnr_db")), "block", "weights: signal to noise, dB")
    shares = by_block(lambda r: r.by_block("grad_flush_fraction"))
    plots.draw(right, shares, "block", "share of gradients flushed to zero", legend=False)
    caption = "By block at the last probed step. Left: the weights against themselves rounded to the cell's format. "
    return Picture("blocks", caption + "Right: gradients that are not zero and would be in that format.", figure)
