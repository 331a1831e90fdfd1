"""Means over seeds, their intervals, and what they decide; Student's quantiles from a printed table."""

import math

import pytest

from blobjax.studies import noise
from blobjax.studies.noise import mean_of
from tests.studies.small import made_up, seeded


def test_the_interval_is_students():
    # t of 2 degrees of freedom at 95%: 2.920; of values 1, 2, 3 the deviation is 1.
    found = mean_of([1.0, 2.0, 3.0])
    assert (found.mean, found.seeds) == (2.0, 3)
    reach = 2.920 / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(2 - reach, abs=1e-3), pytest.approx(2 + reach, abs=1e-3))
    # Of 1 degree of freedom: 6.314; the deviation of 0 and 1 is sqrt(1/2).
    assert mean_of([0.0, 1.0]).high == pytest.approx(0.5 + 6.314 * math.sqrt(0.5) / math.sqrt(2), abs=1e-3)
    assert found.shown(".2f") == "2.00 (0.31 to 3.69)"
    assert mean_of([2.0]).shown(".2f") == "2.00"


def test_one_seed_decides_nothing():
    one = mean_of([5.0])
    assert one.above(0) is one.below(0) is one.within(100) is None
    assert "one seed" in one.doubt
    assert one.record() == {"mean": 5.0, "low": None, "high": None, "seeds": 1}


@pytest.mark.parametrize(
    ("values", "above", "below", "within"),
    [
        ([2.0, 2.1, 1.9], True, False, False),
        ([0.0, 0.01, -0.01], False, True, True),
        ([0.0, 3.0, -1.0], None, None, None),
        ([-2.0, -2.1, -1.9], False, True, False),
    ],
)
def test_a_claim_holds_or_fails_only_outside_of_the_interval(values, above, below, within):
    found = mean_of(values)
    assert (found.above(1), found.below(1), found.within(1)) == (above, below, within)
    assert "allows both" in found.doubt


def test_that_all_seeds_diverge_is_certain_and_that_some_do_is_not():
    assert mean_of([math.inf, math.inf]).above(1) is True
    some = mean_of([math.inf, 2.0, 3.0])
    assert some.above(1) is None
    assert "no finite value" in some.doubt
    assert mean_of([math.nan, math.nan]).above(1) is None
    assert noise.always([True, True]) is True
    assert noise.always([True, False]) is None
    assert noise.always([False, False]) is False


def test_what_is_compared_is_compared_within_each_seed():
    """Seeds differ by far more than the two kinds do, in each of them by 0.1: nothing is left in doubt."""
    cells = [
        cell
        for seed, start in ((0, 2.0), (1, 5.0), (2, 9.0))
        for kind, more in (("a", 0.0), ("b", 0.1))
        for cell in seeded([made_up({"kind": kind}, [start + more] * 10)], [seed])
    ]
    apart = noise.across(
        cells, lambda those: {"b": those[1].final_loss - those[0].final_loss}
    )["b"]  # fmt: skip
    assert apart.above(0) is True
    assert noise.each(cells, "kind", lambda result: result.final_loss)["a"].below(5) is None


def test_a_name_without_its_seed():
    (cell,) = seeded([made_up({"kind": "a", "rate": "1"}, [1.0])], [7])
    assert cell.cell.name == "7_a_1"
    assert noise.name(cell) == "a_1"


@pytest.mark.parametrize(
    ("best", "tried", "why"),
    [
        (2.0, [1.0, 2.0, 3.0], ""),
        (1.0, [1.0, 2.0, 3.0], "at the edge"),
        (1.0, [1.0], "1 learning rate cannot"),
        (1.0, [1.0, 2.0], "2 learning rates cannot"),
    ],
)
def test_a_best_at_the_edge_is_not_known_to_be_the_best(best, tried, why):
    found = noise.edge(best, tried, "learning rate")
    assert (why in found) if why else not found
