"""Where a larger batch stops paying: the critical batch from steps to a loss, and from the noise of the gradients.

At each batch size the learning rate that comes first to a loss counts. McCandlish et al. 2018: S = S_min (1 + B_crit/B)
(equation 2.11), and B_simple = tr(Sigma) / |G|^2 (equation 2.9), which a run measures with
`conditioning.noise_scale_every`, foretells B_crit.
"""

import math

import numpy as np

from blobjax.compute.flops import flops_per_token
from blobjax.report import plots
from blobjax.scaling import certainty, fit_file
from blobjax.scaling.multiplier import Worth
from blobjax.studies.analyses import law_plots
from blobjax.studies.analyses.fits import evaluations, fit_rows, value
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result

# Losses at which steps are counted, evenly spread between these times the lowest that all batches came to.
TARGETS = 5
NEAR, FAR = 1.01, 1.2
# By so much the two ways may differ and agree; McCandlish et al. found up to about three (section 4).
FACTOR = 3.0
# Exponents of the learning rate that count as the square root; rates are tried a factor of two apart.
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
        rows = [{"batch_size": batch, "steps": steps} for batch, (steps, _) in best[loss].items()]
        law, why_not = fit_rows("critical-batch", rows)
        if law is None:
            refused.append(f"No critical batch at {loss:.2f} nats: {why_not}.")
        else:
            laws[f"loss-{loss:.2f}"] = law
            critical[loss] = law["parameters"]["B_crit"]
    noise = {loss: noise_at(results, loss) for loss in targets}
    words = [
        f"To {loss:.2f} nats: critical batch {value(entry)} sequences from steps"
        + (f", noise scale {noise[loss]:.3g}." if math.isfinite(noise[loss]) else ".")
        for loss, entry in critical.items()
    ] + refused
    claims: list[bool | None] = []
    if len(critical) > 1:
        high, low = max(critical), min(critical)
        growth = critical[low]["value"] / critical[high]["value"]
        claims.append(growth > 1)
        words.append(
            f"From {high:.2f} down to {low:.2f} nats the critical batch "
            + (f"grows {growth:.2f}-fold." if claims[-1] else f"becomes {growth:.2f} of what it was: not as expected.")
        )
    else:
        claims.append(None)
    both = {loss: noise[loss] / entry["value"] for loss, entry in critical.items() if math.isfinite(noise[loss])}
    if both:
        apart = max(both.values(), key=lambda ratio: abs(math.log(ratio)))
        claims.append(1 / FACTOR < apart < FACTOR)
        words.append(
            f"The noise scale is {min(both.values()):.2f} to {max(both.values()):.2f} times the critical batch of steps"
            + ("." if claims[-1] else f", more than a factor of {FACTOR:g} apart: not as expected.")
        )
    else:
        claims.append(None)
    last = min(targets, default=math.nan)
    rates = {batch: rate for batch, (_, rate) in best[last].items()} if targets else {}
    if rates:
        edge = at_the_edge(batches, rates)
        words.append(
            f"The learning rate that comes first to {last:.2f} nats is "
            + ", ".join(f"{rate:g} at batch {batch}" + " (the edge of what was tried)" * (batch in edge)
                        for batch, rate in rates.items())
            + "."
        )  # fmt: skip
        # The rule is for batches up to the critical one; the first beyond it still counts. Of a rate at the edge of
        # those that were tried nobody knows whether it is the best.
        under = [batch for batch in rates if last in critical and batch <= critical[last]["value"]]
        ruled = [batch for batch in list(rates)[: len(under) + 1] if batch not in edge]
        if len(ruled) > 2:
            slope = float(np.polyfit(np.log(ruled), np.log([rates[batch] for batch in ruled]), 1)[0])
            claims.append(ABOUT_HALF[0] < slope < ABOUT_HALF[1])
            words.append(
                f"From batch {ruled[0]} to {ruled[-1]} it grows as the batch to the power {slope:.2f}"
                + (", about the square root." if claims[-1] else ", not its square root.")
            )
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
            **{f"steps_to_{loss:.2f}": {f"batch {b}": s for b, (s, _) in best[loss].items()} for loss in targets},
            "learning_rate": {f"batch {batch}": rate for batch, rate in rates.items()},
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


def fastest(group: list[Result], loss: float) -> tuple[float, float]:
    """The fewest steps to a loss, and the learning rate that took them."""
    return min((steps_to(result, loss), result.cell.config.optimizer.learning_rate) for result in group)


def at_once(group: list[Result], loss: float) -> bool:
    """Whether the first evaluation of the fastest run was at this loss already: when it came to it is not known."""
    run = min(group, key=lambda result: steps_to(result, loss))
    return held_out(run)[1][0] <= loss


def at_the_edge(batches: dict[int, list[Result]], rates: dict[int, float]) -> set[int]:
    """The batches whose best learning rate is the lowest or the highest that was tried with them."""
    tried = {batch: [run.cell.config.optimizer.learning_rate for run in group] for batch, group in batches.items()}
    return {batch for batch, rate in rates.items() if rate in (min(tried[batch]), max(tried[batch]))}


def common_targets(batches: dict[int, list[Result]]) -> list[float]:
    """Losses that every batch size comes to at some learning rate, the highest first."""
    if not batches:
        return []
    lowest = max(min(held_out(result)[1][-1] for result in group) for group in batches.values())
    return [float(f"{lowest * factor:.3g}") for factor in np.linspace(FAR, NEAR, TARGETS)]


def noise_at(results: list[Result], loss: float) -> float:
    """The noise scale at a loss, in sequences: the geometric mean over the runs that measured it on their way there."""
    found = []
    for result in results:
        steps, values = result.series(NOISE)
        at = steps_to(result, loss)
        if len(steps) > 1 and steps[0] <= at <= steps[-1] and all(v > 0 for v in values):
            found.append(float(np.interp(at, steps, np.log(values))))
    return float(np.exp(np.mean(found))) if found else math.nan


def _worth(law: dict, run: Result, loss: float, best: dict[int, tuple[float, float]]) -> dict[str, Worth]:
    """What each batch was worth in the compute of the smallest one, for one loss.

    Args:
      law: the hyperbola of that loss.
      run: any of the runs, which differ in batch, rate and length only.
      best: batch to its fewest steps to the loss, and the rate.
    """
    smallest = min(best)
    config = run.cell.config
    per_sequence = flops_per_token(config.model, config.data.seq_len) * config.data.seq_len
    # Of the law and not as measured: one run's steps are between two evaluations.
    S_min, B_crit = np.concatenate([[fit_file.values(law)], fit_file.draws(law)]).T
    baseline, *resampled = S_min * (smallest + B_crit) * per_sequence
    low, high = certainty.spanned(np.array(resampled), law["bootstrap"]["share"])
    found = {}
    for batch, (steps, _) in best.items():
        flops = steps * batch * per_sequence
        name = f"batch {batch} against {smallest}"
        found[name] = Worth(flops, loss, baseline, baseline / flops, low and low / flops, high and high / flops)
    return found


def _trade(best: dict[float, dict[int, tuple[float, float]]], laws: dict) -> Picture:
    figure, (left, right) = plots.charts(2)
    lines = {f"{loss:.2f} nats": (list(each), [steps for steps, _ in each.values()]) for loss, each in best.items()}
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
    caption = (
        "Left, steps to a loss, each at its best learning rate, and where it was fitted the hyperbola (thin) with its "
        "interval and as error bars the root mean square distance from it. Right, what they cost."
    )
    return Picture("steps_and_examples", caption, figure)


def _critical(critical: dict, noise: dict[float, float]) -> Picture:
    figure, (axes,) = plots.charts()
    lines = {"from steps to the loss": (list(critical), [entry["value"] for entry in critical.values()])}
    if any(math.isfinite(each) for each in noise.values()):
        lines["gradient noise scale"] = (list(noise), list(noise.values()))
    plots.draw(axes, lines, "loss, nats per token", "critical batch, sequences", log_y=True)
    if all(entry["low"] is not None for entry in critical.values()):
        low, high = ([entry[end] for entry in critical.values()] for end in ("low", "high"))
        plots.band(axes, list(critical), low, high)
    axes.invert_xaxis()
    return Picture(
        "critical_batch",
        "The critical batch as the loss falls, by both ways; the band is the interval of that from steps.",
        figure,
    )
