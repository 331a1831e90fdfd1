"""The same run in fewer and fewer bits: what it costs in loss, and what is left of weights and gradients, by block."""

from blobjax.report import plots
from blobjax.studies import noise
from blobjax.studies.analyses.reference import FLUSHED, SAME, gap, gaps, listed, loss_curves
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.noise import Mean
from blobjax.studies.results import Result, grouped

PRECISION = "precision"
REFERENCE = "float32"
# Formats of the MX family, from more bits to fewer. MXFP6 spends its two bits less on the exponent, which a block's
# scale makes up for: its significand is MXFP8's.
LADDER = ("mxfp8", "mxfp6", "mxfp4")
EIGHT_BITS = ("fp8", "mxfp8")


def analyse(results: list[Result]) -> Finding:
    """Loss gaps, signal-to-noise ratios of the weights, and the share of gradients that flush to zero."""
    above = gaps(results, PRECISION, REFERENCE)
    ratios = noise.each([each for each in results if each.by_block("weight_sqnr_db")], PRECISION, _ratio)
    words = [f"Loss above float32's: {listed(above, '+.3f')} nats per token."]
    claims: list[bool | None] = [] if {*EIGHT_BITS, *LADDER} <= above.keys() else [None]
    for name in EIGHT_BITS:
        if name in above:
            claims.append(above[name].within(SAME))
            close = f"within {SAME} nats of float32, which is less than another seed may change"
            asked = f"{name} is within {SAME} nats of float32 ({above[name].shown('+.3f')})"
            words.append(noise.claim(claims[-1], f"{name} is {close}.", f"{name} is not {close}.", asked,
                                     above[name].doubt))  # fmt: skip
    steps = [name for name in LADDER if name in above]
    if len(steps) > 1:
        last, first = steps[-1], steps[0]
        costs = _costs(results, last, first)
        claims.append(costs.above(0))
        cost = f"{last} costs {costs.shown('+.3f')} nats against {first}"
        words.append(noise.claim(claims[-1], f"{cost}.", f"{cost}: not as expected.",
                                 f"{last} costs more than {first} ({costs.shown('+.3f')})", costs.doubt))  # fmt: skip
        if ratios.keys() >= set(steps):
            fewer = noise.across(results, lambda cells: _apart(cells, last, first))[last]
            claims.append(fewer.below(0))
            noises = f"Signal to noise of the weights: {listed({n: ratios[n] for n in steps}, '.1f')} dB"
            asked = f"the weights have less signal to noise in {last} than in {first} ({fewer.shown('+.1f')} dB)"
            words.append(noise.claim(claims[-1], f"{noises}.", f"{noises}: not as expected.", asked, fewer.doubt))
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            "final_loss": noise.each(results, PRECISION, lambda result: result.final_loss),
            "gap": above,
            "weight_sqnr_db": ratios,
            "largest_flushed_share": {
                name: share
                for name, share in noise.each(
                    results, PRECISION, lambda result: result.flow_of("grad_flush_fraction")
                ).items()
                if name in ratios
            },
        },
        pictures=(
            loss_curves(results, PRECISION, "loss_curves", "Training loss in each precision."),
            _blocks(grouped(results, PRECISION)),
        ),
    )


def _ratio(result: Result) -> float:
    """Signal to noise of the weights, the mean over the blocks; dB."""
    values = result.by_block("weight_sqnr_db")
    return sum(values) / len(values)


def _costs(results: list[Result], last: str, first: str) -> Mean:
    """What one format costs more than another, compared within each seed; nats."""

    def measure(cells: list[Result]) -> dict[str, float]:
        by_label = {result.label(PRECISION): result for result in cells}
        return {last: gap(by_label[last], by_label[first])}

    return noise.across(results, measure)[last]


def _apart(cells: list[Result], last: str, first: str) -> dict[str, float]:
    by_label = {result.label(PRECISION): result for result in cells}
    return {last: _ratio(by_label[last]) - _ratio(by_label[first])}


def _blocks(groups: dict[str, list[Result]]) -> Picture:
    figure, (left, right) = plots.charts(2)

    def by_block(probe: str) -> dict[str, plots.Line]:
        # float32 has no such numbers, but its place among the colours of the curves.
        lines = {name: [result.by_block(probe) for result in group] for name, group in groups.items()}
        return {name: noise.mean_line([(range(len(ys)), ys) for ys in each]) for name, each in lines.items()}

    blocks = range(max(len(result.by_block("grad_rms")) for group in groups.values() for result in group))
    ratios, shares = by_block("weight_sqnr_db"), by_block("grad_flush_fraction")
    plots.draw(left, ratios, "block", "weights: signal to noise, dB", ticks=blocks, legend=False)
    plots.draw(right, shares, "block", "share of gradients flushed to zero", ticks=blocks, legend=False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=11)
    caption = (
        "By block at the last probed step. Left: the weights against themselves rounded to the cell's format. Right: "
        f"gradients that are zero in that format. {FLUSHED}"
    )
    if none := [name for name, (xs, _) in ratios.items() if not xs]:
        caption += f" {', '.join(none)} has neither, and no line."
    return Picture("blocks", caption, figure)
