"""What `blobjax status` says of a run, whatever stands in its files, and that looking does no harm."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from blobjax.runs.ledger import CATEGORIES
from blobjax.runs.directory import RunDirectory, read_jsonl, read_jsonl_backwards
from blobjax.runs.status import CATEGORY_WORDS, lines, status
from tests.runs.test_ledger import spent, start, stop


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text("name: x")
    return tmp_path


def write(run, *events):
    text = "".join(json.dumps(event) + "\n" for event in events)
    (run / "events.jsonl").write_text(text)
    return status(str(run))


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (stop(10), "finished"),
        (stop(10, "SIGTERM", 7), "stopped"),
        ({"event": "stop", "time": 10, "reason": "silent corruption: device 3"}, "stopped"),
        ({"event": "stop", "time": 10, "reason": "HaltedError: halted at step 7: loss is nan"}, "halted"),
        ({"event": "stop", "time": 10, "reason": "OSError: no space left"}, "failed"),
        ({"event": "stop", "time": 10, "reason": "interrupted again, so it ends now", "resumable": True}, "stopped"),
        ({"event": "stop", "time": 10, "reason": "interrupted again, so it ends now", "resumable": False}, "failed"),
        ({"event": "save", "time": 10, "step": 7}, "died"),
    ],
)
def test_how_it_ended(run, end, state):
    found = write(run, start(0), spent(9, 1, 7, train=9), end)
    assert (found["state"], found["since"], found["step"]) == (state, 10, 7)
    assert state in lines(found)[0]


def test_a_restart_says_what_ended_the_attempt_before(run):
    killed, aborted = ({"restart": n, "previous_exit": code} for n, code in ((1, -9), (3, 1)))
    found = write(run, start(0), start(10, supervised=killed), start(20, supervised=aborted), start(30))
    # Restart 2 died before it could write, so the exit code before restart 3 is not that of the attempt above it.
    assert [each["end"] for each in found["attempts"]] == ["died (killed by SIGKILL)", "died", "died", "died"]


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "odd"}',
        '{"event": "odd", "time": null}',
        '{"event": "save", "time": 2}',
        '{"event": "resume", "time": 2, "step": null}',
        '{"event": "rollback", "time": 2, "to_step": "x"}',
        '{"event": "spent", "time": 2, "seconds": [1]}',
        '{"event": "spent", "time": 2, "seconds": {"train": "x", "new": 1}, "first_step": 3}',
        '{"event": "spent", "time": 2, "seconds": {"train": NaN}, "first_step": 9, "last_step": 3}',
        '{"event": "start", "time": 2, "began": "x", "supervised": [1], "length": "x", "last_alive": {}}',
        '{"event": "stragglers", "time": 2, "lag_seconds": "x"}',
        '{"event": "stop", "time": 2, "reason": null}',
        '{"event": [1], "time": 2}',
        '{"event": "stragglers", "time": 2, "lag_seconds": 1, "step": "x"}',
        '{"event": "start", "time": 2, "supervised": {"restart": 1, "previous_exit": -50}}',
        '{"event": "spent", "ti',
        "[" * 100_000,
    ],
)
def test_what_is_not_understood_does_no_harm(run, line):
    (run / "events.jsonl").write_text(f"{json.dumps(start(0))}\n{line}\n")
    (run / "metrics.jsonl").write_text('{"step": null, "loss": "x"}\n')
    found = status(str(run))
    assert lines(found)
    assert json.dumps(found)
    assert all(seconds >= 0 for seconds in found["seconds"].values())


def test_a_run_without_events(run):
    assert status(str(run))["state"] == "not begun"
    assert lines(status(str(run)))


def test_lines_are_read_backwards_as_forwards(tmp_path):
    file = tmp_path / "x.jsonl"
    long = [{"step": step, "text": "é" * (step * 977 % 70_000)} for step in range(40)]
    content = "\n".join(json.dumps(each, ensure_ascii=False) for each in long)
    for end in ("", "\n", '\n{"step": 1, "te'):
        file.write_text(content + end)
        assert list(read_jsonl_backwards(file)) == long[::-1] == list(read_jsonl(file))[::-1]
    assert list(read_jsonl_backwards(tmp_path / "none")) == []


def test_looking_does_not_keep_a_run_from_starting(tmp_path):
    run = RunDirectory(tmp_path)
    run.lock().close()
    done = threading.Event()

    def look():
        while not done.is_set():
            run.in_use()

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            run.lock().close()
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_the_command_needs_no_jax_and_says_what_is_no_run(run):
    write(run, start(time.time() - 20), stop(time.time()))
    program = (
        "import sys; from blobjax.cli import _run; code = _run()[0]; sys.exit(9 if 'jax' in sys.modules else code)"
    )

    def call(*arguments):
        return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)

    done = call("status", str(run), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "finished"
    assert call("status", str(run / "nothing")).returncode == 2
    # The supervisor's own process neither: `train --restarts` of a config that its child refuses.
    bad = call("train", "laptop", f"logging.run_dir={run}", "--restarts", "2")
    assert bad.returncode == 2, bad.stderr


def test_a_passage_sampled_after_the_end_is_in_the_account_and_takes_nothing_back(run):
    found = write(run, start(0), spent(9, 1, 7, train=9), stop(9), spent(12, other=3))
    assert (found["state"], found["wall_seconds"]) == ("finished", 12)
    assert found["seconds"] == {"train": 9, "other": 3}


def test_what_is_not_written_down_is_no_cost_to_look_for(run):
    found = write(run, start(0), {"event": "save", "time": 100, "step": 7})
    assert set(found["seconds"]) == {"unaccounted"}
    assert found["cost_most"] is None


@pytest.mark.parametrize("time", [10**400, 1e300, "x", None])
def test_a_time_that_is_none_does_no_harm(run, time):
    found = write(run, start(0), {"event": "save", "time": time, "step": 7})
    assert lines(found)


def test_an_integer_beyond_every_float_does_no_harm(run):
    huge = 10**400
    (run / "metrics.jsonl").write_text(json.dumps({"step": huge, "loss": huge, "tokens": huge}) + "\n")
    (run / "energy").mkdir()
    (run / "energy" / "0.json").write_text(json.dumps({"nvml": huge, "rapl": 3.0}))
    slow = {"event": "stragglers", "time": 2, "step": huge, "slowest": huge, "lag_seconds": huge}
    restarted = {"restart": 1, "previous_exit": -huge}
    found = write(run, start(0, devices=huge, processes=huge, length=huge), slow, start(3, supervised=restarted))
    assert lines(found)
    assert (found["loss"], found["energy_joules"]) == ("inf", {"rapl": 3.0})
    json.dumps(found["loss"], allow_nan=False)


def test_sampling_at_the_end_has_an_account_of_its_own_and_every_account_its_words(run):
    found = write(run, start(0), spent(9, 1, 7, train=9), stop(9), spent(12, sample=3))
    assert found["seconds"] == {"train": 9, "sample": 3}
    (line,) = (line for line in lines(found) if line.startswith("  sampling a passage"))
    assert "3.0 s" in line
    assert CATEGORY_WORDS.keys() == set(CATEGORIES)


def test_devices_are_those_of_the_attempt_virtual_ones_too(run):
    found = write(run, start(0, devices=8, processes=1), spent(9, 1, 7, train=9), stop(9))
    assert found["attempts"][0]["devices"] == 8
    assert any("step 0 to 7 on 8 devices: finished" in line for line in lines(found))
    several = write(run, start(0, devices=8, processes=2), spent(9, 1, 7, train=9), stop(9))
    assert any("on 8 devices of 2 processes" in line for line in lines(several))
    unknown = lines(write(run, start(0, devices=None), stop(9)))
    assert not any(" on " in line for line in unknown if "attempt 1" in line)


FILES = (
    "energy/0.json",
    "events.jsonl",
    "metrics.jsonl",
    "flow.json",
    "passed_over.json",
    "halt.json",
    "tokenizer.json",
)


def test_pipes_in_place_of_files_keep_nobody_waiting(run):
    (run / "energy").mkdir()
    for name in FILES:
        os.mkfifo(run / name)
    command = [sys.executable, "-m", "blobjax.cli", "status", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
