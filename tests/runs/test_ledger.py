"""The ledger: every second in one category, whatever the attempts went through."""

import json

import pytest

from blobjax.processes.clock import Clock
from blobjax.runs.ledger import read_ledger
from blobjax.runs.directory import EventLog, read_jsonl


def start(began, **more):
    return {"event": "start", "time": began + 2, "began": began, "length": 100, **more}


def spent(time, first=None, last=None, **seconds):
    steps = {} if first is None else {"first_step": first, "last_step": last}
    return {"event": "spent", "time": time, "seconds": seconds, **steps}


def stop(time, reason="finished", step=100):
    return {"event": "stop", "time": time, "step": step, "reason": reason}


def test_one_attempt_adds_up():
    found = read_ledger([start(0), spent(10, 1, 50, init=3, compile=2, train=5), spent(15, 51, 100, train=5), stop(15)])
    assert found.seconds == {"init": 3, "compile": 2, "train": 10}
    assert (found.wall_seconds, found.goodput) == (15, 10 / 15)
    assert (found.attempts[0].last_step, found.attempts[0].stop["reason"]) == (100, "finished")


def test_steps_after_the_checkpoint_of_a_killed_attempt_are_lost():
    found = read_ledger(
        [
            start(0),
            spent(20, 1, 40, init=4, train=12, data_wait=4),
            # Killed; seen alive for the last time at 23, and started again at 30, from step 30.
            start(30, last_alive=23),
            {"event": "resume", "time": 33, "step": 30},
            spent(60, 31, 100, init=3, train=27),
            stop(60),
        ]
    )
    # A quarter of the 40 steps, and of what they waited for.
    assert found.seconds == {"init": 7, "train": 9 + 27, "data_wait": 3, "lost": 3 + 1, "unaccounted": 3, "down": 7}
    assert found.wall_seconds == 60
    assert [(a.first_step, a.last_step) for a in found.attempts] == [(0, 40), (30, 100)]


def test_an_attempt_that_dies_at_once_does_not_hide_what_was_lost():
    found = read_ledger(
        [
            start(0),
            spent(10, 1, 10, train=10),
            start(10),
            start(20),
            {"event": "resume", "time": 22, "step": 5},
            spent(30, 6, 10, init=5, train=5),
            stop(30, step=10),
        ]
    )
    assert found.seconds["lost"] == 5
    assert found.seconds["train"] == 10
    assert found.wall_seconds == 30


def test_a_rollback_undoes_steps_of_this_attempt_and_of_earlier_ones():
    found = read_ledger(
        [
            start(0),
            spent(10, 1, 10, train=10),
            stop(10, "SIGTERM", 10),
            start(10),
            {"event": "resume", "time": 10, "step": 10},
            spent(20, 11, 20, train=10),
            {"event": "rollback", "time": 21, "step": 20, "to_step": 8},
            spent(35, 9, 20, rollback=3, train=12),
            stop(35, step=20),
        ]
    )
    assert found.seconds == {"train": 8 + 12, "lost": 2 + 10, "rollback": 3}
    assert found.wall_seconds == 35


def test_steps_are_lost_only_once():
    found = read_ledger(
        [
            start(0),
            spent(10, 1, 10, train=10),
            {"event": "rollback", "time": 10, "step": 10, "to_step": 4},
            spent(14, 5, 8, train=4),
            {"event": "rollback", "time": 14, "step": 8, "to_step": 2},
            spent(20, 3, 8, train=6),
            stop(20, step=8),
        ]
    )
    assert found.seconds == {"train": 2 + 6, "lost": 8 + 4}


def test_steps_that_come_again_are_lost_whatever_the_reason():
    """Also where the line that told of it was lost, as on a full disk."""
    found = read_ledger([start(0), spent(10, 1, 10, train=10), spent(15, 6, 10, train=5), stop(15, step=10)])
    assert found.seconds == {"train": 5 + 5, "lost": 5}


def test_a_killed_attempt_came_as_far_as_it_saved():
    found = read_ledger([start(0), spent(10, 1, 10, train=10), {"event": "save", "time": 14, "step": 14}])
    assert found.attempts[0].last_step == 14


def test_what_is_gone_back_over_is_lost_at_once():
    found = read_ledger([start(0), spent(10, 1, 10, train=10), start(10), {"event": "resume", "time": 13, "step": 4}])
    assert found.seconds == {"train": 4, "lost": 6, "unaccounted": 3}


def test_clocks_that_differ_make_no_negative_time():
    found = read_ledger([start(100), spent(120, 1, 5, train=20), start(110), spent(130, 1, 5, train=20), stop(130)])
    assert found.seconds["lost"] == 20
    assert "down" not in found.seconds
    assert any("clocks differ" in note for note in found.notes)


def test_runs_of_earlier_versions_and_strange_lines_are_read():
    old = [{"event": "start", "time": 5.0}, {"event": "save", "time": 8.0, "step": 3}, {"event": 3}, {"time": 2}, {}]
    found = read_ledger([{"event": "save", "time": 1}, *old, stop(9)])
    assert found.seconds == {"unaccounted": 4.0}
    assert found.notes
    assert read_ledger([]).wall_seconds == 0


@pytest.mark.parametrize(("age", "between"), [(0, 10), (3000, 30), (10**6, 60)])
def test_entries_are_few_and_a_death_costs_little(tmp_path, age, between):
    now = [float(age)]
    clock = Clock(began=0.0, clock=lambda: now[0])
    with EventLog(tmp_path / "events.jsonl") as events:
        clock.write(events)
        for step in range(1, 121):
            now[0] += 1
            clock.step(step, events)
    steps = [line["last_step"] for line in read_jsonl(tmp_path / "events.jsonl") if "last_step" in line]
    assert steps[0] == pytest.approx(between, abs=1)
    assert len(steps) == pytest.approx(120 / between, abs=1)


def test_the_clock_puts_every_second_into_one_account(tmp_path):
    now = [100.0]
    clock = Clock(began=98.0, clock=lambda: now[0])
    with EventLog(tmp_path / "events.jsonl") as events:

        def take(seconds):
            now[0] += seconds

        take(1)
        with clock.on("train"):
            for step in (1, 2):
                with clock.on("data_wait"):
                    take(1)
                take(10)
                clock.step(step, events)
                with clock.on("save"), clock.on("other"):
                    take(0.5)
        clock.write(events)
    lines = list(read_jsonl(tmp_path / "events.jsonl"))
    assert [line["seconds"] for line in lines] == [
        {"init": 3, "train": 10, "data_wait": 1},
        {"train": 10, "data_wait": 1, "other": 0.5},
        {"other": 0.5},
    ]
    assert [(line.get("first_step"), line.get("last_step")) for line in lines] == [(1, 1), (2, 2), (None, None)]
    assert sum(sum(line["seconds"].values()) for line in lines) == pytest.approx(now[0] - 98)
    assert json.dumps(lines)
