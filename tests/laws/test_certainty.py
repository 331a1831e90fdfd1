"""Intervals hold what they promise; profiles and the left-out future say what they should."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import chi2

from blobjax.laws import certainty, fitting
from blobjax.laws.formulas import LAWS, Settings
from blobjax.laws.formulas.law import bins
from tests.laws.synthetic import BESIROGLU, isoflops, scattered, with_noise


@pytest.mark.parametrize(
    ("name", "values", "x", "noise"),
    [
        ("power-flops", [1.7, 500, 0.15], {"flops": np.geomspace(1e16, 1e22, 40)}, 0.005),
        ("critical-batch", [3000, 400], {"batch_size": np.geomspace(16, 8192, 30)}, 0.03),
    ],
)
def test_ninety_percent_intervals_hold_the_truth_about_nine_times_in_ten(name, values, x, noise):
    law, repeats, held = LAWS[name], 80, np.zeros(len(values))
    share = certainty.share(0.9, len(next(iter(x.values()))), len(values))
    settings = Settings(delta=np.inf, bootstrap=60, starts=2)
    for seed in range(repeats):
        sample = with_noise(name, values, x, noise, seed)
        found = fitting.fit(law, sample, settings)
        draws = fitting.bootstrap(law, sample, settings, found)
        for i, truth in enumerate(np.asarray(values, float)):
            low, high = certainty.interval(draws[:, i], share)
            held[i] += low <= truth <= high
    assert np.all(held / repeats >= 0.8), held
    assert np.all(held / repeats <= 0.98), held


def coverage(name: str, values, x: dict, noise: float, settings: Settings, repeats: int) -> tuple[np.ndarray, list]:
    """The share of made-up samples whose 90% intervals hold each parameter, and the first parameter's intervals."""
    law, held, first = LAWS[name], np.zeros(len(values)), []
    share = certainty.share(0.9, len(next(iter(x.values()))), len(values))
    for seed in range(repeats):
        sample = with_noise(name, values, x, noise, seed)
        draws = fitting.bootstrap(law, sample, settings, fitting.fit(law, sample, settings))
        ends = [certainty.interval(column, share) for column in draws.T]
        held += [low <= value <= high for (low, high), value in zip(ends, values, strict=True)]
        first.append(ends[0])
    return held / repeats, first


def test_intervals_of_chinchillas_law_hold_the_truth():
    held, _ = coverage("chinchilla-3", BESIROGLU, scattered(60), 0.005, Settings(bootstrap=30, starts=2), 25)
    # Of 25 samples, three standard errors below 90%.
    assert np.all(held >= 0.72), held


def test_a_floor_that_comes_out_as_zero_is_not_taken_for_sure():
    """With as low a floor as this one sample in seven has its optimum at none: there no slope leads back up."""
    x = {"flops": np.geomspace(1e18, 1e21, 30)}
    held, floors = coverage("power-flops", [0.3, 60, 0.08], x, 0.005, Settings(bootstrap=15, starts=3), 10)
    assert np.all(held >= 0.6), held
    assert all(high > 0.01 for _, high in floors), floors
    sample = with_noise("power-flops", [0.3, 60, 0.08], x, 0.005, 2)
    assert "E came out as zero" in fitting.fit(LAWS["power-flops"], sample, Settings(starts=3)).notes[0]


def test_intervals_of_parabolas_hold_what_the_same_points_give_without_noise():
    law, settings, repeats = LAWS["chinchilla-2"], Settings(bootstrap=40), 25
    base = isoflops(spread=2.0, sizes=7)
    truth = fitting.fit(law, with_noise("chinchilla-3", BESIROGLU, base, 0.0), settings).values
    share = certainty.share(0.9, len(base["flops"]), len(truth))
    held = np.zeros(len(truth))
    for seed in range(repeats):
        sample = with_noise("chinchilla-3", BESIROGLU, base, 0.001, seed)
        draws = fitting.bootstrap(law, sample, settings, fitting.fit(law, sample, settings))
        ends = [certainty.interval(column, share) for column in draws.T]
        held += [low <= value <= high for (low, high), value in zip(ends, truth, strict=True)]
    # Of 25 samples, three standard errors below 90%.
    assert np.all(held / repeats >= 0.72), held
    assert np.any(held < repeats), "an interval that always holds is too wide"


def test_few_points_take_more_of_the_draws():
    assert certainty.share(0.9, 10**6, 3) == pytest.approx(0.9, abs=1e-4)
    assert certainty.share(0.9, 40, 3) == pytest.approx(0.9206, abs=1e-3)
    assert certainty.share(0.9, 8, 5) > 0.98


def test_the_likelihood_of_huber_errors_is_one_over_all_errors():
    """Its density has no closed integral by eye: so it is integrated."""
    delta, count, objective = 0.5, 50, 20.0
    found = certainty.log_likelihood(objective, count, delta)

    def at(rate):
        density = lambda r: np.exp(-rate * (r * r / 2 if abs(r) <= delta else delta * (abs(r) - delta / 2)))  # noqa: E731
        area = 2 * (quad(density, 0, delta)[0] + quad(density, delta, np.inf)[0])
        return -count * np.log(area) - rate * objective

    assert found == pytest.approx(max(at(rate) for rate in np.geomspace(0.5, 20, 400)), abs=1e-3)


def test_without_a_linear_part_it_is_that_of_gauss():
    wide, square = (certainty.log_likelihood(3.0, 100, delta) for delta in (50.0, np.inf))
    assert wide == pytest.approx(square, abs=1e-6)


def test_a_profile_is_the_interval_that_a_straight_line_has():
    """For a fit that is linear, the profile's ends are known: the deviance is count × log(1 + t² / freedom)."""
    law = LAWS["critical-batch"]
    x = with_noise("critical-batch", [3000, 400], {"batch_size": np.geomspace(40, 4000, 25)}, 0.03)
    settings = Settings(delta=np.inf, bootstrap=100)
    found = fitting.fit(law, x, settings)
    draws = law.internal(fitting.bootstrap(law, x, settings, found))
    half = (np.percentile(draws[:, 1], 95) - np.percentile(draws[:, 1], 5)) / 2
    profile = certainty.profile(law, x, settings, found, "B_crit", half)
    assert profile.low < found.values[1] < profile.high
    assert (np.log(profile.high) - np.log(profile.low)) / 2 == pytest.approx(half, rel=0.35)
    assert min(profile.deviance) == 0
    assert profile.values == sorted(profile.values)


def test_what_the_points_do_not_tell_is_open():
    """Rewards on a straight line have no asymptote: any that is high enough will do."""
    flops = np.geomspace(1e2, 1e4, 25)
    x = with_noise("rl-log-linear", [0.0, 0.1], {"flops": flops}, 0.005)
    law, settings = LAWS["rl-compute"], Settings(delta=np.inf, starts=5)
    found = fitting.fit(law, x, settings)
    profile = certainty.profile(law, x, settings, found, "A", 1.0)
    assert profile.high is None


def test_the_future_is_left_out():
    x = with_noise("chinchilla-3", BESIROGLU, isoflops(), 0.002)
    law, settings = LAWS["chinchilla-3"], Settings(starts=5)
    found = fitting.fit(law, x, settings)
    rows, why_not = certainty.leave_future_out(law, x, settings, found)
    assert not why_not
    assert [(row["points"], row["at"]) for row in rows] == [
        (24, pytest.approx(3e19)),
        (24, pytest.approx(1e20)),
        (32, pytest.approx(1e20)),
    ]
    assert all(row["absolute_error"] < 0.01 for row in rows)
    # What comes after must not reach what is fitted before.
    x["loss"][x["flops"] == 1e20] *= 2
    spoilt, _ = certainty.leave_future_out(law, x, settings, found)
    assert spoilt[0]["predicted"] == pytest.approx(rows[0]["predicted"], rel=1e-4)
    assert spoilt[1]["predicted"] == pytest.approx(rows[1]["predicted"], rel=1e-4)
    assert spoilt[1]["error"] == pytest.approx(-0.5, abs=0.01)


def test_a_law_of_the_best_is_held_against_the_best():
    x = with_noise("chinchilla-3", BESIROGLU, isoflops(), 0.001)
    law = LAWS["chinchilla-2"]
    rows, _ = certainty.leave_future_out(law, x, Settings(), fitting.fit(law, x, Settings()))
    assert [row["at"] for row in rows] == pytest.approx([3e19, 1e20, 1e20])
    assert all(row["params_predicted"] == pytest.approx(row["params_measured"], rel=0.1) for row in rows)


def test_the_future_of_a_loss_is_a_lower_one():
    x = with_noise("critical-batch-loss", [2e8, 0.21], {"loss": np.linspace(2.5, 5, 12)}, 0.01)
    law = LAWS["critical-batch-loss"]
    rows, _ = certainty.leave_future_out(law, x, Settings(), fitting.fit(law, x, Settings()))
    assert rows
    assert all(row["at"] < row["up_to"] for row in rows)


def test_the_end_of_a_wide_profile_is_where_the_deviance_is():
    """A floor that the points hardly show: within one step the deviance goes from nothing to far beyond the limit."""
    x = {"flops": np.geomspace(1e18, 1e22, 20)}
    law, settings = LAWS["power-flops"], Settings(delta=np.inf, starts=5)
    x = with_noise("power-flops", [1e-9, 60, 0.07], x, 0.003, 1)
    found = fitting.fit(law, x, settings)
    profile = certainty.profile(law, x, settings, found, "E", 12.0)
    held = fitting.fit(law, x, replace(settings, fixed={"E": profile.high}))
    likelihood = [certainty.log_likelihood(each.objective, 20, np.inf) for each in (found, held)]
    assert 2 * (likelihood[0] - likelihood[1]) == pytest.approx(chi2.ppf(0.9, 1), rel=0.1)


def test_no_budget_is_its_own_future():
    """Nine budgets, as Hoffmann et al. have, whose runs end within a percent of them: the groups hold them whole."""
    flops = np.geomspace(6e18, 3e21, 9).repeat(8) * np.exp(np.random.default_rng(0).normal(0, 0.01, 72))
    found = certainty.groups(flops, False)
    assert sorted(len(group) for group in found) == [8, 8, 8, 16, 16, 16]
    assert all(budget // 8 == group[0] // 8 or len(group) == 16 for group in found for budget in group)
    assert [*certainty.groups(flops, True)[0]] == [*found[-1]]


@pytest.mark.parametrize(("name", "values"), [("rl-compute", [0.3, -0.3, 2000, 1.2]), ("rl-log-linear", [-0.5, 0.12])])
def test_the_error_of_a_reward_about_zero_is_in_its_own_unit(name, values):
    x = with_noise(name, values, {"flops": np.geomspace(1e2, 1e5, 24)}, 0.005)
    x["reward"][20] = 0.0
    law, settings = LAWS[name], Settings(delta=np.inf, starts=3)
    rows, _ = certainty.leave_future_out(law, x, settings, fitting.fit(law, x, settings))
    assert rows
    assert all(np.isfinite(row["error"]) for row in rows)
    assert all(row["error"] == pytest.approx(row["predicted"] - row["measured"]) for row in rows)


def test_many_budgets_are_six_groups():
    assert [len(group) for group in certainty.groups(np.geomspace(1, 1e6, 60), False)] == [10] * 6
    assert certainty.groups(np.array([1.0, 5.0, 1.01]), False)[0].tolist() == [0, 2]


def test_values_without_a_gap_are_cut_into_bins():
    assert len(bins(np.geomspace(1, 100, 10_000), 0.25)) > 15
    whole = certainty.groups(np.geomspace(1, 100, 10_000), False)
    # 21 bins are six groups of three or four.
    assert len(whole) == 6
    assert all(1200 < len(group) < 2100 for group in whole)


def test_budgets_a_quarter_apart_are_not_cut_in_two_by_a_bin():
    """A bin that begins at the smallest run of one budget would end within the next."""
    flops = np.repeat(1e18 * 1.24 ** np.arange(6), 5) * np.tile([0.985, 0.99, 1.0, 1.01, 1.015], 6)
    assert [sorted(group) for group in certainty.groups(flops, False)] == np.arange(30).reshape(6, 5).tolist()


def test_losses_that_differ_are_groups_of_their_own():
    """Losses of critical batches lie within a few percent: each is a group."""
    x = with_noise("critical-batch-loss", [2e8, 0.21], {"loss": np.linspace(2.60, 2.50, 8)}, 0.01)
    law = LAWS["critical-batch-loss"]
    settings = Settings(delta=law.delta)
    assert law.problems(x, {}) == []
    rows, why_not = certainty.leave_future_out(law, x, settings, fitting.fit(law, x, settings))
    assert not why_not
    # Two more points in each of the first groups, as eight losses are six groups; the lowest losses are the future.
    assert rows[0]["up_to"] > rows[-1]["at"]
    same = with_noise("critical-batch-loss", [2e8, 0.21], {"loss": np.array([2.5, 2.5, 2.5, 2.6])}, 0.01)
    assert "2 different loss, and it takes 3" in law.problems(same, {})[0]


def test_a_profile_ends_where_nothing_can_be_computed_any_more():
    """Losses that rise at the end, as those of a domain that was not trained on: the interval of A spans hundreds of
    powers of ten, and half of it is beyond all numbers."""
    law, settings = LAWS["power-flops"], Settings(bootstrap=0, starts=4)
    x = {"flops": 6.65e10 * np.array([1.0, 2.0, 4.0, 8.0]), "loss": np.array([3.452, 3.355, 3.343, 3.384])}
    found = fitting.fit(law, x, settings)
    profile = certainty.profile(law, x, settings, found, "A", 600.0)
    assert np.all(np.isfinite(profile.values))
    assert np.all(np.isfinite(profile.deviance))
    assert profile.high is None or found.values[1] < profile.high < np.inf
