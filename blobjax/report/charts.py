"""The pictures of a run's page: each a figure, a caption, and what it shows in words for those who do not see it."""

import math
from typing import TYPE_CHECKING, NamedTuple

from blobjax.report import plots
from blobjax.report.facts import Facts
from blobjax.report.html import human
from blobjax.runs.ledger import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TOKENS = "tokens trained on"


class Chart(NamedTuple):
    """A figure and its words."""

    figure: "Figure"
    caption: str
    seen: str


def _enough(line: tuple[list[float], list[float]]) -> bool:
    """Whether there is anything to draw: one point makes no curve."""
    return len({x for x, y in zip(*line, strict=True) if math.isfinite(y) and x > 0}) > 1


def _counted(axes: "Axes", log_x: bool = False) -> None:
    """Labels tokens as 1.5M, and not as 1.5 with a factor in a corner."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    words = FuncFormatter(lambda value, _: human(value))
    if log_x:
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(words)
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_formatter(words)


def _framed(axes: "Axes", values: list[float]) -> str:
    """Frames what most values are within, from 0; what is to be said if some are not."""
    usual = sorted(values)[int(0.95 * (len(values) - 1))]
    top = min(max(values), 2 * usual) * 1.05
    axes.set_ylim(0, top or 1)
    return " Peaks above the frame are cut." if max(values) > top else ""


def _restarts(axes: "Axes", facts: Facts) -> int:
    """Marks where later attempts began; how many."""
    later = [facts.at_step(each.first_step) for each in facts.ledger.attempts[1:]]
    for tokens in later:
        axes.axvline(max(tokens, facts.at_step(1)), color="#666666", linestyle=":", linewidth=1, zorder=0)
    return len(later)


def loss(facts: Facts) -> Chart | None:
    """Loss against tokens, both logarithmic; what rollbacks undid in grey."""
    trained = facts.series("cross_entropy")
    if not _enough(trained):
        return None
    figure, (axes,) = plots.charts()
    lines = {"training": trained}
    marked = {
        f"held out: {name.split('/')[1]}": facts.series(name)
        for name in facts.outcome.held_out
        if name.endswith("/cross_entropy")
    }
    undone = facts.tokens_of(facts.undone, "cross_entropy")
    if undone[0]:
        axes.plot(*undone, linestyle="", marker=".", markersize=3, color="#999999", label="undone by rollbacks")
    plots.draw(axes, lines, _TOKENS, "cross-entropy (nats per token)", log_x=True, log_y=True, marked=False)
    for n, (name, line) in enumerate(marked.items()):
        axes.plot(
            *line,
            linestyle="",
            marker=plots.marker(n),
            markersize=5,
            color=plots.colour(n + 1),
            label=plots.plain(name),
        )
    if marked or undone[0]:
        axes.legend(frameon=False, fontsize=11)
    _counted(axes, log_x=True)
    restarts = _restarts(axes, facts)
    notes = " Dotted lines: where the run was started again." if restarts else ""
    finite = [y for y in trained[1] if math.isfinite(y)]
    broken = len(trained[1]) - len(finite)
    notes += f" {broken} of {len(trained[1])} values are not finite, and gaps in the line." if broken else ""
    return Chart(
        figure,
        f"Loss against tokens, both axes logarithmic: a power law is a straight line.{notes}",
        f"Line chart: training cross-entropy goes from {finite[0]:.3f} to {finite[-1]:.3f} nats per token over "
        f"{human(facts.tokens)} tokens; lowest {min(finite):.3f}. {restarts} restarts.",
    )


def bits_per_byte(facts: Facts) -> Chart | None:
    """Held-out bits per byte of each domain."""
    names = [name for name in facts.outcome.held_out if name.endswith("/bits_per_byte")]
    lines = {name.split("/")[1]: facts.series(name) for name in names}
    if not any(_enough(line) for line in lines.values()):
        return None
    figure, (axes,) = plots.charts()
    plots.draw(axes, lines, _TOKENS, "held-out bits per byte", log_x=True)
    _counted(axes, log_x=True)
    _restarts(axes, facts)
    ends = "; ".join(f"{name} from {ys[0]:.3f} to {ys[-1]:.3f}" for name, (_, ys) in lines.items())
    return Chart(figure, "Held-out bits per byte by domain.", f"Line chart of held-out bits per byte: {ends}.")


def speed(facts: Facts) -> Chart | None:
    """Tokens per second, and utilisation where the chip's peak is known."""
    rate, used = facts.series("tokens_per_second"), facts.series("model_flops_utilization")
    if not _enough(rate):
        return None
    both = _enough(used)
    figure, axes = plots.charts(2 if both else 1)
    plots.draw(axes[0], {"": rate}, _TOKENS, "tokens per second", marked=False)
    cut = _framed(axes[0], facts.finite("tokens_per_second"))
    if both:
        plots.draw(axes[1], {"": used}, _TOKENS, "model-FLOPs utilisation", marked=False)
        cut = _framed(axes[1], facts.finite("model_flops_utilization")) or cut
    for each in axes:
        _counted(each)
        _restarts(each, facts)
    middle = f"median {human(facts.median('tokens_per_second'))} tokens per second"
    middle += f", {facts.median('model_flops_utilization'):.1%} of the chips' peak" if both else ""
    return Chart(figure, f"Throughput of the logged steps.{cut}", f"Line chart of throughput: {middle}.")


def gradients(facts: Facts) -> Chart | None:
    """The gradient norm, and where steps were refused."""
    norm = facts.series("grad_norm")
    if not _enough(norm):
        return None
    figure, (axes,) = plots.charts()
    plots.draw(axes, {"gradient norm": norm}, _TOKENS, "global gradient norm", log_y=True, marked=False)
    refused = [
        facts.at_step(int(number(e["step"]))) for e in facts.outcome.events if e["event"] == "skip" and "step" in e
    ]
    if refused:
        axes.plot(refused, [0.02] * len(refused), "|", color=plots.colour(1), transform=axes.get_xaxis_transform(),
                  label="refused step")  # fmt: skip
        axes.legend(frameon=False, fontsize=11)
    _counted(axes)
    _restarts(axes, facts)
    finite = facts.finite("grad_norm")
    return Chart(
        figure,
        "Global gradient norm of the logged steps, before clipping.",
        f"Line chart: gradient norm, median {facts.median('grad_norm'):.3g}, largest {max(finite):.3g}; "
        f"{len(refused)} refused steps.",
    )
