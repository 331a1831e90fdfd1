"""Bad data put into a run: what is left of it with no guard, with one that skips, and with one that goes back."""

import math

from blobjax.report import plots
from blobjax.runs.ledger import number
from blobjax.studies import noise
from blobjax.studies.analyses.reference import SAME, gap, listed
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.noise import Mean
from blobjax.studies.results import Result, grouped

FAULT, GUARD = "fault", "guard"
NO_FAULT, NAN = "none", "nan"
NO_GUARD, ROLLBACK = "none", "rollback"


def steps_lost(result: Result) -> int:
    """Steps that were computed and came to nothing: refused, or undone by going back."""
    skipped = [int(number(event.get("step"))) for event in result.events if event["event"] == "skip"]
    rollbacks = [event for event in result.events if event["event"] == "rollback"]
    undone = [(int(number(event.get("to_step"))), int(number(event.get("step")))) for event in rollbacks]
    # A refused step that was undone later is lost once.
    alone = [step for step in skipped if not any(first < step <= last for first, last in undone)]
    return len(alone) + sum(last - first for first, last in undone)


def analyse(results: list[Result]) -> Finding:
    """Final loss and steps lost of each guard under each fault."""
    faults = grouped(results, FAULT)
    undisturbed = noise.each(faults[NO_FAULT], GUARD, lambda result: result.final_loss)[NO_GUARD]
    faulty = {fault: cells for fault, cells in faults.items() if fault != NO_FAULT}
    losses = {fault: noise.each(cells, GUARD, lambda result: result.final_loss) for fault, cells in faults.items()}
    lost = {fault: noise.each(cells, GUARD, steps_lost) for fault, cells in faults.items()}
    words = [f"Without a fault and a guard the run ends at {undisturbed.shown()} nats per token."]
    # Whether a NaN ends a run without a guard, and whether guards get over it.
    whole = {NO_GUARD, ROLLBACK} <= losses.get(NAN, {}).keys()
    claims: list[bool | None] = [] if whole else [None]
    for fault, cells in faulty.items():
        lose = listed(lost[fault], ".4g")
        words.append(f"{fault}: {listed(losses[fault])} nats; steps lost: {lose}.")
        behind = _behind(results, fault)
        for name, group in grouped(cells, GUARD).items():
            if name == NO_GUARD and fault == NAN:
                claims.append(noise.always([not math.isfinite(result.final_loss) for result in group]))
                words.append(
                    noise.claim(claims[-1], "A NaN without a guard ends the run.", "A NaN without a guard did no harm?",
                                "a NaN without a guard ends the run", "it did with some seeds only")
                )  # fmt: skip
            elif name != NO_GUARD:
                more = behind[name]
                claims.append(more.below(2 * SAME))
                off = more.shown("+.3f")
                yes = f"With the guard {name} the run ends {off} nats from the undisturbed one after {fault}."
                no = f"With the guard {name} the run did not recover from {fault} to within {2 * SAME} nats."
                asked = f"with the guard {name} the run recovers from {fault} to within {2 * SAME} nats ({off})"
                words.append(noise.claim(claims[-1], yes, no, asked, more.doubt))
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={"undisturbed_loss": undisturbed}
        | {f"final_loss_{fault}": each for fault, each in losses.items()}
        | {f"steps_lost_{fault}": each for fault, each in lost.items()},
        pictures=(_curves(faulty),) if faulty else (),
    )


def _behind(results: list[Result], fault: str) -> dict[str, Mean]:
    """Guard to the final loss under a fault above that of the undisturbed run of the same seed, nats."""

    def measure(cells: list[Result]) -> dict[str, float]:
        by_fault = {name: {r.label(GUARD): r for r in group} for name, group in grouped(cells, FAULT).items()}
        return {name: gap(result, by_fault[NO_FAULT][NO_GUARD]) for name, result in by_fault[fault].items()}

    return noise.across(results, measure)


def _curves(faulty: dict[str, list[Result]]) -> Picture:
    figure, charts = plots.charts(len(faulty), share_y=True)
    first = min(result.cell.config.seed for cells in faulty.values() for result in cells)
    seeds = {result.cell.config.seed for cells in faulty.values() for result in cells}
    broken = undone = False
    for n, (fault, cells) in enumerate(faulty.items()):
        # Of one seed: a mean over several would end where the first of them does.
        shown = {result.label(GUARD): result for result in cells if result.cell.config.seed == first}
        lines = {name: plots.smooth(result.series("cross_entropy"), 5) for name, result in shown.items()}
        broken = broken or any(not math.isfinite(y) for _, ys in lines.values() for y in ys)
        undone = undone or any(e["event"] == "rollback" for result in shown.values() for e in result.events)
        y = "cross-entropy, nats per token" if n == 0 else ""
        plots.draw(charts[n], lines, "step", y, marked=False, title=fault, legend=n == 0)
    caption = f"Training loss under each fault, by guard{', of the first seed' if len(seeds) > 1 else ''}; the mean of "
    caption += "five steps."
    caption += " A line ends where the loss is not finite." if broken else ""
    caption += " What a rollback undid is not in it." if undone else ""
    return Picture("loss_curves", caption, figure)
