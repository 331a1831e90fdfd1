"""The loss of many training lengths from one trunk: a run at a constant learning rate, with a decayed branch for each.

A branch costs only what is trained after the checkpoint it begins from; a run of its own costs its whole length (Hägele
et al. 2024). Losses are of held-out text.
"""

from typing import Any

import numpy as np

from blobjax.report import plots
from blobjax.studies import noise
from blobjax.studies.analyses import law_plots
from blobjax.studies.analyses.fits import Point, evaluations, fit_points, held_against, points, value
from blobjax.studies.analyses.reference import SAME
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result

# Relative, of a law's prediction of the longest branch from the shorter ones.
PREDICTED = 0.01


def analyse(results: list[Result]) -> Finding:
    """Branches against runs of their own, the law through the branches, and the price of both."""
    found = sorted(points(results), key=lambda point: point.tokens)
    ended = {point.result.cell.name: point for point in found}
    # A trunk that diverged at its end may have branches from before; there is no price to tell then.
    branches = [point for point in found if point.result.cell.after in ended]
    trunks = {name: ended[name] for name in dict.fromkeys(p.result.cell.after for p in branches)}
    if not branches:
        return Finding(None, ("No branch finished whose trunk did.",), {}, ())
    # Of several runs from the start, of one length and schedule, the best; in each seed.
    others = [point for point in found if point not in branches and point not in trunks.values()]
    by_run = sorted(others, key=lambda p: (p.tokens, -p.loss))
    alone = list({(p.tokens, schedule(p), seed(p)): p for p in by_run}.values())
    pairs: dict[tuple[float, str], list[tuple[Point, Point]]] = {}
    for own in alone:
        for branch in branches:
            if own.tokens == branch.tokens and seed(own) == seed(branch):
                pairs.setdefault((own.tokens, schedule(own)), []).append((own, branch))
    gaps = {key: noise.mean_of([branch.loss - own.loss for own, branch in each]) for key, each in pairs.items()}
    law, why_not = fit_points("power-tokens", branches)
    together, separate = price(branches, list(trunks.values()))
    claims: list[bool | None] = [gap.below(SAME) for gap in gaps.values()] or [None]
    words = []
    for key, gap in gaps.items():
        tried = {noise.name(p.result) for p in others if (p.tokens, schedule(p)) == key}
        alone_at, branch_at = (noise.mean_of([pair[at].loss for pair in pairs[key]]) for at in (0, 1))
        of = noise.name(pairs[key][0][1].result)
        ends = (
            f"{of} ends at {branch_at.shown()}, the best of {len(tried)} runs from the start with a {key[1]} schedule "
            f"at {alone_at.shown()} nats per token: {gap.shown('+.3f')}"
        )
        asked = f"{of} ends no more than {SAME} nats above the best run with a {key[1]} schedule ({gap.shown('+.3f')})"
        no = f"{ends}, more than {SAME} above: not as expected."
        words.append(noise.claim(gap.below(SAME), f"{ends}.", no, asked, gap.doubt))
    words.append(
        f"Trunk and {len(branches)} branches took {together:.3g} FLOPs; runs of their own of those lengths would take "
        f"{separate:.3g}, {separate / together:.2f} times as much."
    )
    if law is None:
        claims.append(None)
        words.append(f"No power law of the tokens can be fitted to the branches: {why_not}.")
    else:
        words.append(f"The branches' law is E + A D^-alpha with alpha = {value(law['parameters']['alpha'])} and "
                     f"E = {value(law['parameters']['E'])}.")  # fmt: skip
        if law["future"]:
            last = law["future"][-1]
            longest = [point for point in branches if point.tokens == branches[-1].tokens]
            error = noise.mean_of([last["predicted"] / point.loss - 1 for point in longest])
            claims.append(error.within(PREDICTED))
            fitted = (
                f"Fitted up to {last['up_to']:,.0f} tokens it predicts {last['predicted']:.3f} for the longest, which "
                f"came to {last['measured']:.3f}, an error of {error.shown('+.2%')}"
            )
            asked = f"the longest is predicted to within {PREDICTED:.0%}: {error.shown('+.2%')}"
            words.append(noise.claim(claims[-1], f"{fitted}.", f"{fitted}: not as expected.", asked, error.doubt))
    baseline, _ = fit_points("power-flops", branches)
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            "flops_of_trunk_and_branches": together,
            "flops_of_runs_of_their_own": separate,
            "loss_of_branch": noise.across(
                [p.result for p in branches],
                lambda cells: {f"{p.tokens:,.0f} tokens": p.loss for p in points(cells)},
            ),
            "branch_above_own_run": {noise.name(pairs[key][0][1].result): gap for key, gap in gaps.items()},
        },
        pictures=(_curves(branches, list(trunks.values()), alone, law),),
        laws={"branches": law} if law else {},
        worth={p.result.cell.name: held_against(baseline, p.flops, p.loss) for p in alone},
    )


def price(branches: list[Point], trunks: list[Point]) -> tuple[float, float]:
    """FLOPs of trunks and branches together, and of runs of the branches' lengths from the start."""
    separate = sum(branch.flops for branch in branches)
    return sum(p.flops for p in trunks) + sum(p.flops * (1 - began(p) / p.row["steps"]) for p in branches), separate


def began(branch: Point) -> int:
    """The trunk's step that a branch began from."""
    return next(event["step"] for event in branch.result.events if event["event"] == "branch")


def seed(point: Point) -> int:
    """Of the run."""
    return point.result.cell.config.seed


def schedule(point: Point) -> str:
    """Of its learning rate."""
    return point.result.cell.config.optimizer.schedule


def _curves(branches: list[Point], trunks: list[Point], alone: list[Point], law: dict[str, Any] | None) -> Picture:
    lines: dict[str, plots.Line] = {}
    seeds: dict[str, list[plots.Line]] = {}
    for trunk in trunks:
        steps, losses = evaluations(trunk.result)
        xs = [step * trunk.tokens / 1e3 / trunk.row["steps"] for step in steps]
        seeds.setdefault(noise.name(trunk.result), []).append((xs, losses))
    lines |= {name: noise.mean_line(each) for name, each in seeds.items()}
    ticks = sorted({round(point.tokens / 1e3) for point in branches})
    kinds: dict[str, list[Point]] = {"branches": branches}
    for own in alone:
        kinds.setdefault(schedule(own), []).append(own)
    for name, those in kinds.items():
        lines[name] = noise.mean_points([p.tokens / 1e3 for p in those], [p.loss for p in those])
    figure, (axes,) = plots.charts()
    plots.draw(
        axes, lines, "thousand tokens trained on", "held-out loss, nats per token", log_x=True, log_y=True, ticks=ticks
    )
    caption = "The trunk at its constant learning rate, its decayed branches"
    caption += ", and runs of their own." if alone else "."
    if law:
        n = list(lines).index("branches")
        tokens = np.geomspace(branches[0].tokens, branches[-1].tokens, 60)
        law_plots.curve(axes, law, {"tokens": tokens}, (tokens / 1e3).tolist(), n)
        law_plots.error_bars(axes, law, lines["branches"], n)
        caption += " Thin, the branches' law with its interval; error bars: their root mean square distance from it."
    return Picture("loss_by_length", caption, figure)
