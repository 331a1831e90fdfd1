"""Saves become events once committed, the profiler's window is always closed, and signals stop a run, saved."""

import os
import signal
import time

import pytest

from blobjax.config import BatchSizes, Clockwork, Duration
from blobjax.reliability.run_directory import EventLog, read_jsonl
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


def test_the_time_limit_counts_from_the_beginning_and_saves(save):
    with StopHook(Duration.parse("1 hour"), time.monotonic() - 3599.9, save) as stop:
        assert not stop.due(1)
        time.sleep(0.11)
        assert stop.due(2)
        assert stop.run(2, None)
    assert stop.reason == "wall-clock limit"
    assert save._checkpointer.calls == [(2, 100, "text")]


@pytest.fixture
def ctrl_c():
    """Python's own handler, which is not there where the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_the_first_signal_stops_after_a_step_and_the_second_at_once(save):
    before = signal.getsignal(signal.SIGINT)
    with StopHook(None, time.monotonic(), save) as stop:
        assert not stop.due(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.due(2)
        assert stop.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


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
