"""Drills on checkpoints: damaged in every way, and a process killed while it saves."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tools.drills.processes import BITWISE
from tools.drills.registry import drill
from tools.drills.run import ENDED_SECONDS, KILLED, ONE, ROOT, TWO, Drills, Run, check

QUARANTINED = "it is put aside, not deleted, with an event; the one before is used; bitwise as undisturbed"


def _largest(folder: Path) -> Path:
    """The file with the most array data in it."""
    return max((each for each in folder.rglob("*") if each.is_file()), key=lambda each: each.stat().st_size)


def _resumes_from_the_one_before(drills: Drills, damage: Callable[[Path], str]) -> str:
    with drills.stopped(ONE) as run:
        *_, before, newest = run.steps()
        what = damage(run.checkpoints / str(newest))
        run.finish()
        told = run.events("quarantine")
        check(len(told) == 1 and told[0]["step"] == newest, f"events of a quarantine: {told}\n{run.output()}")
        check((run.directory / told[0]["moved_to"]).is_dir(), f"there is no {told[0]['moved_to']}")
        check(run.events("restore")[-1]["step"] == before, f"restored {run.events('restore')}")
        run.check_same_end(drills.reference(ONE))
    reason = told[0]["reason"].replace(str(run.directory), "RUN")
    reason = reason if len(reason) < 100 else f"{reason[:100]}…"
    return (
        f'{what}; found ("{reason}"), moved to {told[0]["moved_to"]}, went on from step {before} '
        f"instead of {newest} and finished; {BITWISE}"
    )


@drill("the newest checkpoint's largest file is cut to half of its size", QUARANTINED)
def truncated(drills: Drills) -> str:
    def damage(checkpoint: Path) -> str:
        file = _largest(checkpoint)
        size = file.stat().st_size
        with file.open("r+b") as opened:
            opened.truncate(size // 2)
        return f"{size:,} bytes cut to {size // 2:,}"

    return _resumes_from_the_one_before(drills, damage)


@drill("one bit of array data in the newest checkpoint is flipped", QUARANTINED, quick=True)
def bit_flip(drills: Drills) -> str:
    def damage(checkpoint: Path) -> str:
        file = _largest(checkpoint)
        # In the middle of the file, where it is array data for sure; the drill `bit-flips` looks everywhere.
        place = file.stat().st_size // 2 + drills.random.randrange(64)
        _flip(file, place, drills.random.randrange(8))
        return f"bit flipped in byte {place:,} of {file.stat().st_size:,}"

    return _resumes_from_the_one_before(drills, damage)


def _flip(file: Path, place: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


@drill(
    "40 times: one bit at a random place of any file of a checkpoint is flipped, then `blobjax checkpoint verify`",
    "whenever an array is not what it was, or cannot be read, verify says so and exits 1",
)
def bit_flips(drills: Drills) -> str:
    found = harmless = 0
    with drills.stopped(ONE) as run:
        newest = run.steps()[-1]
        wanted = run.state(newest)
        checkpoint, whole = run.checkpoints / str(newest), run.directory.with_name("whole")
        checkpoint.rename(whole)
        for _ in range(40):
            shutil.copytree(whole, checkpoint)
            files = sorted(each for each in checkpoint.rglob("*") if each.is_file() and each.stat().st_size)
            file = drills.random.choices(files, [each.stat().st_size for each in files])[0]
            _flip(file, drills.random.randrange(file.stat().st_size), drills.random.randrange(8))
            command = [
                sys.executable,
                "-m",
                "blobjax.cli",
                "checkpoint",
                "verify",
                str(run.directory),
                "--step",
                str(newest),
            ]
            code = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120).returncode
            try:
                intact = run.state(newest) == wanted
            except Exception:  # TensorStore raises ValueError and more
                intact = False
            check(code in (0, 1) and (intact or code == 1), f"exit code {code}, and {file} is damaged")
            found += code == 1
            harmless += code == 0
            shutil.rmtree(checkpoint)
        whole.rename(checkpoint)
    return (
        f"{found} of 40 found; in the other {harmless} every array still read bitwise as saved (the bit stood where "
        f"nothing is read); seed {drills.seed}"
    )


@drill("one chunk (a data file) of the newest checkpoint is deleted", QUARANTINED)
def chunk_deleted(drills: Drills) -> str:
    def damage(checkpoint: Path) -> str:
        file = _largest(checkpoint / "params")
        size = file.stat().st_size
        file.unlink()
        return f"{file.relative_to(checkpoint).parent}/… of {size:,} bytes deleted"

    return _resumes_from_the_one_before(drills, damage)


@drill("the newest checkpoint's manifest.ocdbt is overwritten with noise", QUARANTINED)
def manifest_damaged(drills: Drills) -> str:
    def damage(checkpoint: Path) -> str:
        file = checkpoint / "params" / "manifest.ocdbt"
        file.write_bytes(drills.random.randbytes(file.stat().st_size))
        return f"{file.stat().st_size} bytes of noise in params/manifest.ocdbt"

    return _resumes_from_the_one_before(drills, damage)


@drill("the newest checkpoint's own record, _CHECKPOINT_METADATA, is cut to half of its size", QUARANTINED)
def record_damaged(drills: Drills) -> str:
    def damage(checkpoint: Path) -> str:
        file = checkpoint / "_CHECKPOINT_METADATA"
        text = file.read_text()
        file.write_text(text[: len(text) // 2])
        return f"{len(text):,} characters cut to {len(text) // 2:,}"

    return _resumes_from_the_one_before(drills, damage)


@drill(
    "every checkpoint of the run is damaged",
    "all are put aside; it says so, starts again from step 0, and ends the same",
)
def all_damaged(drills: Drills) -> str:
    with drills.stopped(ONE) as run:
        steps = run.steps()
        for step in steps:
            _largest(run.checkpoints / str(step)).unlink()
        run.finish()
        told = [each["step"] for each in run.events("quarantine")]
        check(sorted(told) == steps, f"put aside {told} of {steps}")
        check("starting again from step 0" in run.output(), run.output())
        run.check_same_end(drills.reference(ONE))
    return f"checkpoints {steps} put aside, started again from step 0 and finished; {BITWISE}"


@drill(
    "kill -9 of both processes while a save is in the writing (seen in its unfinished folder, held by SIGSTOP)",
    "the half-written save is no checkpoint and is cleared away; the one before is used; bitwise as undisturbed",
    quick=True,
)
def kill_during_save(drills: Drills) -> str:
    kills = 1 if drills.quick else 5
    found = []
    setup = TWO.but(length=80)
    with drills.run(setup) as run:
        for _ in range(kills):
            before = run.newest_step()
            run.start(pace=0.02).wait_for_step(before + 5)
            unfinished = _stop_within_a_save(run)
            run.send(signal.SIGKILL, 0, 1)
            run.end(ENDED_SECONDS, KILLED)
            check(
                not any((each / "_CHECKPOINT_METADATA").exists() for each in unfinished), f"{unfinished} was finished"
            )
            found.append(f"{unfinished[0].name.split('.')[0]} (newest whole one: {run.steps()[-1:]})")
        run.finish()
        check(not run.unfinished(), f"left behind: {run.unfinished()}")
        run.check_same_end(drills.reference(setup))
    return f"killed in the middle of saving step {', '.join(found)}; cleared away, resumed and finished; {BITWISE}"


def _stop_within_a_save(run: Run) -> list[Path]:
    """Stops both processes at a moment when a save has begun and is not finished."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        run.wait_until("save", run.unfinished)
        run.send(signal.SIGSTOP, 0, 1)
        time.sleep(0.05)  # until both have stopped
        if unfinished := run.unfinished():
            return unfinished
        run.send(signal.SIGCONT, 0, 1)
    check(False, "no save could be caught in the writing")
    return []
