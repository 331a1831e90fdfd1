"""float16 at the edge of its range: gradients that flush to zero, and loss scaling that keeps them (Micikevicius et al.
2018, section 3.2). A multiplied loss brings a small model's gradients to where a large one's are."""

import math

from blobjax.report import plots
from blobjax.studies.analyses.reference import SAME, gap, listed, loss_curves, same
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result

KIND = "precision"
REFERENCE, RAW = "float32", "float16"


def analyse(results: list[Result]) -> Finding:
    """Final losses against float32's, skipped steps, and the share of gradients that float16 cannot hold."""
    cells = {result.label(KIND): result for result in results}
    reference = cells[REFERENCE]
    gaps = {name: gap(result, reference) for name, result in cells.items() if name != REFERENCE}
    skipped = {name: sum(result.series("skipped")[1]) for name, result in cells.items()}
    flushed = reference.flow_of("grad_flush_fraction")
    losses = {name: result.final_loss for name, result in cells.items()}
    words = [f"Final losses: {listed(losses)} nats per token."]
    claims: list[bool | None] = [] if RAW in cells else [None]
    for name, result in cells.items():
        if name == RAW:
            claims.append(gap(result, reference) > SAME)
            what = f"float16 without scaling ends {gaps[name]:.3f} nats above float32"
        elif name == REFERENCE:
            continue
        else:
            claims.append(same(result, reference))
            what = f"With loss scaling '{name}' it ends {gaps[name]:+.3f} nats from float32"
        words.append(f"{what}." if claims[-1] else f"{what}: not as expected.")
        if skipped[name]:
            words[-1] += f" {skipped[name]:.0f} steps overflowed and were skipped."
    if math.isfinite(flushed):
        words.append(
            f"Of the gradients that are not zero in float32, up to {flushed:.0%} of a block's would be zero in float16."
        )
    pictures = [loss_curves(cells.values(), KIND, "loss_curves", "Training loss.")]
    scales = {name: result.series("loss_scale") for name, result in cells.items() if result.series("loss_scale")[0]}
    if scales:
        figure, (axes,) = plots.charts()
        plots.draw(axes, scales, "step", "loss scale", log_y=True, marked=False)
        pictures.append(Picture("loss_scales", "The scale of the loss, by step.", figure))
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            "final_loss": losses,
            "gap": gaps,
            "skipped_steps": skipped,
            "flushed_gradients": {name: result.flow_of("grad_flush_fraction") for name, result in cells.items()},
        },
        pictures=tuple(pictures),
    )
