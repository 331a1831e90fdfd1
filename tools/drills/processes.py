"""Drills on processes: killed, told to stop, failing, stopped, hanging, or started twice."""

import os
import signal
import time
from pathlib import Path

from tools.drills.registry import drill
from tools.drills.run import (
    BAD_INPUT,
    ENDED_SECONDS,
    FAILED,
    FINISHED,
    FOUR,
    HEARTBEAT_SECONDS,
    ONE,
    PATIENCE_SECONDS,
    RESUMABLE,
    TWO,
    CannotRunError,
    Drills,
    Run,
    check,
)

BITWISE = "losses and last state bitwise those of the undisturbed run"
# Short, so that a drill on a hang is not long; what comes before the second step, and saving, have ten times as long.
HANG_SECONDS = 10
WATCHED = TWO.but(f"reliability.hang_limit={HANG_SECONDS} seconds")


@drill(
    "kill -9 of a random one of two processes at a random moment of start-up, training or a save, 20 times in one run",
    "the other ends within the heartbeat and 2 s; the 21st attempt finishes; both bitwise as undisturbed",
    quick=True,
)
def kill_at_random(drills: Drills) -> str:
    kills = 3 if drills.quick else 20
    setup = TWO.but(length=80 if drills.quick else 600)
    reference = drills.reference(setup)
    moments, seconds = [], []
    began, startup = time.monotonic(), 0.0
    with drills.run(setup) as run:
        for number in range(kills):
            victim = drills.random.randrange(2)
            newest, starts = (run.steps() or [0])[-1], len(run.events("start"))
            started = time.monotonic()
            run.start(pace=0.04)
            # The first is killed while it trains, and says how long a start takes; so are two of three others.
            if number and drills.random.random() < 1 / 3:
                time.sleep(drills.random.uniform(0, startup))
            else:
                run.wait_for_start(starts)
                run.wait_for_step(newest + 1)
                startup = time.monotonic() - started
                # On average five saves further, and at any moment of a step or a save.
                run.wait_for_step(newest + drills.random.randint(1, 12 if drills.quick else 40))
                time.sleep(drills.random.uniform(0, 0.3))
            check(run.running() == [0, 1], f"ended before it was killed: {run.codes()}\n{run.output()}")
            training = len(run.events("start")) > starts
            saving = bool(run.unfinished())
            mark = run.send(signal.SIGKILL, victim)
            seconds.append(_others_end(run, victim, mark, training))
            moments.append("a save" if training and saving else "training" if training else "start-up")
        attempts = run.attempts
        took = time.monotonic() - began
        run.finish()
        run.check_same_end(reference)
        resumed = [each["step"] for each in run.events("restore")]
        check(drills.quick or resumed[-1:] > [20], f"there was little to resume from: {resumed}")
    alone = [each for each in seconds if each is not None]
    hit = ", ".join(f"{moments.count(each)} in {each}" for each in ("start-up", "training", "a save"))
    waited = f"; {len(seconds) - len(alone)} times it waited for the dead to come, and the drill ended it"
    return (
        f"{kills} kills in {took:.0f} s ({hit}; seed {drills.seed}); the other ended by itself after at most "
        f"{max(alone, default=0):.1f} s{waited if len(alone) < len(seconds) else ''}; {len(resumed)} attempts resumed "
        f"from a checkpoint, attempt {attempts + 1} from step {resumed[-1] if resumed else 0}, and finished; {BITWISE}"
    )


def _others_end(run: Run, victim: int, mark: float, training: bool) -> float | None:
    """Seconds until the other process had ended; None where it waited for a process that never came, and was killed.

    During start-up a process cannot tell one that is late from one that is dead: it waits for five minutes, unless
    whoever started both (a cluster, launch/local.py) ends it, as is done here.
    """
    other = 1 - victim
    bound = ENDED_SECONDS if training else HEARTBEAT_SECONDS + 5
    while run.running() and time.monotonic() < mark + bound:
        time.sleep(0.01)
    if not run.running():
        check(run.codes()[other] != FINISHED, "the other process finished as if nothing had happened")
        return run.seconds_since(mark, other)
    check(not training, f"process {other} still ran {bound} s after the death of {victim}")
    run.kill_all()
    return None


@drill(
    "SIGTERM to one process of four (of two in `make test`), while all train",
    "all agree on a step, save it, exit 75; the same command finishes; bitwise as undisturbed",
    quick=True,
)
def sigterm_to_one(drills: Drills) -> str:
    setup = TWO if drills.quick else FOUR
    with drills.run(setup) as run:
        run.start(pace=0.1).wait_for_step(6)
        mark = run.send(signal.SIGTERM, setup.processes - 1)
        run.end(ENDED_SECONDS, RESUMABLE)
        took = run.seconds_since(mark, *range(setup.processes))
        (told,) = run.events("preempt")
        check(told["signal"] == "SIGTERM" and told["process"] == setup.processes - 1, f"the event says {told}")
        check(run.steps()[-1] == told["step"], f"stopped at {told['step']}, saved {run.steps()}")
        run.finish()
        run.check_same_end(drills.reference(setup))
    return (
        f"all {setup.processes} exited 75 within {took:.1f} s, step {told['step']} saved; event `preempt` names "
        f"process {told['process']}; resumed and finished; {BITWISE}"
    )


@drill(
    "kill -9 of one of two processes while both train",
    "the other is down within the heartbeat and 2 s and does not exit 0 or 75; bitwise as undisturbed after a resume",
)
def death_of_one(drills: Drills) -> str:
    found = []
    for victim in (0, 1):
        with drills.run(TWO) as run:
            run.start(pace=0.1).wait_for_step(10)
            mark = run.send(signal.SIGKILL, victim)
            codes = run.end(ENDED_SECONDS)
            check(codes[1 - victim] not in (FINISHED, RESUMABLE), f"exit codes {codes}")
            found.append(
                f"process {victim} killed: the other exited {codes[1 - victim]} after "
                f"{run.seconds_since(mark, 1 - victim):.1f} s"
            )
            run.finish()
            run.check_same_end(drills.reference(TWO))
    return f"{'; '.join(found)}; resumed and finished; {BITWISE}"


@drill(
    "an exception in one of two processes at step 10",
    "both are down within the heartbeat and 2 s; the traceback stands in the log of the one that raised it",
    quick=True,
)
def exception_in_one(drills: Drills) -> str:
    with drills.run(TWO) as run:
        run.start("exception", process=1, step=10, pace=0.1)
        run.wait_for_step(8)
        mark = time.monotonic()
        codes = run.end(ENDED_SECONDS + 5)
        took = run.seconds_since(mark, 0, 1)
        check(codes[1] == FAILED and codes[0] not in (FINISHED, RESUMABLE), f"exit codes {codes}")
        check("RuntimeError: the drill's exception" in run.output(1), "the cause is not in the log of process 1")
        run.finish()
        run.check_same_end(drills.reference(TWO))
    return (
        f"exit codes {codes}, both down {took:.1f} s after step 8; the traceback is in the log of process 1; resumed "
        f"and finished; {BITWISE}"
    )


@drill(
    "SIGSTOP of one of two processes while both train, SIGCONT once the other has ended",
    "the other is down within the heartbeat and 2 s; the one that was stopped ends too once it goes on",
)
def sigstop(drills: Drills) -> str:
    found = []
    for victim in (0, 1):
        with drills.run(TWO) as run:
            run.start(pace=0.1).wait_for_step(8)
            mark = run.send(signal.SIGSTOP, victim)
            run.wait_for_end_of(1 - victim, ENDED_SECONDS)
            other = run.seconds_since(mark, 1 - victim)
            mark = run.send(signal.SIGCONT, victim)
            codes = run.end(ENDED_SECONDS)
            check(FINISHED not in codes, f"exit codes {codes}")
            found.append(
                f"process {victim} stopped: the other exited {codes[1 - victim]} after {other:.1f} s, itself "
                f"{codes[victim]} {run.seconds_since(mark, victim):.1f} s after SIGCONT"
            )
            run.finish()
            run.check_same_end(drills.reference(TWO))
    return f"{'; '.join(found)}; resumed and finished; {BITWISE}"


@drill(
    f"Python waits for a lock for ever in one of two processes (`reliability.hang_limit={HANG_SECONDS} seconds`)",
    "every process writes its threads' stacks to RUN/hang-PROCESS.txt and exits 1 at the limit",
)
def python_hang(drills: Drills) -> str:
    return _hang(drills, "hang", "_hang")


@drill(
    f"the data source of one of two processes never answers again (`reliability.hang_limit={HANG_SECONDS} seconds`)",
    "every process writes its threads' stacks to RUN/hang-PROCESS.txt and exits 1 at the limit",
    quick=True,
)
def data_hang(drills: Drills) -> str:
    return _hang(drills, "data", "sequences")


def _hang(drills: Drills, fault: str, culprit: str) -> str:
    with drills.run(WATCHED) as run:
        run.start(fault, process=1, step=10, pace=0.1)
        run.wait_for_step(8)
        mark = time.monotonic()
        run.end(HANG_SECONDS + ENDED_SECONDS)
        codes, took = run.codes(), run.seconds_since(mark, 0, 1)
        check(codes[1] == FAILED and codes[0] not in (FINISHED, RESUMABLE), f"exit codes {codes}")
        stacks = sorted(run.directory.glob("hang-*.txt"))
        check(run.directory / "hang-1.txt" in stacks, f"the stacks of process 1 are missing: {stacks}\n{run.output(1)}")
        check(culprit in (run.directory / "hang-1.txt").read_text(), f"{culprit} is not in the stacks of process 1")
        told = [each["process"] for each in run.events("hang")]
        run.finish()
        run.check_same_end(drills.reference(TWO))
    return (
        f"exit codes {codes}, both down {took:.1f} s after step 8; {' and '.join(each.name for each in stacks)} "
        f"written, the stack of process 1 names `{culprit}`; event `hang` of process {told}; resumed and finished; "
        f"{BITWISE}"
    )


@drill(
    "the same command a second time while the run goes on",
    "the second is refused with exit code 2 and one line; the first finishes undisturbed",
    quick=True,
)
def two_in_one_directory(drills: Drills) -> str:
    with drills.run(ONE) as first, Run(first.directory.with_name("second"), ONE) as second:
        first.start(pace=0.3).wait_for_step(2)
        second.directory = first.directory
        second.start()
        mark = time.monotonic()
        second.end(PATIENCE_SECONDS, BAD_INPUT)
        took = second.seconds_since(mark, 0)
        lines = [line for line in second.output().splitlines() if line.startswith("blobjax:")]
        check(len(lines) == 1 and "in use by another run" in lines[0], f"it said {second.output()}")
        check(first.running() == [0], "the first had ended, so nothing was shown")
        first.end(PATIENCE_SECONDS, FINISHED, since_a_step=True)
        first.check_same_end(drills.reference(ONE))
    said = lines[0].replace(str(first.directory), "RUN").removeprefix("blobjax: ").split(";")[0]
    return f'exit code 2 after {took:.1f} s: "{said}"; the first finished; {BITWISE}'


@drill(
    "a run under `--restarts 5`: kill -9 of the training process three times, each after another save",
    "it is started again by itself and finishes; `blobjax status` accounts for every second; bitwise as undisturbed",
)
def supervised(drills: Drills) -> str:
    if not Path("/proc/self/task").exists():
        raise CannotRunError("needs Linux's /proc to find the training process")
    setup = ONE.but(length=400)
    with drills.run(setup) as run:
        began = time.monotonic()
        run.start(options=("--restarts", "5"))
        saves = 0
        for kill in range(3):
            run.wait_until(f"start {kill + 1}", lambda: len(run.events("start")) > kill)  # noqa: B023
            run.wait_until("save", lambda: len(run.events("save")) >= saves + 2)  # noqa: B023
            saves = len(run.events("save"))
            (trainer,) = run.children(0)
            os.kill(trainer, signal.SIGKILL)
        run.end(PATIENCE_SECONDS, FINISHED, since_a_step=True)
        took = run.seconds_since(began, 0)
        run.check_same_end(drills.reference(setup))
        status = run.status()
    seconds = status["seconds"]
    check(abs(sum(seconds.values()) - status["wall_seconds"]) < 0.5, f"{seconds} of {status['wall_seconds']}")
    check(
        status["wall_seconds"] <= took + 1 and took - status["wall_seconds"] < 10, f"{status['wall_seconds']} of {took}"
    )
    check(len(status["attempts"]) == 4, f"{len(status['attempts'])} attempts")
    costly = ", ".join(f"{name} {seconds[name]:.1f}" for name in sorted(seconds, key=lambda name: -seconds[name])[:4])
    return (
        f"4 attempts, exit code 0; `blobjax status` accounts for {sum(seconds.values()):.1f} of {took:.1f} s measured "
        f"from outside ({costly}); {BITWISE}"
    )
