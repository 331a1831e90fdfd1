"""How plots of runs and studies look. Matplotlib is an extra, imported when the first plot is made."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blobjax.report.html import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, told apart by colour-blind readers; the markers tell lines apart in black and white too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLES = ("-", "--", "-.", ":")
# Legible when a page is read on a phone, where a plot is some 9 cm wide.
_STYLE: dict[Any, Any] = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
}

Line = tuple[Sequence[float], Sequence[float]]
"""x and y of one line; a y that is not finite leaves a gap."""


def charts(count: int = 1, share_y: bool = False) -> "tuple[Figure, list[Axes]]":
    """A figure of charts side by side."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4 if count == 1 else 4.8 * count, 4.2), dpi=130, layout="constrained")
        return figure, list(figure.subplots(1, count, squeeze=False, sharey=share_y)[0])


def colour(n: int) -> str:
    """Of the n-th line."""
    return _COLOURS[n % len(_COLOURS)]


def marker(n: int) -> str:
    """Of the n-th line's points."""
    return _MARKERS[n % len(_MARKERS)]


def plain(text: str) -> str:
    """A name as a label: a dollar sign in it begins no formula, which may be none that can be drawn."""
    return text.replace("$", r"\$")


def draw(
    axes: "Axes",
    lines: Mapping[str, Line],
    x: str,
    y: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    ticks: Sequence[float] = (),
    marked: bool = True,
    title: str = "",
    legend: bool = True,
) -> None:
    """Draws lines with a legend.

    Args:
      lines: label to its line.
      x, y: what the axes show, with units.
      ticks: where x has labels; everywhere by default.
      marked: points are marked; off for long series.
    """
    from matplotlib.ticker import LogFormatter

    for n, (name, (xs, ys)) in enumerate(lines.items()):
        finite = [value if math.isfinite(value) and (value > 0 or not log_y) else math.nan for value in ys]
        marker = _MARKERS[n % len(_MARKERS)] if marked else None
        # Where lines lie on each other, the ones below show through the gaps of those above.
        style = "-" if marked else _STYLES[n % len(_STYLES)]
        axes.plot(xs, finite, label=plain(name), color=_COLOURS[n % len(_COLOURS)], marker=marker, linestyle=style)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
        # Over less than two decades powers of ten alone would leave hardly a label.
        axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.8)))
    if ticks:
        axes.set_xticks(list(ticks), [short(tick) for tick in ticks])
        axes.xaxis.minorticks_off()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(plain(title))
    if legend and len(lines) > 1:
        axes.legend(frameon=False, fontsize=11)


def decade_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from low to high, for a logarithmic axis of a decade or two."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [float(f"{m}e{n}") for n in exponents for m in (1, 2, 5) if low <= float(f"{m}e{n}") <= high]


def smooth(line: tuple[Sequence[float], Sequence[float]], width: int = 10) -> Line:
    """Each y the mean of the last `width`; before there are as many, of those there are."""
    xs, ys = line
    means = [sum(ys[max(i - width + 1, 0) : i + 1]) / min(i + 1, width) for i in range(len(ys))]
    return xs, means


def level(axes: "Axes", value: float, text: str) -> None:
    """A horizontal line with a word on it: a threshold, a reference."""
    axes.axhline(value, color="#666666", linestyle="--", linewidth=1)
    # Its own x in parts of the axis, its y in data.
    axes.text(0.01, value, plain(text), transform=axes.get_yaxis_transform(), va="bottom", fontsize=10, color="#444444")


def band(axes: "Axes", xs: Sequence[float], low: Sequence[float], high: Sequence[float], n: int = 0) -> None:
    """The interval of the n-th line, as a band behind it."""
    axes.fill_between(xs, low, high, color=_COLOURS[n % len(_COLOURS)], alpha=0.18, linewidth=0)


def bars(
    axes: "Axes",
    groups: Mapping[str, Mapping[str, float]],
    y: str,
    *,
    reach: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Bars in groups: label of the group to label of the bar to its height; one that is not finite is left out.

    Args:
      reach: of each bar's interval to either side, where there are intervals; 0: none.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = 0.8 / len(names)
    for n, name in enumerate(names):
        at = [i + (n - (len(names) - 1) / 2) * width for i, group in enumerate(groups.values()) if name in group]
        heights = [group[name] for group in groups.values() if name in group]
        finite = [height if math.isfinite(height) else 0 for height in heights]
        axes.bar(at, finite, width * 0.92, label=plain(name), color=_COLOURS[n % len(_COLOURS)])
        for x, height, group in zip(at, heights, (g for g, group in groups.items() if name in group), strict=True):
            if reach and math.isfinite(height) and (half := reach[group][name]):
                axes.errorbar([x], [height], yerr=[half], fmt="none", ecolor="#222222", elinewidth=1.2, capsize=3)
            if not math.isfinite(height):
                axes.text(x, 0, "not finite", rotation=90, ha="center", va="bottom", fontsize=10)
    axes.set_xticks(range(len(groups)), [plain(name) for name in groups])
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(y)
    if len(names) > 1:
        # Above the bars, which would lie behind it.
        axes.legend(frameon=False, fontsize=11, ncols=min(len(names), 4), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def to_png(figure: "Figure") -> bytes:
    """The figure as a PNG."""
    file = io.BytesIO()
    # No software version and no date: the same plot is the same file.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
