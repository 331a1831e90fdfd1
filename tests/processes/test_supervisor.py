"""The supervisor: restarts on failure, not on bad input, not without progress, and passes signals on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blobjax.processes.supervisor import _without_restarts, newest_save, supervise
from blobjax.runs.directory import RunDirectory

# Ends with the exit code that stands in its line of the plan; counts lines in a log.
CHILD = """
import os, sys
with open(sys.argv[1], "a") as log:
    print(os.environ.get("BLOBJAX_RESTART"), os.environ.get("BLOBJAX_PREVIOUS_EXIT"), file=log)
code = int(sys.argv[2].split(",")[len(open(sys.argv[1]).readlines()) - 1])
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def run(tmp_path: Path, codes: list[int], restarts=10, saved=None, clock=time.monotonic):
    """The exit code, what the children were told, and the waits."""
    log, waits = tmp_path / "log", []
    steps = iter(saved or range(1000))
    code = supervise(
        [sys.executable, "-c", CHILD, str(log), ",".join(map(str, codes))],
        restarts,
        progress=lambda: next(steps),
        sleep=waits.append,
        clock=clock,
    )
    return code, log.read_text().splitlines(), waits


def test_restarts_until_it_is_done(tmp_path, capfd):
    code, told, waits = run(tmp_path, [1, -9, 1, 0])
    assert code == 0
    assert told == ["None None", "1 1", "2 -9", "3 1"]
    assert waits == [1, 2, 4]
    assert "killed by SIGKILL; restart 2 of 10 in 2 s" in capfd.readouterr().err


def test_waits_grow_to_a_minute_and_begin_anew_after_a_long_life(tmp_path):
    # An hour is lived by the eighth only.
    lived = [1] * 7 + [3600] + [1] * 2
    now = iter([moment for each in lived for moment in (0, each)])
    _, _, waits = run(tmp_path, [1] * 10, restarts=9, clock=lambda: next(now, 0))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 1, 2]


@pytest.mark.parametrize("final", [2, 75])
def test_never_on_bad_input_nor_where_somebody_wanted_it(tmp_path, final):
    code, told, _ = run(tmp_path, [1, final, 0])
    assert (code, len(told)) == (final, 2)


def test_ends_without_progress_between_two_failures(tmp_path, capfd):
    code, told, _ = run(tmp_path, [1, 1, 1, 0], saved=[-1, 10, 10])
    assert (code, len(told)) == (1, 2)
    assert "nothing was saved since" in capfd.readouterr().err


def test_ends_when_its_restarts_are_used_up(tmp_path):
    code, told, _ = run(tmp_path, [-15, 1, -9, 0], restarts=2)
    assert (code, len(told)) == (128 + 9, 3)


def test_the_command_is_the_same_but_for_the_restarts():
    given = ["train", "--restarts", "3", "laptop", "name=x", "--restarts=4", "--coordinator", "a:1"]
    assert _without_restarts(given) == ["train", "laptop", "name=x", "--coordinator", "a:1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on_and_end_it(tmp_path, number):
    ready = tmp_path / "ready"
    child = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)"
    )
    program = (
        "import sys; from blobjax.processes.supervisor import supervise\n"
        f"sys.exit(supervise([sys.executable, '-c', {child!r}], 3, progress=lambda: 0))"
    )
    with subprocess.Popen([sys.executable, "-c", program], env=dict(os.environ)) as supervisor:
        deadline = time.monotonic() + 60
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        supervisor.send_signal(number)
        assert supervisor.wait(timeout=60) == 75


def test_progress_is_what_is_saved_whether_or_not_it_was_told(tmp_path):
    run = RunDirectory(tmp_path)
    assert newest_save(run) == -1
    run.events.write_text('{"event": "save", "step": 4}\n{"event": "save"}\n{"event": "spent", "step": 9}\n')
    assert newest_save(run) == 4
    for name in ("8", "12.orbax-checkpoint-tmp"):  # whole, and not
        (run.checkpoints / name).mkdir(parents=True)
    assert newest_save(run) == 8


def test_a_save_that_is_not_finite_is_no_progress_while_its_folder_is_there(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (4, 8, 12):
        (run.checkpoints / str(step)).mkdir(parents=True)
    good, bad = '{"event": "save", "step": %d, "finite": true}\n', '{"event": "save", "step": %d, "finite": false}\n'
    run.events.write_text(good % 4 + bad % 8 + bad % 12)
    assert newest_save(run) == 4
    # Saved again after a restart that went back.
    run.events.write_text(good % 4 + bad % 8 + bad % 12 + good % 8)
    assert newest_save(run) == 8


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_child_does_not_outlive_its_supervisor(tmp_path):
    ready, told = tmp_path / "ready", tmp_path / "told"
    child = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(told)!r}).touch(), sys.exit(75)))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)"
    )
    program = (
        "import sys; from blobjax.processes.supervisor import supervise\n"
        f"supervise([sys.executable, '-c', {child!r}], 3, progress=lambda: 0)"
    )
    deadline = time.monotonic() + 60
    with subprocess.Popen([sys.executable, "-c", program]) as supervisor:
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        supervisor.kill()
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert told.exists()


def test_the_supervisor_starts_no_jax():
    program = "import sys, blobjax.processes.supervisor, blobjax.runs.status; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
