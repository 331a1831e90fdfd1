"""Fitted laws in plots: a curve with its interval, and error bars of what it was fitted to."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from blobjax.laws import certainty, fit_file
from blobjax.laws.formulas import LAWS
from blobjax.report import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def curve(
    axes: "Axes", content: dict[str, Any], x: Mapping[str, np.ndarray], xs: Sequence[float], n: int, label: str = ""
) -> None:
    """Draws a law as a thin line in the colour of the n-th, with the interval from its resamples as a band.

    What was drawn before stays in view as it was: an interval may be wider than anything measured.

    Args:
      content: of a fit file.
      x: the law's columns.
      xs: where on the plot these are.
    """
    law, draws = LAWS[content["law"]], fit_file.draws(content)
    view = axes.get_ylim() if axes.lines else None
    if len(draws):
        curves = np.stack([law.predict(draw, x) for draw in draws])
        plots.band(axes, xs, *certainty.band(curves, content["bootstrap"]["share"]), n)
    axes.plot(xs, law.predict(fit_file.values(content), x), color=plots.colour(n), linewidth=1, label=label or None)
    if view is not None:
        axes.set_ylim(view)


def error_bars(axes: "Axes", content: dict[str, Any] | None, line: plots.Line, n: int) -> None:
    """The root mean square distance of all points from their law, at each point of the n-th line; none without a law.

    One seed tells no other error of a run than how far it lies from what the others say of it.
    """
    if content is None:
        return
    xs, ys = line
    errors = content["objective"]["rms_residual"] * np.array(ys)  # of the logarithm
    axes.errorbar(xs, ys, yerr=errors, fmt="none", ecolor=plots.colour(n), elinewidth=1.2, capsize=3)
