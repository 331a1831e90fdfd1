"""A process that hangs writes where each thread stands, and ends; one that does not is left alone."""

import subprocess
import sys
import time

import pytest

from blobjax.processes.watchdog import PATIENCE, Watchdog
from blobjax.runs.directory import EventLog, read_jsonl

CHILD = """
import ctypes, sys, time
from pathlib import Path
from blobjax.runs.directory import EventLog
from blobjax.processes import watchdog as module
from blobjax.processes.watchdog import Watchdog
module._LINGER_SECONDS = 0

def the_place_that_hangs():
    {hang}

with EventLog(Path("events.jsonl")) as events, Watchdog({limit}, process=3) as watchdog:
    watchdog.start("compiling")
    {write_to}
    {beat}
    the_place_that_hangs()
"""
WRITE = "watchdog.write_to(Path('.'), events)"
BEAT = "watchdog.beat('the step after 7')"


def run(tmp_path, hang: str, limit: float = 1.0, write_to: str = WRITE, beat: str = BEAT):
    code = CHILD.format(hang=hang, limit=limit, write_to=write_to, beat=beat)
    return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)


def test_a_hang_in_python_is_written_down_and_ends_the_process(tmp_path):
    done = run(tmp_path, "time.sleep(1e6)")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == (
        "blobjax: process 3: no progress for 1 s in the step after 7 (reliability.hang_limit); its threads' stacks go "
        "to hang-3.txt"
    )
    assert "in the_place_that_hangs" in (tmp_path / "hang-3.txt").read_text()
    (event,) = read_jsonl(tmp_path / "events.jsonl")
    assert {"event": "hang", "doing": "the step after 7", "process": 3}.items() <= event.items()


def test_a_hang_that_holds_pythons_lock_is_ended_by_the_timer_in_c(tmp_path):
    done = run(tmp_path, "time.sleep(0.3); ctypes.PyDLL(None).sleep(1000)")
    assert done.returncode == 1
    assert "in the_place_that_hangs" in (tmp_path / ".blobjax-hang-3").read_text()
    # The next attempt gives it its name.
    with Watchdog(100, process=3) as watchdog:
        watchdog.write_to(tmp_path, EventLog(None))
    assert "in the_place_that_hangs" in (tmp_path / "hang-3.txt").read_text()
    assert not (tmp_path / ".blobjax-hang-3").exists()


def test_before_there_is_a_run_directory_the_stacks_go_to_stderr(tmp_path):
    done = run(tmp_path, "time.sleep(1e6)", write_to="")
    assert done.returncode == 1
    assert "in the_place_that_hangs" in done.stderr
    assert not list(tmp_path.glob("hang*"))


def test_progress_and_patience_keep_it_alive(tmp_path):
    beats = (
        "[(time.sleep(0.6), watchdog.beat()) for _ in range(5)]\n    with watchdog.patience('saving'): time.sleep(3)"
    )
    done = run(tmp_path, "pass", limit=2.5, beat=beats)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_patience_ends_too(tmp_path):
    done = run(tmp_path, "pass", limit=0.1, beat="with watchdog.patience('saving'): time.sleep(1e6)")
    assert done.returncode == 1
    assert f"no progress for {0.1 * PATIENCE:g} s in saving" in done.stderr


def test_without_a_limit_nothing_is_watched(tmp_path):
    with Watchdog(None, process=0) as watchdog:
        watchdog.start("compiling")
        watchdog.write_to(tmp_path / "run", EventLog(None))
        watchdog.beat()
    assert not (tmp_path / "run").exists()


def test_a_beat_costs_next_to_nothing():
    with Watchdog(600, process=0) as watchdog:
        watchdog.start("compiling")
        began = time.process_time()
        for _ in range(10_000):
            watchdog.beat()
        assert time.process_time() - began < 1.0, "100 µs would still be little; it takes about one"


@pytest.mark.parametrize("limit", [600, None])
def test_an_error_ends_the_watch(limit):
    def fail():
        with Watchdog(limit, process=0) as watchdog:
            watchdog.start("compiling")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
