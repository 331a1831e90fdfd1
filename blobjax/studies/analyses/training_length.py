"""The loss of many training lengths from one trunk: a run at a constant learning rate, with a decayed branch for each.

A branch costs only what is trained after the checkpoint it begins from; a run of its own costs its whole length (Hägele
et al. 2024). Losses are of held-out text.
"""

from typing import Any

import numpy as np

from blobjax.report import plots
from blobjax.studies.analyses import law_plots
from blobjax.studies.analyses.fits import Point, evaluations, fit_points, held_against, points, value
from blobjax.studies.analyses.reference import SAME
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result

# Relative, of a law's prediction of the longest branch from the shorter ones.
FORETOLD = 0.01


def analyse(results: list[Result]) -> Finding:
    """Branches against runs of their own, the law through the branches, and the price of both."""
    found = sorted(points(results), key=lambda point: point.tokens)
    ended = {point.result.cell.name: point for point in found}
    # A trunk that diverged at its end may have branches from before; there is no price to tell then.
    branches = [point for point in found if point.result.cell.after in ended]
    trunks = {name: ended[name] for name in dict.fromkeys(p.result.cell.after for p in branches)}
    if not branches:
        return Finding(None, ("No branch finished whose trunk did.",), {}, ())
    # Of several runs from the start, of one length and schedule, the best.
    others = [point for point in found if point not in branches and point not in trunks.values()]
    alone = list({(p.tokens, schedule(p)): p for p in sorted(others, key=lambda p: (p.tokens, -p.loss))}.values())
    pairs = [(own, branch) for own in alone for branch in branches if own.tokens == branch.tokens]
    gaps = {branch.result.cell.name: branch.loss - own.loss for own, branch in pairs}
    law, why_not = fit_points("power-tokens", branches)
    together, separate = price(branches, list(trunks.values()))
    claims: list[bool | None] = [gap < SAME for gap in gaps.values()] or [None]
    words = [
        f"{branch.result.cell.name} ends at {branch.loss:.3f}, {own.result.cell.name}, the best of "
        f"{sum(p.tokens == own.tokens and schedule(p) == schedule(own) for p in others)} runs from the start with a "
        f"{schedule(own)} schedule, at {own.loss:.3f} nats per token: {branch.loss - own.loss:+.3f}"
        + ("." if branch.loss - own.loss < SAME else f", more than {SAME} above: not as expected.")
        for own, branch in pairs
    ]
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
            claims.append(abs(last["error"]) < FORETOLD)
            words.append(
                f"Fitted up to {last['up_to']:,.0f} tokens it foretells {last['predicted']:.3f} for the longest, which "
                f"came to {last['measured']:.3f}" + ("." if claims[-1] else ": not as expected.")
            )
    baseline, _ = fit_points("power-flops", branches)
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            "flops_of_trunk_and_branches": together,
            "flops_of_runs_of_their_own": separate,
            "loss_of_branch": {f"{p.tokens:,.0f} tokens": p.loss for p in branches},
            "branch_above_own_run": gaps,
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


def schedule(point: Point) -> str:
    """Of its learning rate."""
    return point.result.cell.config.optimizer.schedule


def _curves(branches: list[Point], trunks: list[Point], alone: list[Point], law: dict[str, Any] | None) -> Picture:
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for trunk in trunks:
        steps, losses = evaluations(trunk.result)
        lines[trunk.result.cell.name] = [step * trunk.tokens / 1e3 / trunk.row["steps"] for step in steps], losses
    ticks = [round(point.tokens / 1e3) for point in branches]
    for name, those in [("branches", branches), *((schedule(own), [own]) for own in alone)]:
        xs, ys = lines.setdefault(name, ([], []))
        xs += [point.tokens / 1e3 for point in those]
        ys += [point.loss for point in those]
    figure, (axes,) = plots.charts()
    plots.draw(
        axes, lines, "thousand tokens trained on", "held-out loss, nats per token", log_x=True, log_y=True, ticks=ticks
    )
    caption = "The trunk at its constant learning rate, its decayed branches, and runs of their own."
    if law:
        n = list(lines).index("branches")
        tokens = np.geomspace(branches[0].tokens, branches[-1].tokens, 60)
        law_plots.curve(axes, law, {"tokens": tokens}, (tokens / 1e3).tolist(), n)
        law_plots.error_bars(axes, law, lines["branches"], n)
        caption += " Thin, the branches' law with its interval; error bars: their root mean square distance from it."
    return Picture("loss_by_length", caption, figure)
