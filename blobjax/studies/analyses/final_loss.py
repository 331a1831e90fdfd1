"""Any grid: the final loss of every cell, against the last axis. No claim, so no verdict."""

import math

from blobjax.report import plots
from blobjax.studies.finding import Finding, Picture
from blobjax.studies.results import Result


def analyse(results: list[Result]) -> Finding:
    """The best cell, and a line for each combination of the axes before the last."""
    *before, last = results[0].cell.labels
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(", ".join(result.label(axis) for axis in before), []).append(result)
    labels = list(dict.fromkeys(result.label(last) for result in results))
    lines = {
        name: ([labels.index(result.label(last)) for result in group], [result.final_loss for result in group])
        for name, group in groups.items()
    }
    figure, (axes,) = plots.charts()
    plots.draw(axes, lines, last.replace("_", " "), "final loss, nats per token")
    axes.set_xticks(range(len(labels)), [plots.plain(label) for label in labels])
    words = []
    finite = [result for result in results if math.isfinite(result.final_loss)]
    if finite:
        best = min(finite, key=lambda result: result.final_loss)
        words.append(f"The lowest final loss, {best.final_loss:.4f} nats per token, is that of {best.cell.name}.")
    if len(finite) < len(results):
        words.append(f"{len(results) - len(finite)} of {len(results)} cells have no finite final loss.")
    caption = "Final loss: mean cross-entropy logged in the last 5% of the training steps."
    return Finding(
        reproduced=None,
        words=tuple(words),
        numbers={"final_loss": {result.cell.name: result.final_loss for result in results}},
        pictures=(Picture("final_loss", caption, figure),),
    )
