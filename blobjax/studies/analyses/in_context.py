"""How much of a text is learned from the text itself: held-out loss by position in the context.

The score is that of Olsson et al. 2022, the loss late in the context less the loss early in it, with ranges in place of
single tokens: the second eighth of the context against its second half. More negative is better.

What the later context is worth in compute comes from runs of several lengths: how much longer the same model would have
had to be trained for the loss early in the context to be what it is late in it.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from blobjax.report import plots
from blobjax.runs.mixture import HELD_OUT, held_out_loss, shares
from blobjax.studies import noise
from blobjax.studies.analyses import fits, law_plots
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result

AXIS = "layers"
_AT = "/cross_entropy_at/"


def by_position(result: Result) -> dict[int, float]:
    """First position of a range to its held-out loss at the end of training; nats per token."""
    starts = {int(name.partition(_AT)[2]) for name in result.held_out if _AT in name}
    return {first: held_out_loss(result.cell.config, result.held_out, f"cross_entropy_at/{first}")
            for first in sorted(starts)}  # fmt: skip


def ends(result: Result) -> tuple[int, int]:
    """Where the two ranges of the score begin: an eighth and a half of the context."""
    starts = list(by_position(result))
    return starts[-3], starts[-1]


def scores(result: Result) -> tuple[list[int], list[float]]:
    """Steps, and the score at each: late less early, nats per token."""
    early, late = ends(result)
    config = result.cell.config
    names = {f"eval/{name}{_AT}{at}" for name in shares(config) for at in (early, late)}
    lines = [line for line in result.metrics if names <= line.keys()]
    at = lambda line, first: held_out_loss(config, line, f"cross_entropy_at/{first}")  # noqa: E731
    return [line["step"] for line in lines], [at(line, late) - at(line, early) for line in lines]


def analyse(results: list[Result]) -> Finding:
    """Loss by position of each model, and how the score grew."""
    runs = by_model(results)
    if not runs:
        none = "No cell finished with an evaluation by position in three ranges of its context or more."
        return Finding(None, (none,), {}, ())
    longest = {name: [p.result for p in each if p.row["steps"] == each[-1].row["steps"]] for name, each in runs.items()}
    usable = [result for group in longest.values() for result in group]
    starts = list(by_position(usable[0]))
    curves = {name: {at: noise.mean_of([by_position(result)[at] for result in group]) for at in starts}
              for name, group in longest.items()}  # fmt: skip
    means = {name: {at: mean.mean for at, mean in curve.items()} for name, curve in curves.items()}
    final = _by_model(usable, lambda result: scores(result)[1][-1])
    early, late = ends(usable[0])
    falls = noise.across(usable, _falls)
    claims: list[bool | None] = [noise.every(step.below(0) for step in falls.values())]
    doubt = next((step.doubt for step in falls.values() if step.below(0) is None), "")
    words = [
        noise.claim(
            claims[0],
            "The loss falls all along the context in every model.",
            "The loss does not fall all along the context in every model: see the picture.",
            "the loss falls all along the context in every model",
            doubt,
        ),
        f"From positions {early} to {2 * early - 1} to those from {late} on it changes by "
        + ", ".join(f"{value.shown('+.3f')} nats ({name})" for name, value in final.items())
        + ".",
    ]
    used = {name: _nine_tenths(curve) for name, curve in means.items()}
    words.append(
        "Nine tenths of the fall from the first token to the last are there after "
        + ", ".join(f"{first} tokens ({name})" for name, first in used.items())
        + "."
    )
    one = next((name for name, group in longest.items() if group[0].cell.config.model.n_layers == 1), None)
    deeper = [name for name, group in longest.items() if group[0].cell.config.model.n_layers > 1]
    if not (one and deeper):
        claims.append(None)
    else:
        more = noise.across(usable, lambda cells: _against(cells, one))
        claims.append(noise.every(more[name].below(0) if name in more else None for name in deeper))
        doubt = next(
            (more[name].doubt for name in deeper if name in more and more[name].below(0) is None), "no seed has both"
        )
        gain = "more layers than one gain more from the longer context than one layer does"
        words.append(
            noise.claim(
                claims[-1],
                "Every model of more than one layer gains more from the longer context than that of one layer.",
                "Not every model of more than one layer gains more from the longer context than that of one layer.",
                gain,
                doubt,
            )
        )
    if deeper:
        # The first evaluation is made when most has been learned of which byte follows which.
        deep = [result for name in deeper for result in longest[name]]
        first, last = (_by_model(deep, partial(_score_at, at)) for at in (0, -1))
        grown = _by_model(deep, lambda result: scores(result)[1][-1] - scores(result)[1][0])
        once = any(len(scores(result)[1]) < 2 for result in deep)
        claims.append(noise.every(None if once else grown[name].below(0) for name in deeper))
        changes = ", ".join(f"{first[name].mean:+.3f} to {last[name].mean:+.3f} ({name})" for name in deeper)
        has = "In models of more than one layer the gain has grown since the first evaluation"
        doubt = next((grown[name].doubt for name in deeper if grown[name].below(0) is None), "")
        doubt = "there is one evaluation" if once else doubt
        asked = f"in models of more than one layer the gain has grown since the first evaluation ({changes})"
        words.append(noise.claim(claims[-1], f"{has}: {changes}.", f"{has}: {changes}: not in all.", asked, doubt))
    laws, worth = {}, {}
    for name, each_run in runs.items():
        law, why_not = fits.fit_rows("power-flops", [{"flops": p.flops, "loss": _at(p, early)} for p in each_run])
        if law is None:
            words.append(f"What context is worth in compute is not known for {name}: {why_not}.")
            continue
        laws[name] = law
        for steps, flops, loss in _over_seeds(each_run, late):
            row = f"{name}, {steps} steps: after {late} tokens and more against after {early} and more"
            worth[row] = fits.held_against(law, flops, loss)
    growth = {name: noise.mean_line([scores(result) for result in group]) for name, group in longest.items()}
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            "in_context_score": final,
            "nine_tenths_of_the_fall_by": used,
            **{f"loss_at_{first}": {name: curve[first] for name, curve in curves.items()} for first in starts},
        },
        pictures=(_by_position(curves), _growth(growth), *([_by_compute(runs, laws, early, late)] if laws else [])),
        laws={f"{name}-after-{early}".replace(" ", "-"): law for name, law in laws.items()},
        worth=worth,
    )


def _falls(cells: list[Result]) -> dict[tuple[str, int], float]:
    """Model and range of positions to the loss there less that of the range before it."""
    curves = {_label(result): by_position(result) for result in cells}
    return {(name, after): curve[after] - curve[before]
            for name, curve in curves.items() for before, after in itertools.pairwise(curve)}  # fmt: skip


def _score_at(evaluation: int, result: Result) -> float:
    return scores(result)[1][evaluation]


def _by_model(results: list[Result], value: Callable[[Result], float]) -> dict[str, noise.Mean]:
    return noise.across(results, lambda cells: {_label(result): value(result) for result in cells})


def _against(cells: list[Result], one: str) -> dict[str, float]:
    """Model to its score less that of the model of one layer and the same seed."""
    found = {_label(result): scores(result)[1][-1] for result in cells}
    return {name: score - found[one] for name, score in found.items() if name != one} if one in found else {}


def _over_seeds(points: list[fits.Point], at: int) -> list[tuple[int, float, float]]:
    """Steps, FLOPs and the mean loss of the seeds from a position on, of each length."""
    lengths: dict[int, list[fits.Point]] = {}
    for point in points:
        lengths.setdefault(point.row["steps"], []).append(point)
    return [(steps, those[0].flops, sum(_at(p, at) for p in those) / len(those)) for steps, those in lengths.items()]


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


def _nine_tenths(curve: dict[int, float]) -> int:
    """The first position of the first range whose loss is within a tenth of the whole fall of the last range's."""
    values = list(curve.values())
    return next(first for first, value in curve.items() if value - values[-1] <= 0.1 * abs(values[0] - values[-1]))


def _by_position(curves: dict[str, dict[int, noise.Mean]]) -> Picture:
    figure, (axes,) = plots.charts()
    # A logarithmic axis has no place for 0; the tokens that a prediction sees are one more than its position.
    lines = {name: ([_middle(first, curve) for first in curve], [mean.mean for mean in curve.values()])
             for name, curve in curves.items()}  # fmt: skip
    plots.draw(
        axes, lines, "tokens before (middle of the range)", "held-out loss, nats per token", log_x=True, log_y=True
    )
    for n, (name, curve) in enumerate(curves.items()):
        noise.error_bars(axes, lines[name][0], list(curve.values()), n)
    caption = f"Held-out loss by the number of tokens a prediction sees, {HELD_OUT}."
    caption += noise.caption([mean for curve in curves.values() for mean in curve.values()])
    return Picture("by-position", caption, figure)


def _middle(first: int, curve: Mapping[int, object]) -> float:
    following = [start for start in curve if start > first]
    last = following[0] if following else 2 * first
    return math.sqrt((first + 1) * max(last, first + 1))


def _by_compute(runs: dict[str, list[fits.Point]], laws: dict[str, dict], early: int, late: int) -> Picture:
    figure, charts = plots.charts(len(laws), share_y=True)
    for axes, (name, law) in zip(charts, laws.items(), strict=True):
        found = {at: _over_seeds(runs[name], at) for at in (early, late)}
        flops = [each for _, each, _ in found[early]]
        lines = {f"after {at} tokens and more": (flops, [loss for *_, loss in those]) for at, those in found.items()}
        y = "held-out loss, nats per token"
        ticks = plots.decade_ticks(flops[0], flops[-1])
        plots.draw(axes, lines, "FLOPs of the run", y, log_x=True, log_y=True, ticks=ticks, title=name)
        fine = np.geomspace(flops[0], flops[-1], 60)
        law_plots.curve(axes, law, {"flops": fine}, fine.tolist(), 0)
        law_plots.error_bars(axes, law, next(iter(lines.values())), 0)
    caption = (
        "Loss early and late in the context of runs of several lengths. How far the late loss lies to the left of the "
        "early one is what the context between is worth in compute; thin, the early one's law with its interval. Error "
        "bars: the root mean square distance of all points from that law."
    )
    return Picture("by-compute", caption, figure)


def _growth(grown: dict[str, plots.Line]) -> Picture:
    figure, (axes,) = plots.charts()
    plots.draw(axes, grown, "step", "late less early, nats per token")
    return Picture("score", "What the longer context is worth while the models train; lower is more.", figure)
