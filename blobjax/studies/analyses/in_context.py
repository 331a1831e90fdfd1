"""How much of a text is learned from the text itself: held-out loss by position in the context.

The score is that of Olsson et al. 2022, the loss late in the context less the loss early in it, with ranges in place of
single tokens: the second eighth of the context against its second half. More negative is better.

What the later context is worth in compute comes from runs of several lengths: how much longer the same model would have
had to be trained for the loss early in the context to be what it is late in it.
"""

import itertools
import math

import numpy as np

from blobjax.report import plots
from blobjax.studies.analyses import fits, law_plots
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result

AXIS = "layers"
_AT = "/cross_entropy_at/"


def domains(result: Result) -> list[str]:
    """The domains that were evaluated by position."""
    return sorted({name.removeprefix("eval/").partition(_AT)[0] for name in result.held_out if _AT in name})


def by_position(result: Result) -> dict[int, float]:
    """First position of a range to its loss at the end of training, the mean over the domains; nats per token."""
    found: dict[int, list[float]] = {}
    for name, value in result.held_out.items():
        if _AT in name:
            found.setdefault(int(name.partition(_AT)[2]), []).append(value)
    return {first: sum(values) / len(values) for first, values in sorted(found.items())}


def ends(result: Result) -> tuple[int, int]:
    """Where the two ranges of the score begin: an eighth and a half of the context."""
    starts = list(by_position(result))
    return starts[-3], starts[-1]


def scores(result: Result) -> tuple[list[int], list[float]]:
    """Steps, and the score at each: mean over the domains, nats per token."""
    early, late = ends(result)
    names = domains(result)
    series = {(name, at): result.series(f"eval/{name}{_AT}{at}") for name in names for at in (early, late)}
    steps = series[names[0], late][0]
    values = [
        sum(series[name, late][1][i] - series[name, early][1][i] for name in names) / len(names)
        for i in range(len(steps))
    ]
    return steps, values


def analyse(results: list[Result]) -> Finding:
    """Loss by position of each model, and how the score grew."""
    runs = by_model(results)
    usable = [each[-1].result for each in runs.values()]
    if not usable:
        none = "No cell finished with an evaluation by position in three ranges of its context or more."
        return Finding(None, (none,), {}, ())
    curves = {_label(result): by_position(result) for result in usable}
    grown = {_label(result): scores(result) for result in usable}
    final = {name: values[-1] for name, (_, values) in grown.items()}
    early, late = ends(usable[0])
    falls = all(_falls(curve) for curve in curves.values())
    words = [
        "The loss falls all along the context in every model."
        if falls
        else "The loss does not fall all along the context in every model: see the picture.",
        f"From positions {early} to {2 * early - 1} to those from {late} on it changes by "
        + ", ".join(f"{value:+.3f} nats ({name})" for name, value in final.items())
        + ".",
    ]
    used = {name: _nine_tenths(curve) for name, curve in curves.items()}
    words.append(
        "Nine tenths of the fall from the first token to the last are there after "
        + ", ".join(f"{first} tokens ({name})" for name, first in used.items())
        + "."
    )
    claims: list[bool | None] = [falls]
    one = next((result for result in usable if result.cell.config.model.n_layers == 1), None)
    deeper = [result for result in usable if result.cell.config.model.n_layers > 1]
    if not (one and deeper):
        claims.append(None)
    else:
        claims.append(all(final[_label(result)] < final[_label(one)] for result in deeper))
        words.append(
            "Every model of more than one layer gains more from the longer context than that of one layer."
            if claims[-1]
            else "Not every model of more than one layer gains more from the longer context than that of one layer."
        )
    if deeper:
        # The first evaluation is made when most has been learned of which byte follows which.
        deep = {_label(result): grown[_label(result)][1] for result in deeper}
        claims.append(None if any(len(values) < 2 for values in deep.values())
                      else all(values[-1] < values[0] for values in deep.values()))  # fmt: skip
        words.append(
            "In models of more than one layer the gain has grown since the first evaluation: "
            + ", ".join(
                f"{grown[_label(r)][1][0]:+.3f} to {grown[_label(r)][1][-1]:+.3f} ({_label(r)})" for r in deeper
            )
            + (": not in all." if claims[-1] is False else ".")
        )
    laws, worth = {}, {}
    for name, each in runs.items():
        law, why_not = fits.fit_rows("power-flops", [{"flops": p.flops, "loss": _at(p, early)} for p in each])
        if law is None:
            words.append(f"What context is worth in compute is not known for {name}: {why_not}.")
            continue
        laws[name] = law
        for point in each:
            row = f"{name}, {point.row['steps']} steps: after {late} tokens and more against after {early} and more"
            worth[row] = fits.held_against(law, point.flops, _at(point, late))
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            "in_context_score": final,
            "nine_tenths_of_the_fall_by": used,
            **{
                f"loss_at_{first}": {name: curve[first] for name, curve in curves.items()}
                for first in curves[_label(usable[0])]
            },
        },
        pictures=(_by_position(curves), _growth(grown), *([_by_compute(runs, laws, early, late)] if laws else [])),
        laws={f"{name}-after-{early}".replace(" ", "-"): law for name, law in laws.items()},
        worth=worth,
    )


def by_model(results: list[Result]) -> dict[str, list[fits.Point]]:
    """Each model's runs that finished with evaluations by position, the longest last; all over the longest context."""
    models: dict[str, list[fits.Point]] = {}
    ranges = max((list(by_position(each)) for each in results), key=len, default=[])
    usable = [each for each in results if len(ranges) > 2 and list(by_position(each)) == ranges]
    for point in sorted(fits.points(usable), key=lambda p: p.row["steps"]):
        models.setdefault(_label(point.result), []).append(point)
    return dict(sorted(models.items(), key=lambda each: each[1][-1].result.cell.config.model.n_layers))


def _at(point: fits.Point, first: int) -> float:
    """Loss of the range of positions that begins there; nats per token."""
    return by_position(point.result)[first]


def _label(result: Result) -> str:
    layers = result.label(AXIS)
    return f"{layers} layer" + ("" if layers == "1" else "s")


def _falls(curve: dict[int, float]) -> bool:
    values = list(curve.values())
    return all(later < earlier for earlier, later in itertools.pairwise(values))


def _nine_tenths(curve: dict[int, float]) -> int:
    """The first position of the first range whose loss is within a tenth of the whole fall of the last range's."""
    values = list(curve.values())
    return next(first for first, value in curve.items() if value - values[-1] <= 0.1 * abs(values[0] - values[-1]))


def _by_position(curves: dict[str, dict[int, float]]) -> Picture:
    figure, (axes,) = plots.charts()
    # A logarithmic axis has no place for 0; the tokens that a prediction sees are one more than its position.
    lines = {name: ([_middle(first, curve) for first in curve], list(curve.values())) for name, curve in curves.items()}
    plots.draw(
        axes, lines, "tokens before (middle of the range)", "held-out loss, nats per token", log_x=True, log_y=True
    )
    return Picture(
        "by-position", "Held-out loss by the number of tokens a prediction sees, mean over the domains.", figure
    )


def _middle(first: int, curve: dict[int, float]) -> float:
    following = [start for start in curve if start > first]
    last = following[0] if following else 2 * first
    return math.sqrt((first + 1) * max(last, first + 1))


def _by_compute(runs: dict[str, list[fits.Point]], laws: dict[str, dict], early: int, late: int) -> Picture:
    figure, charts = plots.charts(len(laws), share_y=True)
    for axes, (name, law) in zip(charts, laws.items(), strict=True):
        flops = [point.flops for point in runs[name]]
        lines = {f"after {at} tokens and more": (flops, [_at(p, at) for p in runs[name]]) for at in (early, late)}
        y = "held-out loss, nats per token"
        ticks = plots.decade_ticks(flops[0], flops[-1])
        plots.draw(axes, lines, "FLOPs of the run", y, log_x=True, log_y=True, ticks=ticks, title=name)
        fine = np.geomspace(flops[0], flops[-1], 60)
        law_plots.curve(axes, law, {"flops": fine}, fine.tolist(), 0)
        law_plots.error_bars(axes, law, next(iter(lines.values())), 0)
    caption = (
        "Loss early and late in the context of runs of several lengths. How far the late loss lies to the left of the "
        "early one is what the context between is worth in compute; thin, the early one's law with its interval."
    )
    return Picture("by-compute", caption, figure)


def _growth(grown: dict[str, tuple[list[int], list[float]]]) -> Picture:
    figure, (axes,) = plots.charts()
    plots.draw(axes, grown, "step", "late less early, nats per token")
    return Picture("score", "What the longer context is worth while the models train; lower is more.", figure)
