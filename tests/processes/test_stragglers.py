"""The process that holds up the others is found from what each of them measures of itself."""

import jax
import numpy as np
import pytest

from blobjax.config import Clockwork, Duration
from blobjax.processes.stragglers import Stragglers, lags
from blobjax.processes.timers import Every
from blobjax.runs.directory import EventLog, read_jsonl

# All steps take as long: that is what makes it hard. Columns as in COLUMNS.
EVEN = np.array([[1.0, 0.01, 0.05, 0.010]] * 4)


def with_slow(process: int, **columns: float) -> np.ndarray:
    table = EVEN.copy()
    names = ("step", "data", "host", "device")
    for name, value in columns.items():
        table[process, names.index(name)] = value
    return table


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (with_slow(2, data=0.4, host=0.45), 0.4),  # its data comes late
        (with_slow(2, host=0.35), 0.3),  # its Python is slow
        (with_slow(2, device=0.015), 0.5),  # its device is half as fast again
    ],
    ids=["data", "host", "device"],
)
def test_the_slow_one_lags_by_what_it_costs_the_others(table, expected):
    lag = lags(table)
    assert np.argmax(lag) == 2
    assert lag[2] == pytest.approx(expected)
    assert np.delete(lag, 2) == pytest.approx(0)


@pytest.fixture
def report(tmp_path):
    lines: list[str] = []
    clockwork = Clockwork(tokens_per_step=1, flops_per_token=1.0, params=1, tokens_per_epoch=1, length=10)

    def report(table):
        with EventLog(tmp_path / "events.jsonl") as events:
            stragglers = Stragglers(Every(Duration.parse("5 steps"), clockwork), events, lines.append)
            assert [step for step in range(1, 11) if stragglers.due(step)] == [5, 10]
            stragglers._report(5, table, [f"host-{i}" for i in range(len(table))])
        (event,) = read_jsonl(tmp_path / "events.jsonl")
        return event, lines

    return report


def test_a_slow_process_is_named_in_an_event_and_a_line(report):
    event, lines = report(with_slow(2, data=0.4, host=0.45))
    assert (event["event"], event["step"], event["slowest"], event["host"]) == ("stragglers", 5, 2, "host-2")
    assert event["data_wait_seconds"] == [0.01, 0.01, 0.4, 0.01]
    (line,) = lines
    assert "process 2 (host-2)" in line
    assert "data 0.4 s" in line


def test_where_nobody_is_clearly_slow_nothing_is_said(report):
    event, lines = report(with_slow(1, host=0.06))
    assert event["slowest"] == 1
    assert lines == []


def test_a_process_measures_itself_and_forgets(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as events:
        clockwork = Clockwork(tokens_per_step=1, flops_per_token=1.0, params=1, tokens_per_epoch=1, length=10)
        stragglers = Stragglers(Every(Duration.parse("5 steps"), clockwork), events, print)
        stragglers.note(seconds=1.0, data_wait=0.25, device_wait=0.5)
        stragglers.note(seconds=2.0, data_wait=0.75, device_wait=0.5)
        assert stragglers.run(5, None) is False
        assert stragglers._steps == []
    (event,) = read_jsonl(tmp_path / "events.jsonl")
    assert jax.process_count() == 1
    assert (event["step_seconds"], event["data_wait_seconds"], event["host_seconds"]) == ([1.5], [0.5], [1.0])
    assert event["device_seconds"][0] > 0
