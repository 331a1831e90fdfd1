"""When things are due, with a clock that the test turns."""

from blobjax.config import Clockwork, Duration
from blobjax.processes.timers import Every

CLOCKWORK = Clockwork(tokens_per_step=100, flops_per_token=10.0, params=50, tokens_per_epoch=1000, length=200)


def due_steps(text: str, steps: int = 200) -> list[int]:
    every = Every(Duration.parse(text), CLOCKWORK)
    return [step for step in range(1, steps + 1) if every.due(step)]


def test_every_so_many_steps_however_they_are_named():
    assert due_steps("50 steps") == [50, 100, 150, 200]
    assert due_steps("5k tokens") == [50, 100, 150, 200]
    assert due_steps("25%") == [50, 100, 150, 200]
    assert due_steps("5 epochs") == [50, 100, 150, 200]


def test_less_than_a_step_means_every_step():
    assert due_steps("1 token", 3) == [1, 2, 3]


def test_every_so_much_time():
    now = 0.0
    every = Every(Duration.parse("10 seconds"), CLOCKWORK, clock=lambda: now)
    seen = []
    for step in range(1, 13):
        now += 3.0
        if every.due(step):
            seen.append(step)
    # Due at 12 s, then 10 s after that (24 s), then at 36 s.
    assert seen == [4, 8, 12]
