"""Drills on other hardware: a run goes on with other processes, devices and meshes."""

import math

from tools.drills.registry import drill
from tools.drills.run import ONE, TWO, Drills, Setup, check

# Sums of float32 in another order; 12 steps of training let it grow. A wrong batch would be 1000 times as far off.
TOLERANCE = 2e-5


@drill(
    "a run of two processes goes on as one of four devices, another as four processes, and one as two",
    f"the same batches; every loss within a relative {TOLERANCE:g} of the undisturbed run's: sums in another order",
)
def other_hardware(drills: Drills) -> str:
    found = []
    changes: list[tuple[str, Setup, Setup]] = [
        ("2 processes → 1 with 4 devices", TWO, ONE.but(devices=4, mesh="{data: 2, fsdp: 2}")),
        ("1 process → 2", ONE, TWO),
    ]
    if not drills.quick:
        changes.append(("2 processes → 4", TWO, TWO.but(processes=4, mesh="{data: 2, fsdp: 2}")))
    for what, before, after in changes:
        reference = drills.reference(before).losses()
        with drills.stopped(before) as run:
            at = run.steps()[-1]
            run.finish(setup=after)
            losses = run.losses()
            check(run.events("start")[-1]["processes"] == after.processes, "the number of processes did not change")
            check(losses.keys() == reference.keys(), f"{len(losses)} losses, not {len(reference)}")
            worst = max(abs(losses[step] / reference[step] - 1) for step in reference)
            check(all(math.isfinite(loss) for loss in losses.values()) and worst < TOLERANCE, f"off by {worst:.1g}")
            check(run.events("restore")[-1]["step"] == at, f"resumed from {run.events('restore')}")
        found.append(f"{what}: from step {at}, losses within {worst:.1g}")
    return "; ".join(found)
