"""Where a larger batch stops paying: the critical batch from steps to a loss, and from the noise of the gradients.

At each batch size the learning rate that comes first to a loss counts. McCandlish et al. 2018: S = S_min (1 + B_crit/B)
(equation 2.11), and B_simple = tr(Sigma) / |G|^2 (equation 2.9), which a run measures with
`conditioning.noise_scale_every`, predicts B_crit.
"""

import math
from typing import Any

import numpy as np

from blobjax.compute.flops import flops_per_token
from blobjax.laws import certainty, fit_file
from blobjax.laws.multiplier import Worth
from blobjax.report import plots
from blobjax.studies.analyses import law_plots
from blobjax.studies.analyses.fits import doubt as of_fit
from blobjax.studies.analyses.fits import evaluations, fit_rows, inside, value
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.noise import Mean, by_seed, claim, every, mean_of
from blobjax.studies.results import Result

# Losses at which steps are counted, evenly spread between these times the lowest that all batches came to.
TARGETS = 5
NEAR, FAR = 1.01, 1.2
# By so much the two ways may differ and agree; McCandlish et al. found up to about three (section 4).
FACTOR = 3.0
# Exponents of the learning rate that count as the square root.
ABOUT_HALF = (0.3, 0.7)
NOISE = "flow/run/noise_scale"


def analyse(results: list[Result]) -> Finding:
    """Steps and tokens to several losses by batch size, the hyperbola of each loss, and the noise scale beside it."""
    batches: dict[int, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.cell.config.duration.global_batch_size):
        # Constant rates: what a run came to on the way to a bad end counts as well.
        if np.isfinite(held_out(result)[1]).any():
            batches.setdefault(result.cell.config.duration.global_batch_size, []).append(result)
    laws, critical, refused = {}, {}, []
    if without := sorted({each.cell.config.duration.global_batch_size for each in results} - batches.keys()):
        refused.append(f"No run with a batch of {', '.join(map(str, without))} has a held-out loss.")
    targets = []
    for loss in common_targets(batches):
        if early := [batch for batch, group in batches.items() if at_once(group, loss)]:
            refused.append(f"No critical batch at {loss:.2f} nats: with a batch of {', '.join(map(str, early))} the "
                           "loss was there at the first evaluation.")  # fmt: skip
        else:
            targets.append(loss)
    best = {loss: {batch: fastest(group, loss) for batch, group in batches.items()} for loss in targets}
    for loss in targets:
        rows = [{"batch_size": batch, "steps": steps} for batch, runs in best[loss].items() for steps, _ in runs]
        law, why_not = fit_rows("critical-batch", rows)
        if law is None:
            refused.append(f"No critical batch at {loss:.2f} nats: {why_not}.")
        else:
            laws[f"loss-{loss:.2f}"] = law
            critical[loss] = law["parameters"]["B_crit"]
    noise = {loss: noise_at(results, loss) for loss in targets}
    words = [
        f"To {loss:.2f} nats: critical batch {value(entry)} sequences from steps"
        + (f", noise scale {noise[loss].shown('.3g')}." if math.isfinite(noise[loss].mean) else ".")
        for loss, entry in critical.items()
    ] + refused
    claims: list[bool | None] = []
    if len(critical) > 1:
        high, low = max(critical), min(critical)
        growth = critical[low]["value"] / critical[high]["value"]
        claims.append(apart(critical[low], critical[high]))
        change = f"From {high:.2f} down to {low:.2f} nats the critical batch "
        words.append(
            claim(
                claims[-1],
                f"{change}grows {growth:.2f}-fold.",
                f"{change}becomes {growth:.2f} of what it was: not as expected.",
                f"the critical batch grows from {high:.2f} down to {low:.2f} nats, {growth:.2f}-fold",
                "the intervals of the two overlap",
            )
        )
    else:
        claims.append(None)
    both = {loss: noise[loss].mean / entry["value"]
            for loss, entry in critical.items() if math.isfinite(noise[loss].mean)}  # fmt: skip
    if both:
        agree = {loss: close(critical[loss], noise[loss]) for loss in both}
        claims.append(every(agree.values()))
        doubt = next((f"of a critical batch, {of_fit(critical[loss])}" if noise[loss].known
                      else f"of the noise scale, {noise[loss].doubt}"
                      for loss, each in agree.items() if each is None), "")  # fmt: skip
        times = f"{min(both.values()):.2f} to {max(both.values()):.2f} times the critical batch of steps"
        words.append(
            claim(
                claims[-1],
                f"The noise scale is {times}.",
                f"The noise scale is {times}, more than a factor of {FACTOR:g} apart: not as expected.",
                f"the noise scale, {times}, is within a factor of {FACTOR:g} of it",
                doubt,
            )
        )
    else:
        claims.append(None)
    last = min(targets, default=math.nan)
    rates = {batch: [rate for _, rate in runs] for batch, runs in best[last].items()} if targets else {}
    if rates:
        edge = at_the_edge(batches, rates)
        words.append(
            f"The learning rate that comes first to {last:.2f} nats is "
            + ", ".join(f"{' or '.join(f'{rate:g}' for rate in sorted(set(those)))} at batch {batch}"
                        + " (the edge of what was tried)" * (batch in edge) for batch, those in rates.items())
            + "."
        )  # fmt: skip
        # The rule is for batches up to the critical one; the first beyond it still counts. Of a rate at the edge of
        # those that were tried nobody knows whether it is the best.
        under = [batch for batch in rates if last in critical and batch <= critical[last]["value"]]
        ruled = [batch for batch in list(rates)[: len(under) + 1] if batch not in edge]
        if len(ruled) > 2:
            slope = slopes(ruled, rates, batches)
            low, high = ABOUT_HALF
            holds = (
                True
                if low < slope.low and slope.high < high
                else False
                if slope.high <= low or slope.low >= high
                else None
            )
            claims.append(holds)
            grows = f"From batch {ruled[0]} to {ruled[-1]} it grows as the batch to the power {slope.shown('.2f')}"
            asked = (
                f"the best learning rate grows about as the square root of the batch, as its power {slope.shown('.2f')}"
            )
            doubt = slope.doubt + (", with half a step between the rates that were tried" if slope.known else "")
            words.append(claim(holds, f"{grows}, about the square root.", f"{grows}, not its square root.", asked,
                               doubt))  # fmt: skip
        else:
            claims.append(None)
            words.append("Fewer than three batches up to the critical one have their best rate within what was tried: "
                         "how it grows with the batch is not known.")  # fmt: skip
    rows = [{"loss": loss, "critical_batch": entry["value"]} for loss, entry in critical.items()]
    of_loss, why_not = fit_rows("critical-batch-loss", rows)
    if of_loss is None:
        words.append(f"How the critical batch follows the loss cannot be fitted: {why_not}.")
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            "critical_batch": {f"{loss:.2f} nats": entry["value"] for loss, entry in critical.items()},
            "noise_scale": {f"{loss:.2f} nats": noise[loss] for loss in critical},
            **{
                f"steps_to_{loss:.2f}": {f"batch {b}": mean_of([s for s, _ in runs]) for b, runs in best[loss].items()}
                for loss in targets
            },
            # As logarithms they would have a mean; as they were tried they are one of a few.
            "learning_rate": {f"batch {batch}": float(np.median(those)) for batch, those in rates.items()},
        },
        pictures=(_trade(best, laws), _critical(critical, noise)),
        laws=laws | ({"of-the-loss": of_loss} if of_loss else {}),
        worth=_worth(laws[f"loss-{last:.2f}"], results[0], last, best[last]) if last in critical else {},
    )


def held_out(result: Result) -> tuple[list[int], list[float]]:
    """Steps, and held-out loss as it has come down by then: of noise around it only the lowest so far counts."""
    steps, values = evaluations(result)
    lowest = np.minimum.accumulate(np.nan_to_num(values, nan=np.inf)) if values else values
    return steps, list(lowest)


def steps_to(result: Result, loss: float) -> float:
    """Steps until the held-out loss is down to this, between evaluations by interpolation; infinity if it never is."""
    steps, values = held_out(result)
    for n, now in enumerate(values):
        if now <= loss:
            if n == 0:
                return float(steps[0])
            share = (values[n - 1] - loss) / (values[n - 1] - now)
            return float(np.exp(np.log(steps[n - 1]) + share * np.log(steps[n] / steps[n - 1])))
    return math.inf


Fastest = dict[int, list[tuple[float, float]]]
"""Batch to the fewest steps and the learning rate that took them, of each seed."""


def fastest(group: list[Result], loss: float) -> list[tuple[float, float]]:
    """The fewest steps to a loss, and the learning rate that took them; of each seed."""
    return [
        min((steps_to(result, loss), result.cell.config.optimizer.learning_rate) for result in cells)
        for cells in by_seed(group).values()
    ]


def at_once(group: list[Result], loss: float) -> bool:
    """Whether the first evaluation of the fastest run was at this loss already: when it came to it is not known."""
    run = min(group, key=lambda result: steps_to(result, loss))
    return held_out(run)[1][0] <= loss


def at_the_edge(batches: dict[int, list[Result]], rates: dict[int, list[float]]) -> set[int]:
    """The batches whose best learning rate is, with a seed, the lowest or the highest that was tried with them."""
    tried = {batch: [run.cell.config.optimizer.learning_rate for run in group] for batch, group in batches.items()}
    ends = {batch: {min(those), max(those)} for batch, those in tried.items()}
    return {batch for batch, those in rates.items() if ends[batch] & set(those)}


def slopes(ruled: list[int], rates: dict[int, list[float]], batches: dict[int, list[Result]]) -> Mean:
    """The power of the batch as which the best learning rate grows, over the seeds.

    The best rate lies somewhere around the best of those tried, and all seeds may find the same one of a coarse grid:
    the interval is wider by what half a step of the grid, either way at each batch, does to the slope at most.
    """
    seeds = list(zip(*(rates[batch] for batch in ruled), strict=True))
    x = np.log(ruled) - np.mean(np.log(ruled))
    weights = x / np.sum(np.square(x))
    found = mean_of([float(np.dot(weights, np.log(each))) for each in seeds])
    steps = [[half_step(batches[batch], rate) for batch, rate in zip(ruled, each, strict=True)] for each in seeds]
    reach = max((float(np.dot(np.abs(weights), each)) for each in steps), default=0.0)
    return Mean(found.mean, found.low - reach, found.high + reach, found.seeds)


def half_step(group: list[Result], rate: float) -> float:
    """Half of the larger distance of a rate to those tried beside it, of their logarithms; it is not at the edge."""
    tried = np.log(sorted({run.cell.config.optimizer.learning_rate for run in group}))
    at = int(np.argmin(np.abs(tried - math.log(rate))))
    return float(max(tried[at] - tried[at - 1], tried[at + 1] - tried[at])) / 2


def apart(larger: dict[str, Any], smaller: dict[str, Any]) -> bool | None:
    """Whether one fitted value is above another; None where their intervals overlap, or one has none."""
    if None in (larger["low"], larger["high"], smaller["low"], smaller["high"]):
        return None
    return True if larger["low"] > smaller["high"] else False if larger["high"] < smaller["low"] else None


def common_targets(batches: dict[int, list[Result]]) -> list[float]:
    """Losses that every batch size comes to at some learning rate with every seed, the highest first."""
    if not batches:
        return []
    lowest = max(min(held_out(result)[1][-1] for result in cells)
                 for group in batches.values() for cells in by_seed(group).values())  # fmt: skip
    return [float(f"{lowest * factor:.3g}") for factor in np.linspace(FAR, NEAR, TARGETS)]


def close(entry: dict[str, Any], noise: Mean) -> bool | None:
    """Whether a fitted critical batch is within FACTOR of the noise scale; None where their intervals allow both."""
    certain = inside(entry, noise.high / FACTOR, noise.low * FACTOR)
    # Apart only where no two values of the intervals are as near as that.
    return certain or (False if inside(entry, noise.low / FACTOR, noise.high * FACTOR) is False else None)


def noise_at(results: list[Result], loss: float) -> Mean:
    """The noise scale at a loss, in sequences, over the seeds that measured it on their way there.

    Within each seed the geometric mean over its runs, and over the seeds again: it spans orders of magnitude.
    """
    found = []
    for cells in by_seed(results).values():
        logs = []
        for result in cells:
            steps, values = result.series(NOISE)
            at = steps_to(result, loss)
            if len(steps) > 1 and steps[0] <= at <= steps[-1] and all(v > 0 for v in values):
                logs.append(float(np.interp(at, steps, np.log(values))))
        if logs:
            found.append(float(np.mean(logs)))
    over = mean_of(found)
    # Above zero, whatever the interval: one seed leaves all of that open.
    return Mean(float(np.exp(over.mean)), float(np.exp(over.low)), float(np.exp(over.high)), over.seeds)


def _worth(law: dict, run: Result, loss: float, best: Fastest) -> dict[str, Worth]:
    """What each batch was worth in the compute of the smallest one, for one loss.

    Args:
      law: the hyperbola of that loss.
      run: any of the runs, which differ in batch, rate and length only.
      best: of that loss.
    """
    smallest = min(best)
    config = run.cell.config
    per_sequence = flops_per_token(config.model, config.data.seq_len) * config.data.seq_len
    # Of the law and not as measured: one run's steps are between two evaluations.
    S_min, B_crit = np.concatenate([[fit_file.values(law)], fit_file.draws(law)]).T
    baseline, *resampled = S_min * (smallest + B_crit) * per_sequence
    low, high = certainty.spanned(np.array(resampled), law["bootstrap"]["share"])
    found = {}
    for batch, runs in best.items():
        flops = sum(steps for steps, _ in runs) / len(runs) * batch * per_sequence
        name = f"batch {batch} against {smallest}"
        found[name] = Worth(flops, loss, baseline, baseline / flops, low and low / flops, high and high / flops)
    return found


def _trade(best: dict[float, Fastest], laws: dict) -> Picture:
    figure, (left, right) = plots.charts(2)
    lines = {f"{loss:.2f} nats": (list(each), [sum(steps for steps, _ in runs) / len(runs) for runs in each.values()])
             for loss, each in best.items()}  # fmt: skip
    ticks = sorted({batch for each in best.values() for batch in each})
    plots.draw(left, lines, "batch, sequences", "steps to the loss", log_x=True, log_y=True, ticks=ticks)
    for n, (loss, each) in enumerate(best.items()):
        if law := laws.get(f"loss-{loss:.2f}"):
            fine = np.geomspace(min(each), max(each), 60)
            law_plots.curve(left, law, {"batch_size": fine}, fine.tolist(), n)
            law_plots.error_bars(left, law, lines[f"{loss:.2f} nats"], n)
    spent = {name: (xs, [x * y for x, y in zip(xs, ys, strict=True)]) for name, (xs, ys) in lines.items()}
    plots.draw(
        right, spent, "batch, sequences", "sequences to the loss", log_x=True, log_y=True, ticks=ticks, legend=False
    )
    caption = "Left, steps to a loss, each at its best learning rate, the mean over the seeds."
    if laws:
        caption += (
            " Thin, the fitted hyperbola with its interval; error bars: the root mean square distance of all points "
            "from it."
        )
    caption += " Right, what they cost."
    return Picture("steps_and_examples", caption, figure)


def _critical(critical: dict, noise: dict[float, Mean]) -> Picture:
    figure, (axes,) = plots.charts()
    lines = {"from steps to the loss": (list(critical), [entry["value"] for entry in critical.values()])}
    if any(math.isfinite(each.mean) for each in noise.values()):
        lines["gradient noise scale"] = (list(noise), [each.mean for each in noise.values()])
    plots.draw(axes, lines, "loss, nats per token", "critical batch, sequences", log_y=True)
    caption = f"The critical batch as the loss falls, {' and '.join(lines)}."
    if critical and all(entry["low"] is not None for entry in critical.values()):
        low, high = ([entry[end] for entry in critical.values()] for end in ("low", "high"))
        plots.band(axes, list(critical), low, high)
        caption += " The band is the interval of that from steps."
    axes.invert_xaxis()
    return Picture("critical_batch", caption, figure)
