"""The profiler's window is always closed, and time limits and signals stop a run, saved."""

import os
import signal
import time

import pytest

from blobjax.config import Duration
from blobjax.training.hooks import ProfileHook, StopHook


class Saves:
    """Takes the place of a SaveHook and writes down what it is asked."""

    def __init__(self):
        self.calls = []

    def save_now(self, step, state):
        self.calls.append(step)


@pytest.fixture
def save():
    return Saves()


def test_the_time_limit_counts_from_the_beginning_and_saves(save):
    with StopHook(Duration.parse("1 hour"), time.monotonic() - 3599.9, save) as stop:
        assert not stop.due(1)
        time.sleep(0.11)
        assert stop.due(2)
        assert stop.run(2, None)
    assert stop.reason == "wall-clock limit"
    assert save.calls == [2]


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
