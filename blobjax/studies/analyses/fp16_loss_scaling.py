"""float16 at the edge of its range: gradients that flush to zero, and loss scaling that keeps them (Micikevicius et al.
2018, section 3.2). A multiplied loss brings a small model's gradients to where a large one's are."""

import math

from blobjax.report import plots
from blobjax.studies import noise
from blobjax.studies.analyses.reference import FLUSHED, SAME, gaps, listed, loss_curves
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result, grouped

KIND = "precision"
REFERENCE, RAW = "float32", "float16"


def analyse(results: list[Result]) -> Finding:
    """Final losses against float32's, skipped steps, and the share of gradients that float16 cannot hold."""
    above = gaps(results, KIND, REFERENCE)
    skipped = noise.each(results, KIND, lambda result: sum(result.series("skipped")[1]))
    flushed = noise.each(results, KIND, lambda result: result.flow_of("grad_flush_fraction"))
    losses = noise.each(results, KIND, lambda result: result.final_loss)
    words = [f"Final losses: {listed(losses)} nats per token."]
    claims: list[bool | None] = [] if RAW in above else [None]
    for name, more in above.items():
        if name == RAW:
            claims.append(more.above(SAME))
            what = f"float16 without scaling ends {more.shown()} nats above float32"
            asked = f"float16 without scaling ends more than {SAME} nats above float32 ({more.shown()})"
        else:
            claims.append(more.within(SAME))
            what = f"With loss scaling '{name}' it ends {more.shown('+.3f')} nats from float32"
            asked = f"with loss scaling '{name}' it ends within {SAME} nats of float32 ({more.shown('+.3f')})"
        words.append(noise.claim(claims[-1], f"{what}.", f"{what}: not as expected.", asked, more.doubt))
        if skipped[name].mean:
            words[-1] += f" {skipped[name].mean:.4g} steps overflowed and were skipped."
    if math.isfinite(share := flushed[REFERENCE].mean):
        words.append(
            f"Of the gradients that are not zero in float32, up to {share:.0%} of a block's would be zero in float16."
        )
    if any(math.isfinite(each.mean) for each in flushed.values()):
        words.append(FLUSHED)
    pictures = [loss_curves(results, KIND, "loss_curves", "Training loss.")]
    # Of one seed: a dynamic scale moves by steps, and a mean of several would show values that no run had.
    first = next(iter(noise.by_seed(results).values()))
    scales = {name: cells[0].series("loss_scale") for name, cells in grouped(first, KIND).items()}
    if scales := {name: line for name, line in scales.items() if line[0]}:
        figure, (axes,) = plots.charts()
        plots.draw(axes, scales, "step", "loss scale", log_y=True, marked=False)
        pictures.append(Picture("loss_scales", "The scale of the loss, by step, of the first seed.", figure))
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={"final_loss": losses, "gap": above, "skipped_steps": skipped, "flushed_gradients": flushed},
        pictures=tuple(pictures),
    )
