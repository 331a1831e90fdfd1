"""The profiler's window is always closed, and a run told to stop is saved."""

import time

import pytest

from blobjax.config import Duration
from blobjax.processes.stopping import LIMIT, Stopping
from blobjax.runs.directory import EventLog, read_jsonl
from blobjax.training.hooks import ProfileHook, StopHook


class Saves:
    """Takes the place of a Saver and writes down what it is asked."""

    def __init__(self):
        self.calls = []
        self.standing = False

    def resumable(self):
        return self.standing

    def save_now(self, step, state):
        self.calls.append(step)


@pytest.fixture
def save():
    return Saves()


@pytest.fixture
def stop(save, tmp_path):
    def make(limit=None, began=0.0):
        return StopHook(Stopping(25), limit, began, save, EventLog(tmp_path / "events.jsonl"))

    return make


def test_the_time_limit_counts_from_the_beginning_and_saves(stop, save, tmp_path):
    hour = Duration.parse("1 hour")
    assert not stop(hour, time.monotonic()).due(3)
    hook = stop(hour, time.monotonic() - 3600)
    assert hook.due(4)
    assert hook.run(4, None)
    assert hook.reason == LIMIT
    assert save.calls == [4]
    assert not list(read_jsonl(tmp_path / "events.jsonl")), "nobody was preempted"


def test_a_signal_is_an_event_and_saves(stop, save, tmp_path):
    hook = stop()
    assert not hook.due(3)
    hook._stopping.request("SIGTERM")
    assert hook.due(4)
    assert hook.run(4, None)
    assert hook.reason == "SIGTERM"
    assert save.calls == [4]
    (event,) = read_jsonl(tmp_path / "events.jsonl")
    assert {"event": "preempt", "step": 4, "signal": "SIGTERM", "process": 0}.items() <= event.items()


def test_a_run_is_resumable_once_a_save_is_committed_and_until_it_takes_a_step(stop, save):
    hook = stop()
    assert hook._stopping.resumable()
    hook.due(3)
    assert not hook._stopping.resumable()
    save.standing = True
    assert hook._stopping.resumable()


@pytest.mark.parametrize(
    ("window", "start", "steps", "traced"),
    [((2, 4), 0, 6, True), ((2, 4), 3, 6, True), ((2, 4), 4, 6, False), ((2, 40), 0, 6, True)],
    ids=["inside", "resumed within", "resumed after", "run ends first"],
)
def test_a_trace_is_begun_once_and_always_ended(monkeypatch, tmp_path, window, start, steps, traced):
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda path: calls.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))
    with ProfileHook(window, start, tmp_path) as profile:
        for step in range(start + 1, steps + 1):
            if profile.due(step):
                profile.run(step, None)
    assert calls == (["start", "stop"] if traced else [])
