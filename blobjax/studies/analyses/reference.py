"""Ways to compute against a reference that is computed exactly: what each costs in loss, and how training went."""

import math
from collections.abc import Iterable

from blobjax.report import plots
from blobjax.studies.finding import Picture
from blobjax.studies.results import Result

# Nats by which a final loss may differ from the reference's, which had the same weights and batches, and count as the
# same. Another seed changes more: four of them ended between 2.494 and 2.592 (precision-ladder's base).
SAME = 0.03


def gap(result: Result, reference: Result) -> float:
    """The final loss above the reference's, nats; infinite where there is none."""
    difference = result.final_loss - reference.final_loss
    return difference if result.status == "finished" and math.isfinite(difference) else math.inf


def same(result: Result, reference: Result) -> bool:
    """Whether it trained as the reference did."""
    return abs(gap(result, reference)) < SAME


def loss_curves(results: Iterable[Result], axis: str, name: str, caption: str, title: str = "") -> Picture:
    """Training loss against steps, one line for each label of an axis."""
    figure, (axes,) = plots.charts()
    lines = {result.label(axis): plots.smooth(result.series("cross_entropy")) for result in results}
    plots.draw(axes, lines, "step", "cross-entropy, nats per token", marked=False, title=title)
    return Picture(name, f"{caption} Each point is the mean of ten steps.", figure)


def listed(values: dict[str, float], form: str = ".3f") -> str:
    """`float32 2.580, float16 3.279`."""
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())
