"""Any grid: the final loss of every cell, against the last axis. No claim, so no verdict."""

import math

from blobjax.report import plots
from blobjax.studies import noise
from blobjax.studies.finding import Finding, Picture
from blobjax.studies.results import Result


def analyse(results: list[Result]) -> Finding:
    """The best cell, and a line for each combination of the axes before the last; over the seeds, if one is an axis."""
    axes_of_cell = [axis for axis in results[0].cell.labels if axis != noise.AXIS] or [noise.AXIS]
    *before, last = axes_of_cell
    losses = noise.across(results, lambda cells: {
        (", ".join(result.label(axis) for axis in before), result.label(last)): result.final_loss for result in cells
    })  # fmt: skip
    named = {(", ".join(r.label(axis) for axis in before), r.label(last)): noise.name(r) for r in results}
    labels = list(dict.fromkeys(label for _, label in losses))
    figure, (axes,) = plots.charts()
    lines = {}
    for n, group in enumerate(dict.fromkeys(group for group, _ in losses)):
        found = {labels.index(label): mean for (name, label), mean in losses.items() if name == group}
        lines[group] = (list(found), [mean.mean for mean in found.values()])
        noise.error_bars(axes, list(found), list(found.values()), n)
    plots.draw(axes, lines, last.replace("_", " "), "final loss, nats per token")
    axes.set_xticks(range(len(labels)), [plots.plain(label) for label in labels])
    words = []
    finite = {key: mean for key, mean in losses.items() if math.isfinite(mean.mean)}
    if finite:
        best = min(finite, key=lambda key: finite[key].mean)
        shown = finite[best].shown(".4f")
        words.append(f"The lowest final loss, {shown} nats per token, is that of {named[best]}.")
        clear = [key for key, mean in finite.items() if key != best and mean.low <= finite[best].high]
        if finite[best].known and clear:
            words.append(f"The interval of {len(clear)} of the others overlaps with its own.")
    broken = [result for result in results if not math.isfinite(result.final_loss)]
    if broken:
        words.append(f"{len(broken)} of {len(results)} cells have no finite final loss.")
    caption = "Final loss: mean cross-entropy logged in the last 5% of the training steps."
    return Finding(
        reproduced=None,
        words=tuple(words),
        numbers={"final_loss": {named[key]: mean for key, mean in losses.items()}},
        pictures=(Picture("final_loss", caption + noise.caption([*losses.values()]), figure),),
        claims=False,
    )
