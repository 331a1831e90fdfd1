"""Saves become events once committed, the profiler's window is always closed, and a run told to stop is saved."""

import time

import pytest

from blobjax.config import BatchSizes, Clockwork, Duration
from blobjax.reliability.run_directory import EventLog, read_jsonl
from blobjax.reliability.stopping import LIMIT, Stopping
from blobjax.reliability.timers import Every
from blobjax.training.batches import Position
from blobjax.training.hooks import ProfileHook, SaveHook, StopHook

CLOCKWORK = Clockwork(tokens_per_step=1, flops_per_token=1.0, params=1, tokens_per_epoch=1, length=10)


class Saves:
    """Takes the place of a Checkpointer and writes down what it is asked."""

    def __init__(self):
        self.calls = []

    def save(self, state, step, sequences, data):
        self.calls.append((step, sequences, data))

    def wait(self):
        self.calls.append("wait")


@pytest.fixture
def save(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as events:
        every = Every(Duration.parse("4 steps"), CLOCKWORK)
        yield SaveHook(Saves(), every, 10, Position(2, 100, BatchSizes(8)), "text", events)


def test_a_save_counts_the_sequences_of_a_resumed_run(save, tmp_path):
    assert [step for step in range(1, 11) if save.due(step)] == [4, 8, 10]
    save.run(4, None)
    save.run(4, None)
    assert save._checkpointer.calls == [(4, 116, "text")]
    assert not list(read_jsonl(tmp_path / "events.jsonl")), "a save is an event when it is committed, not before"
    save.finish()
    (event,) = read_jsonl(tmp_path / "events.jsonl")
    assert (event["event"], event["step"]) == ("save", 4)


@pytest.fixture
def stop(save, tmp_path):
    def make(limit=None, began=0.0):
        return StopHook(Stopping(25), limit, began, save, EventLog(tmp_path / "events.jsonl"))

    return make


def test_the_time_limit_counts_from_the_beginning_and_saves(stop, save, tmp_path):
    hook = stop(Duration.parse("1 hour"), time.monotonic() - 3599.9)
    assert not hook.due(3)
    time.sleep(0.11)
    assert hook.due(4)
    assert hook.run(4, None)
    assert hook.reason == LIMIT
    assert save._checkpointer.calls == [(4, 116, "text")]
    assert not list(read_jsonl(tmp_path / "events.jsonl")), "nobody was preempted"


def test_a_signal_is_an_event_and_saves(stop, save, tmp_path):
    hook = stop()
    assert not hook.due(3)
    hook._stopping.request("SIGTERM")
    assert hook.due(4)
    assert hook.run(4, None)
    assert hook.reason == "SIGTERM"
    assert save._checkpointer.calls == [(4, 116, "text")]
    (event,) = read_jsonl(tmp_path / "events.jsonl")
    assert {"event": "preempt", "step": 4, "signal": "SIGTERM", "process": 0}.items() <= event.items()


def test_a_run_is_resumable_once_a_save_is_committed_and_until_it_takes_a_step(stop, save):
    hook = stop()
    assert hook._stopping.resumable
    hook.due(3)
    assert not hook._stopping.resumable
    save.run(4, None)
    hook.due(4)
    assert not hook._stopping.resumable
    save.finish()
    hook.due(5)
    assert hook._stopping.resumable


@pytest.mark.parametrize(
    ("window", "start", "steps", "traced"),
    [((2, 4), 0, 6, True), ((2, 4), 3, 6, True), ((2, 4), 4, 6, False), ((2, 40), 0, 6, True), (None, 0, 6, False)],
    ids=["inside", "resumed within", "resumed after", "run ends first", "none"],
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
