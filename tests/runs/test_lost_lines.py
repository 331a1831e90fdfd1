"""Lines that were deleted or cut are missed, and nothing is missed of a run that was only killed."""

import json

import pytest

from blobjax.runs.lost_lines import expected_steps, missing_steps
from blobjax.runs.outcome import read
from blobjax.runs.directory import RunDirectory
from blobjax.runs.status import lines, status
from tests.runs.test_ledger import spent, start, stop


def attempt(time, after, up_to, *, every=10, length=60, end=True):
    """The events of an attempt that went from one step to another."""
    found = [start(time, logged_every=every, length=length)]
    found += [{"event": "resume", "time": time, "step": after}] if after else []
    found += [spent(time + 5, after + 1, up_to, train=5)] if up_to > after else []
    return found + ([stop(time + 6, "finished" if up_to == length else "SIGTERM", up_to)] if end else [])


def logged(*steps):
    return [{"step": step, "loss": 2.0, "cross_entropy": 2.0} for step in steps]


TENS = range(10, 61, 10)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (attempt(0, 0, 60), [*TENS]),
        (attempt(0, 0, 35) + attempt(10, 30, 60), [*TENS]),
        # Killed after an entry, and its last checkpoint without a word: the next attempt says how far it came.
        (attempt(0, 0, 12, end=False) + attempt(10, 40, 60), [*TENS]),
        (attempt(0, 0, 40, end=False), [10, 20, 30]),
        # One that died while it compiled, and one that logged more often.
        (attempt(0, 0, 30) + attempt(10, 0, 0, end=False) + attempt(20, 30, 33, every=1), [10, 20, 30, 31, 32, 33]),
        (attempt(0, 0, 25, every=0) + attempt(10, 20, 60), [30, 40, 50, 60]),
        (attempt(0, 0, 55, length=55), [10, 20, 30, 40, 50, 55]),
        # Its first attempt is in no event.
        (attempt(0, 30, 60), [*TENS]),
        ([start(0), spent(5, 1, 60, train=5), stop(6, "finished", 60)], []),
        ([], []),
    ],
)
def test_what_was_to_be_logged(events, expected):
    assert expected_steps(events) == expected


@pytest.mark.parametrize("step", [[1], "x", None, 10**400])
def test_a_line_whose_step_is_none_is_no_line_of_a_step(step):
    assert missing_steps(attempt(0, 0, 60), [*logged(*TENS[1:]), {"step": step, "loss": 1.0}]) == ([10], 6)


def test_a_branch_logs_from_where_it_begins():
    events = [*attempt(0, 0, 0, end=False), {"event": "branch", "time": 1, "step": 30}, *attempt(2, 40, 60)]
    assert expected_steps(events) == [40, 50, 60]


def test_after_a_rollback_the_steps_count_that_stand():
    rollback = {"event": "rollback", "time": 6, "step": 45, "to_step": 20}
    events = [*attempt(0, 0, 45, end=False), rollback, spent(9, 21, 31, train=2), stop(10, "SIGTERM", 31)]
    assert missing_steps(events, logged(10, 20, 30)) == ([], 3)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text("name: x")

    def write(events, metrics):
        for name, content in (("events", events), ("metrics", metrics)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
        return status(str(tmp_path))

    return write


def test_status_says_what_is_missing(run, tmp_path):
    events = attempt(0, 0, 30) + attempt(10, 30, 60)
    assert run(events, logged(*TENS))["notes"] == []
    found = run(events, logged(40, 50, 60))
    (note,) = found["notes"]
    assert note.startswith("metrics.jsonl lacks 3 of the 6 lines that were logged, between step 10 and step 30")
    assert f"note: {note}" in lines(found)
    assert read(RunDirectory(tmp_path)).status == "failed", "its first loss is not that of the first step"
    (note,) = run(events, logged(10, 20, 30, 50, 60))["notes"]
    assert "lacks 1 of the 6 lines that were logged, step 40:" in note
    assert read(RunDirectory(tmp_path)).status == "finished"


def test_status_says_that_events_are_missing(run, tmp_path):
    events = attempt(0, 0, 30) + attempt(10, 30, 60)
    (note,) = run(events[3:], logged(*TENS))["notes"]
    assert note.startswith("events.jsonl begins with an attempt that resumed at step 30")
    (note,) = run([], logged(*TENS))["notes"]
    assert note.startswith("events.jsonl has no start of this run")
    assert run([], [])["notes"] == []
    (tmp_path / "checkpoints" / "30").mkdir(parents=True)
    assert len(run([], [])["notes"]) == 1


def test_status_says_that_the_account_of_energy_is_missing(run, tmp_path):
    events, metrics = attempt(0, 0, 10, length=10), [{**logged(10)[0], "energy_joules": 5.0}]
    (note,) = run(events, metrics)["notes"]
    assert note.startswith("energy/0.json is gone or damaged")
    (tmp_path / "energy").mkdir()
    (tmp_path / "energy" / "0.json").write_text('{"rapl": 5.0}')
    assert run(events, metrics)["notes"] == []
