"""Drills on what comes in: numbers that are none, and token shards that rot."""

import shutil
import signal
import time
from pathlib import Path

from tools.drills.processes import BITWISE
from tools.drills.registry import drill
from tools.drills.run import BAD_INPUT, ENDED_SECONDS, KILLED, ONE, PATIENCE_SECONDS, Drills, Setup, check

# Batches of 8 sequences: those of steps 11 to 14.
FIRST, LAST = 80, 112


@drill(
    "the loss of steps 11 to 14 is NaN (`faults.nan`), under a guard that rolls back; then kill -9",
    "the steps are refused, the data passed over, the run finishes; killed or not, it comes to the same end bitwise",
    quick=True,
)
def nan_at_step(drills: Drills) -> str:
    setup = ONE.but(
        f"faults.nan=[{FIRST}, {LAST}]",
        "conditioning.guard={patience: 2, rollback: {snapshots: 2, snapshot_every: 5, margin: 0, skip: 1}}",
        length=32,
    )
    reference = drills.reference(setup)
    (rollback,) = reference.events("rollback")
    check(all(isinstance(loss, float) for loss in reference.losses().values()), f"losses {reference.losses()}")
    check(rollback["passed_over"][0] <= FIRST and rollback["passed_over"][1] >= LAST - 8, f"passed over {rollback}")
    with drills.run(setup) as run:
        run.start(pace=0.1)
        run.wait_until("rollback", lambda: run.events("rollback"))
        again = run.newest_step()
        run.wait_until("two more steps", lambda: run.newest_step() >= again + 2)
        run.send(signal.SIGKILL, 0)
        run.end(ENDED_SECONDS, KILLED)
        run.finish()
        run.check_same_end(reference)
    refused = len(reference.events("skip"))
    return (
        f"{refused} steps refused, at step {rollback['step']} back to step {rollback['to_step']}, sequences "
        f"{rollback['passed_over']} passed over, all {len(reference.losses())} losses are numbers; killed after the "
        f"rollback and resumed: {BITWISE.replace('undisturbed', 'not killed')}"
    )


@drill(
    "a byte of a prepared token shard is changed between two attempts",
    "exit code 2 and one line that names the file and what to do; that done, the run goes on; bitwise as undisturbed",
    quick=True,
)
def corrupt_shard(drills: Drills) -> str:
    prepared = drills.folder / f"prepared-{drills.random.randrange(10**6)}"
    with drills.stopped(ONE) as run:
        setup = run.setup.but(f"data.prepared_dir={prepared}")
        shard = drills.random.choice(_prepare(drills, setup))
        content = bytearray(shard.read_bytes())
        place = drills.random.randrange(len(content))
        content[place] ^= 1 + drills.random.randrange(255)
        shard.write_bytes(content)
        before = run.steps()
        run.start(setup=setup)
        mark = time.monotonic()
        run.end(PATIENCE_SECONDS, BAD_INPUT)
        took = run.seconds_since(mark, 0)
        lines = [line for line in run.output().splitlines() if line.startswith("blobjax:")]
        check(len(lines) == 1 and str(shard) in lines[0], f"it said {run.output()}")
        check(run.steps() == before, f"checkpoints {before} became {run.steps()}")
        shutil.rmtree(shard.parent)  # what the line says
        run.finish()
        run.check_same_end(drills.reference(ONE))
    said = lines[0].replace(str(prepared), "PREPARED").removeprefix("blobjax: ").replace(shard.parent.name, "DOMAIN")
    return f'byte {place:,} changed; exit code 2 after {took:.1f} s: "{said}"; done so, went on and finished; {BITWISE}'


def _prepare(drills: Drills, setup: Setup) -> list[Path]:
    """Prepares the data where the drill may spoil it; returns the shards that are trained on."""
    from blobjax import data as blobjax_data
    from blobjax.config import load

    config = load("laptop", setup.arguments(drills.folder)[2:])
    return [
        domain.folder / domain.manifest["shards"]["train"]["file"]
        for domain in blobjax_data.prepare(config).domains.values()
    ]
