"""The loop's order of things, seen through a step and hooks that only take notes."""

from typing import Any

import pytest

from blobjax.training.loop import run


class Notebook:
    """Stands in for the step, the source of batches, the report and a hook, and writes down who was called when."""

    def __init__(self, due: dict[int, bool] | None = None):
        self.notes: list[Any] = []
        self._due = due or {}

    def step(self, state, batch):
        self.notes.append(("dispatch", batch))
        return state + 1, {"loss": float(batch)}

    def next(self, step, state):
        assert state == step - 1
        return step

    def report(self, done):
        self.notes.append(("report", done.step))
        assert done.metrics == {"loss": float(done.step)}
        assert done.seconds >= 0
        assert done.data_wait >= 0

    def due(self, step):
        return step in self._due

    def run(self, step, state):
        self.notes.append(("hook", step, state))
        return self._due[step]


def notes_of(due=None, steps=range(1, 5)):
    book = Notebook(due)
    state = run(book.step, 0, book, steps, book.report, [book])
    return state, book.notes


def test_a_step_is_dispatched_before_the_metrics_of_the_one_before_are_read():
    state, notes = notes_of()
    assert state == 4
    assert notes == [
        ("dispatch", 1),
        ("dispatch", 2),
        ("report", 1),
        ("dispatch", 3),
        ("report", 2),
        ("dispatch", 4),
        ("report", 3),
        ("report", 4),
    ]


def test_a_hook_runs_after_the_step_in_flight_is_reported():
    _, notes = notes_of({2: False})
    assert notes.index(("report", 2)) < notes.index(("hook", 2, 2)) < notes.index(("dispatch", 3))


def test_a_hook_can_end_the_loop_and_the_others_still_run():
    book, other = Notebook({3: True}), Notebook({3: False})
    assert run(book.step, 0, book, range(1, 10), book.report, [book, other]) == 3
    assert other.notes == [("hook", 3, 3)]


def test_an_error_in_the_step_reaches_the_caller():
    def fails(state, batch):
        raise RuntimeError("boom")

    book = Notebook()
    with pytest.raises(RuntimeError, match="boom"):
        run(fails, 0, book, range(1, 3), book.report, [])
