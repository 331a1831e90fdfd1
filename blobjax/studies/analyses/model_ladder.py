"""A ladder of sizes, each trained by its own dial: loss against compute, and the next rung from those below it."""

import itertools
import math
from typing import Any

import numpy as np

from blobjax.compute.flops import flops_per_token, param_count
from blobjax.config import BadInputError
from blobjax.config.ladder import dial, parse
from blobjax.config.schema import Model
from blobjax.laws import prediction
from blobjax.report import plots
from blobjax.studies import noise
from blobjax.studies.analyses import fits, law_plots
from blobjax.studies.finding import Finding, Picture, Prediction, verdict
from blobjax.studies.noise import Mean
from blobjax.studies.results import Result
from blobjax.studies.study import SIZE

LAW = "power-flops"
# Of the loss: an error of the largest rung's prediction up to which it counts as predicted.
PREDICTED = 0.02
# The smallest exponent that counts as a loss that falls: a hundredfold compute takes 5% off.
FALLS = 0.01


def analyse(results: list[Result]) -> Finding:
    """The loss of each rung, a law through them, how it would have predicted the largest, and the next rung."""
    rows = sorted(fits.ends(results), key=lambda each: each[1]["flops"])
    # What a rung costs does not depend on the seed.
    columns = ("non_embedding_params", "tokens", "flops")
    numbers: dict[str, Any] = {name: {noise.name(each): row[name] for each, row in rows} for name in columns}
    numbers[fits.LOSS] = noise.across([each for each, _ in rows], _losses)
    words = []
    claims: list[bool | None] = []
    if drops := _drops(rows):
        falls = [drop.above(0) for drop in drops.values()]
        claims.append(noise.every(falls))
        doubt = next((f"of {rung}, {drop.doubt}" for rung, drop in drops.items() if drop.above(0) is None), "")
        no = ", ".join(rung for rung, each in zip(drops, falls, strict=True) if each is False)
        words.append(
            noise.claim(
                claims[0],
                "Each rung has a lower loss than the one below it.",
                f"Not each rung has a lower loss than the one below it ({no}): not as expected.",
                "each rung has a lower loss than the one below it",
                doubt,
            )
        )
    try:
        content = fits.fit(LAW, rows)
    except BadInputError as error:
        words.append(f"{LAW} could not be fitted: {'; '.join(error.problems)}.")
        return Finding(verdict(*claims, None), tuple(words), numbers, ())
    floor, exponent = content["parameters"]["E"], content["parameters"]["alpha"]
    alpha = fits.with_interval(exponent)
    # An exponent whose whole interval is above zero is a loss that falls with the compute.
    as_power = fits.inside(exponent, FALLS, math.inf)
    claims.append(as_power)
    stays = f"Above what stays, {fits.with_interval(floor, '.3f')} nats, the"
    if floor["value"] < 1e-3:
        stays = "These rungs show no loss that stays (E is fitted as zero, so the curve is a straight line here). The"
    words.append(f"{stays} loss falls as the compute to the power of minus {alpha}.")
    if as_power is None:
        words.append(noise.cannot_tell("whether the loss falls as a power of the compute", fits.doubt(exponent)))
    if not content["future"]:
        claims.append(None)
    else:
        last = content["future"][-1]
        # The law of the smaller rungs is one; the largest was measured once for each seed.
        errors = noise.mean_of([last["predicted"] / row[fits.LOSS] - 1 for _, row in rungs(rows)[-1]])
        claims.append(errors.within(PREDICTED))
        words.append(
            f"Fitted on the rungs up to {last['up_to']:.3g} FLOPs, the law predicts {last['predicted']:.4f} for the "
            f"largest, at {last['at']:.3g}; measured {last['measured']:.4f}, an error of {errors.shown('+.2%')}."
        )
        if claims[-1] is None:
            asked = f"whether the largest rung is predicted to within {PREDICTED:.0%}"
            words.append(noise.cannot_tell(asked, errors.doubt))
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers=numbers,
        pictures=(_picture(content, rows),),
        laws={LAW: content},
        # Against the law through all of them: how far a rung is off, in compute.
        worth={each.cell.name: fits.held_against(content, row["flops"], row[fits.LOSS]) for each, row in rows},
        prediction=_next(content, rows),
    )


def _losses(cells: list[Result]) -> dict[str, float]:
    """Rung to its held-out loss, of one seed."""
    return {noise.name(each): float(row[fits.LOSS]) for each, row in fits.ends(cells)}


def _drops(rows: fits.Ends) -> dict[str, Mean]:
    """Each rung but the smallest to how far its loss is below that of the one before it, compared within each seed."""
    names = [noise.name(rung[0][0]) for rung in rungs(rows)]

    def measure(cells: list[Result]) -> dict[str, float]:
        losses = _losses(cells)
        return {after: losses[before] - losses[after] for before, after in itertools.pairwise(names)
                if {before, after} <= losses.keys()}  # fmt: skip

    found = noise.across([each for each, _ in rows], measure)
    return {name: found.get(name, noise.mean_of([])) for name in names[1:]}


def rungs(rows: fits.Ends) -> list[fits.Ends]:
    """The runs of each rung, one for each seed; the smallest first."""
    found: dict[float, fits.Ends] = {}
    for each in sorted(rows, key=lambda each: each[1]["flops"]):
        found.setdefault(each[1]["flops"], []).append(each)
    return list(found.values())


def _next(content: dict[str, Any], rows: fits.Ends) -> Prediction | None:
    """The rung that follows in the series, trained for as many tokens a parameter as the last; None without sizes."""
    ((before, _), *_), ((last, row), *_) = rungs(rows)[-2:]
    if not (SIZE in before.cell.overrides and SIZE in last.cell.overrides):
        return None
    count = "non_embedding_params"
    # As they were asked for: in whole heads a rung is only about that large.
    size = _rounded(parse(last.cell.overrides[SIZE]) ** 2 / parse(before.cell.overrides[SIZE]))
    config = last.cell.config
    shape = {key.removeprefix("model."): value for key, value in dial(size, config.data.seq_len).items()
             if key.startswith("model.")}  # fmt: skip
    model = Model.model_validate(config.model.model_dump() | shape)
    tokens = row["tokens"] / row[count] * param_count(model, config.conditioning, embeddings=False)
    flops = flops_per_token(model, config.data.seq_len) * tokens
    expected = {LAW: prediction.predict(content, {"flops": flops})["loss"]}
    what = f"the next rung, {size} parameters and {flops:.3g} FLOPs"
    return Prediction(size, what, {"size": size}, expected)


def _rounded(size: float) -> str:
    """Two digits and a suffix: 400k."""
    value = float(f"{size:.2g}")
    scale, suffix = next((each for each in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if value >= each[0]), (1.0, ""))
    return f"{value / scale:g}{suffix}"


def _picture(content: dict[str, Any], rows: fits.Ends) -> Picture:
    """Loss against compute, with the law, its interval, and what the other rungs say of the largest."""
    flops = [row["flops"] for _, row in rows]
    each = sorted(set(flops))
    C = np.geomspace(each[0] / 1.3, each[-1] ** 2 / each[-2] * 1.3, 80)
    figure, (axes,) = plots.charts()
    law_plots.curve(axes, content, {"flops": C}, C.tolist(), 0, label="fitted to all rungs")
    losses = [row[fits.LOSS] for _, row in rows]
    axes.plot(flops, losses, "o", color=plots.colour(0), label="rungs")
    law_plots.error_bars(axes, content, (flops, losses), 0)
    for (result, row), *_ in rungs(rows):
        place, label = (row["flops"], row[fits.LOSS]), plots.plain(noise.name(result))
        axes.annotate(label, place, textcoords="offset points", xytext=(6, 6), fontsize=10)
    if content["future"]:
        last = content["future"][-1]
        axes.plot(last["at"], last["predicted"], "X", color=plots.colour(1), markersize=9,
                  label="the largest, from those below it")  # fmt: skip
    ticks = [float(f"{at:.2g}") for at in (*each, each[-1] ** 2 / each[-2])]
    y = "held-out loss, nats per token"
    plots.draw(axes, {}, "training FLOPs", y, log_x=True, log_y=True, legend=False, ticks=ticks)
    axes.legend(frameon=False, fontsize=10)
    caption = (
        "Loss of each rung against its compute, with the saturating power law and its interval, drawn to the next. "
        "Error bars: the root mean square distance of all rungs from the law."
    )
    return Picture("ladder", caption, figure)
