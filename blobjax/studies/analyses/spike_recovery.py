"""Bad data put into a run: what is left of it with no guard, with one that skips, and with one that goes back."""

import math

from blobjax.report import plots
from blobjax.studies.analyses.reference import SAME, listed
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result, grouped

FAULT, GUARD = "fault", "guard"
NO_FAULT, NAN = "none", "nan"
NO_GUARD, ROLLBACK = "none", "rollback"


def steps_lost(result: Result) -> int:
    """Steps that were computed and came to nothing: refused, or undone by going back."""
    skipped = [event["step"] for event in result.events if event["event"] == "skip"]
    undone = [(e["to_step"], e["step"]) for e in result.events if e["event"] == "rollback"]
    # A refused step that was undone later is lost once.
    alone = [step for step in skipped if not any(first < step <= last for first, last in undone)]
    return len(alone) + sum(last - first for first, last in undone)


def analyse(results: list[Result]) -> Finding:
    """Final loss and steps lost of each guard under each fault."""
    faults = {fault: {r.label(GUARD): r for r in cells} for fault, cells in grouped(results, FAULT).items()}
    undisturbed = faults[NO_FAULT][NO_GUARD].final_loss
    faulty = {fault: cells for fault, cells in faults.items() if fault != NO_FAULT}
    words = [f"Without a fault and a guard the run ends at {undisturbed:.3f} nats per token."]
    # Whether a NaN ends a run without a guard, and whether guards get over it.
    whole = {NO_GUARD, ROLLBACK} <= faulty.get(NAN, {}).keys()
    claims: list[bool | None] = [] if whole else [None]
    for fault, cells in faulty.items():
        words.append(
            f"{fault}: {listed({name: result.final_loss for name, result in cells.items()})} nats; steps lost: "
        )
        words[-1] += ", ".join(f"{name} {steps_lost(result)}" for name, result in cells.items()) + "."
        for name, result in cells.items():
            if name == NO_GUARD and fault == NAN:
                claims.append(not math.isfinite(result.final_loss))
                words.append(
                    "A NaN without a guard ends the run." if claims[-1] else "A NaN without a guard did no harm?"
                )
            elif name != NO_GUARD:
                claims.append(result.final_loss - undisturbed < 2 * SAME)
                if not claims[-1]:
                    words.append(
                        f"With the guard {name} the run did not recover from {fault} to within {2 * SAME} nats."
                    )
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={"undisturbed_loss": undisturbed}
        | {f"final_loss_{fault}": {name: r.final_loss for name, r in cells.items()} for fault, cells in faults.items()}
        | {
            f"steps_lost_{fault}": {name: steps_lost(r) for name, r in cells.items()} for fault, cells in faults.items()
        },
        pictures=(_curves(faulty),) if faulty else (),
    )


def _curves(faulty: dict[str, dict[str, Result]]) -> Picture:
    figure, charts = plots.charts(len(faulty), share_y=True)
    for n, (fault, cells) in enumerate(faulty.items()):
        lines = {name: plots.smooth(result.series("cross_entropy"), 5) for name, result in cells.items()}
        y = "cross-entropy, nats per token" if n == 0 else ""
        plots.draw(charts[n], lines, "step", y, marked=False, title=fault, legend=n == 0)
    caption = (
        "Training loss under each fault, by guard; the mean of five steps. A line ends where the loss is not finite."
    )
    return Picture("loss_curves", caption + " What a rollback undid is not in it.", figure)
