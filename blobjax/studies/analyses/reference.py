"""Ways to compute against a reference that is computed exactly: what each costs in loss, and how training went."""

import math
from collections.abc import Iterable, Mapping

from blobjax.report import plots
from blobjax.studies import noise
from blobjax.studies.finding import Picture
from blobjax.studies.noise import Mean
from blobjax.studies.results import Result, grouped

# Nats by which a final loss may differ from the reference's, which had the same weights and batches, and count as the
# same. Another seed changes more: four of them ended between 2.494 and 2.592 (precision-ladder's base).
SAME = 0.03
FLUSHED = (
    "The share of flushed gradients is of the gradients that are not zero where training is in float32 or bfloat16, "
    "and of all gradients in narrower formats: a product may have been rounded to zero there, so zeros count."
)
"""What the probe `grad_flush_fraction` counts, for a page that has several formats side by side."""


def gap(result: Result, reference: Result) -> float:
    """The final loss above the reference's of the same seed, nats; infinite where there is none."""
    difference = result.final_loss - reference.final_loss
    return difference if result.status == "finished" and math.isfinite(difference) else math.inf


def gaps(results: list[Result], axis: str, reference: str) -> dict[str, Mean]:
    """Label of an axis to the final loss above that of the reference, compared within each seed; nats."""

    def measure(cells: list[Result]) -> dict[str, float]:
        by_label = {result.label(axis): result for result in cells}
        return {name: gap(result, by_label[reference]) for name, result in by_label.items() if name != reference}

    return noise.across(results, measure)


def loss_curves(results: Iterable[Result], axis: str, name: str, caption: str, title: str = "") -> Picture:
    """Training loss against steps, one line for each label of an axis, the mean over the seeds."""
    figure, (axes,) = plots.charts()
    groups = grouped(list(results), axis)
    lines = {label: noise.mean_line([plots.smooth(each.series("cross_entropy")) for each in group])
             for label, group in groups.items()}  # fmt: skip
    plots.draw(axes, lines, "step", "cross-entropy, nats per token", marked=False, title=title)
    several = " over the seeds" if max(map(len, groups.values()), default=0) > 1 else ""
    return Picture(name, f"{caption} Each point is the mean of ten steps{several}.", figure)


def listed(values: Mapping[str, float | Mean], form: str = ".3f") -> str:
    """`float32 2.580, float16 3.279 (3.201 to 3.357)`."""
    shown = {
        name: value.shown(form) if isinstance(value, Mean) else f"{value:{form}}" for name, value in values.items()
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())
