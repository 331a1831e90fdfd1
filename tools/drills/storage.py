"""Drills on storage and clocks: full, read-only, gone or slow; and a wall clock that is wrong."""

import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.drills.processes import BITWISE
from tools.drills.registry import drill
from tools.drills.run import (
    ENDED_SECONDS,
    FAILED,
    FINISHED,
    ONE,
    PATIENCE_SECONDS,
    RESUMABLE,
    TWO,
    CannotRunError,
    Drills,
    Run,
    check,
)

SHIM = Path(__file__).with_name("shim.c")


def _mount(*arguments: str) -> None:
    if os.geteuid():
        raise CannotRunError("mounting needs root")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise CannotRunError(f"nothing can be mounted here: {done.stderr.strip()}")


@contextmanager
def _mounted(where: Path, *arguments: str) -> Iterator[Path]:
    where.mkdir(parents=True, exist_ok=True)
    _mount(*arguments, str(where))
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def _last_words(run: Run) -> str:
    """The last line with which the product, and no trace, says what was wrong; before it why the last save failed."""
    lines = [line for rank in range(run.setup.processes) for line in run.output(rank).splitlines()]
    ours = [line.removeprefix("blobjax: ") for line in lines if line.startswith("blobjax: ")]
    check(bool(ours), f"nothing was said:\n{run.output()}")
    failed = [line.split("not saved: ")[1].split(";")[0] for line in lines if "not saved: " in line]
    said = ": ".join([*failed[-1:], ours[-1].split("; ")[0] if failed else ours[-1]])
    return said.replace(str(run.directory), "RUN")


def _ends_loudly(drills: Drills, run: Run, fault: Callable[[], None], mend: Callable[[], None]) -> str:
    """A fault of the storage in a run that has saves; then what is promised of all of them."""
    run.start(pace=0.1).wait_for_step(10)
    run.wait_until("two saves", lambda: run.steps()[-1:] >= [8])
    kept = {step: run.state(step) for step in run.steps()}
    began = time.monotonic()
    fault()
    run.end(60)
    codes, took = run.codes(), run.seconds_since(began, *range(run.setup.processes))
    check(FINISHED not in codes and RESUMABLE not in codes, f"exit codes {codes}\n{run.output()}")
    said = _last_words(run)
    mend()
    damaged = [step for step, state in kept.items() if step in run.steps() and run.state(step) != state]
    check(
        run.steps()[-1:] >= [8] and not damaged,
        f"of the saves {sorted(kept)} there are {run.steps()}, damaged {damaged}",
    )
    before = run.steps()[-1]
    run.finish()
    check(run.events("restore")[-1]["step"] == before, f"resumed from {run.events('restore')}, not from {before}")
    run.check_same_end(drills.reference(run.setup))
    return (
        f'ended after {took:.1f} s with exit codes {codes}: "{said}"; saves {sorted(kept)} unharmed; once it was put '
        f"right the same command went on from step {before} and finished; {BITWISE}"
    )


@drill(
    "the disk is filled while the run trains (a tmpfs of 16 MB)",
    "failing saves are said; the run ends, not 0 and not 75; older saves are whole; once mended it goes on from them",
)
def disk_full(drills: Drills) -> str:
    with _mounted(drills.folder / "small", "-t", "tmpfs", "-o", "size=16m", "tmpfs") as disk:
        run = drills.run(ONE, disk / "run")
        filler = disk / "filler"

        def fill() -> None:
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"x" * 65536)
                except OSError:
                    return

        with run:
            return _ends_loudly(drills, run, fill, filler.unlink)


@drill(
    "the directory of checkpoints becomes read-only while the run trains",
    "as for a full disk",
    quick=True,
)
def read_only(drills: Drills) -> str:
    with drills.run(ONE) as run:
        where = str(run.checkpoints)
        if os.geteuid():
            return _ends_loudly(drills, run, lambda: os.chmod(where, 0o555), lambda: os.chmod(where, 0o755))

        def protect() -> None:  # permissions say nothing to root
            _mount("--bind", where, where)
            _mount("-o", "remount,ro,bind", where)

        try:
            return _ends_loudly(
                drills, run, protect, lambda: subprocess.run(["umount", "-l", where], check=True) and None
            )
        finally:
            if os.path.ismount(where):
                subprocess.run(["umount", "-l", where], check=False)


@drill(
    "the run's directory vanishes while it trains, as when a file system is unmounted; later it is back",
    "as for a full disk; nothing is written into a new directory of the same name",
)
def directory_vanishes(drills: Drills) -> str:
    with drills.run(ONE) as run:
        away = run.directory.with_name("away")

        def mend() -> None:
            left = [each.name for each in run.directory.rglob("*")] if run.directory.exists() else []
            check(not left, f"it wrote {left} where its directory had been")
            away.rename(run.directory)

        return _ends_loudly(drills, run, lambda: run.directory.rename(away) and None, mend)


@drill(
    "the run's directory is deleted while it trains: between two saves, and while one is being written",
    "the run ends, not 0 and not 75, and says why; the same command starts anew and comes to the same end",
)
def directory_deleted(drills: Drills) -> str:
    found = []
    for when in ("between two saves", "during a save"):
        with drills.run(ONE) as run:
            run.start(pace=0.1).wait_for_step(10)
            run.wait_until("save", lambda run=run, saving=when != "between two saves": bool(run.unfinished()) == saving)
            mark = time.monotonic()
            shutil.rmtree(run.directory, ignore_errors=True)
            run.end(60)
            codes, took = run.codes(), run.seconds_since(mark, 0)
            check(codes[0] not in (FINISHED, RESUMABLE), f"{when}: exit codes {codes}\n{run.output()}")
            said = _last_words(run)
            shutil.rmtree(run.directory, ignore_errors=True)
            run.finish()
            run.check_same_end(drills.reference(ONE))
        found.append(f'{when}: ended after {took:.1f} s with exit code {codes[0]}: "{said}"')
    return f"{'; '.join(found)}; started anew and finished; {BITWISE}"


class Shim:
    """The C library of `shim.c` in front of a run's processes; `set` works while they run."""

    def __init__(self, folder: Path):
        self._library, self._control = folder / "shim.so", folder / "control"
        if not self._library.exists():
            compiler = shutil.which("gcc") or shutil.which("cc")
            if compiler is None or os.uname().sysname != "Linux":
                raise CannotRunError("needs Linux and a C compiler")
            command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(self._library), str(SHIM), "-ldl"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise CannotRunError(f"shim.c does not compile here: {done.stderr.splitlines()[:1]}")
        self.set()

    def set(self, seconds_per_write: float = 0, clock_ahead: float = 0) -> None:
        """From now on writes take so much longer, and the clock is ahead so far."""
        mode = "r+b" if self._control.exists() else "wb"
        with self._control.open(mode) as file:
            file.write(struct.pack("dd", seconds_per_write, clock_ahead))

    def environment(self, slow_below: Path | None = None) -> dict[str, str]:
        """What a process is to be started with."""
        return {
            "LD_PRELOAD": str(self._library),
            "DRILL_CONTROL": str(self._control),
            "DRILL_SLOW_BELOW": str(slow_below or ""),
        }


@drill(
    "storage of one of two processes is slow: every write and fsync below RUN/checkpoints takes 0.5 s (LD_PRELOAD); "
    "`checkpoint.stall_limit=2 seconds`",
    "training goes on meanwhile; saves that fall due before the one in flight is done are left out, and it is said",
)
def slow_storage(drills: Drills) -> str:
    shim = Shim(drills.folder)
    setup = TWO.but("checkpoint.stall_limit=2 seconds", length=80)
    with drills.run(setup) as run:
        slow = shim.environment(run.checkpoints)
        shim.set(seconds_per_write=0.5)
        run.start(pace=0.1, environment=lambda rank: slow if rank == 1 else {})
        run.end(PATIENCE_SECONDS, FINISHED, since_a_step=True)
        saves, left_out = run.events("save"), run.events("save_skipped")
        longest = max(saves, key=lambda each: each["seconds"])
        stall = max(each["stall_seconds"] for each in saves)
        check(longest["seconds"] > 2, f"storage was not slow: {saves}")
        check(bool(left_out), f"no save was left out: {saves}")
        # Besides the limit there are what this save does before it lets training go on, and the look whether it can.
        check(stall < 2 + 0.6 * longest["seconds"], f"training stood still for {stall:.1f} s: {saves}")
        run.check_same_end(drills.reference(TWO.but(length=80)))
    return (
        f"{len(saves)} saves were written, in up to {longest['seconds']:.1f} s, for at most {stall:.1f} s of which "
        f"training stood still; {len(left_out)} left out after the limit (`save_skipped`); finished; {BITWISE}"
    )


@drill(
    "storage does not answer: a write below RUN/checkpoints takes 10 minutes (`checkpoint.stall_limit=5 seconds`)",
    "the run ends, not 0 and not 75, after the limit or a few of it, and says that storage does not answer",
)
def dead_storage(drills: Drills) -> str:
    shim = Shim(drills.folder)
    setup = ONE.but("checkpoint.stall_limit=5 seconds", length=200)
    with drills.run(setup) as run:
        shim.set()
        run.start(pace=0.1, environment=lambda rank: shim.environment(run.checkpoints)).wait_for_step(10)
        run.wait_until("two saves", lambda: run.steps()[-1:] >= [8])
        mark = time.monotonic()
        shim.set(seconds_per_write=600)
        run.end(60 + ENDED_SECONDS, FAILED)
        took, said = run.seconds_since(mark, 0), _last_words(run)
        check("5 s" in run.output(), f"the limit is not named:\n{run.output()}")
        before = run.steps()[-1]
        run.finish()
        check(run.events("restore")[-1]["step"] == before, f"resumed from {run.events('restore')}, not from {before}")
        run.check_same_end(drills.reference(ONE.but(length=200)))
    return f'exit code 1 after {took:.1f} s: "{said}"; the same command went on from step {before}; {BITWISE}'


@drill(
    "the wall clock of process 1 of two is an hour ahead and jumps back by two hours while they train (LD_PRELOAD); "
    "in another run that of process 0, in which jax keeps its list of the living",
    "process 1: nothing happens; process 0: nothing, or both end and the same command goes on; bitwise as undisturbed",
)
def clock_skew(drills: Drills) -> str:
    shim = Shim(drills.folder)
    setup = TWO.but("checkpoint.every=2 seconds", length=150)
    found = []
    for wrong in (1, 0):
        with drills.run(setup) as run:
            shim.set(clock_ahead=3600)
            begun = time.time()
            run.start(pace=0.1, environment=lambda rank, wrong=wrong: shim.environment() if rank == wrong else {})
            run.wait_for_step(50)
            skew = run.events("start")[0]["time"] - begun
            check((3500 < skew < 3900) == (wrong == 0), f"process 0 started {skew:.0f} s ahead")
            saved = len(run.steps())
            mark = time.monotonic()
            shim.set(clock_ahead=-3600)
            codes = run.end(PATIENCE_SECONDS, since_a_step=True)
            died = any(codes)
            check(bool(saved) and not (died and wrong), f"exit codes {codes}\n{run.output(1)}")
            check(not died or FINISHED not in codes, f"exit codes {codes}")
            took = run.seconds_since(mark, 0, 1)
            if died:
                check("stopped sending heartbeats" in run.output(0), f"another cause:\n{run.output(0)}")
                run.finish()
            run.check_same_end(drills.reference(TWO.but(length=150)))
        end = (
            f"jax took both for dead, exit codes {codes} after {took:.1f} s, resumed and finished"
            if died
            else "finished"
        )
        found.append(f"process {wrong}: an hour ahead for 50 steps, {saved} saves; after the jump {end}")
    return f"{'; '.join(found)}; {BITWISE}"
