"""Chinchilla's approaches 1 and 2: what they find, and what they refuse."""

import json

import numpy as np
import pytest

from blobjax.config import BadInputError
from blobjax.laws import certainty, fit_file, fitting, text
from blobjax.laws.fit_schema import damage
from blobjax.laws.formulas import LAWS, Settings
from blobjax.laws.formulas.envelope import envelope
from blobjax.laws.formulas.isoflop import best_of_budgets
from blobjax.laws.formulas.law import CHAIN, budgets
from blobjax.laws.prediction import predict
from tests.laws.synthetic import BESIROGLU, cross, isoflops, made, scattered, with_noise

LAW = LAWS["chinchilla-2"]
ALL_SIZES = Settings(window=1e50)


def exact(x: dict, noise: float = 0.0) -> dict:
    return with_noise("chinchilla-3", BESIROGLU, x, noise)


def true_best(flops: float) -> tuple[float, float]:
    law = LAWS["chinchilla-3"]
    return law.optimum(law, BESIROGLU, flops, {})


def test_parabolas_find_the_best_sizes():
    # Close about the optimum, where a parabola is what the loss is.
    found = fitting.fit(LAWS["chinchilla-2"], exact(isoflops(spread=1.5)), Settings())
    _, a, _, b, E, _, gamma = found.values
    assert a == pytest.approx(0.3658 / (0.3658 + 0.3478), abs=0.004)
    assert a + b == pytest.approx(1, abs=1e-9)
    assert pytest.approx(1.8172, rel=0.02) == E
    assert gamma == pytest.approx(0.3658 * 0.3478 / (0.3658 + 0.3478), rel=0.03)
    params, tokens = LAWS["chinchilla-2"].optimum(LAWS["chinchilla-2"], found.values, 1e21, {})
    assert (params, tokens) == pytest.approx(true_best(1e21), rel=0.05)


def test_a_wide_sample_biases_a_parabola_of_all_sizes_and_not_the_formula():
    """Off a sample's centre the parabola is not the loss: the lowest point is wrong without any noise."""
    x = isoflops(spread=8.0)
    x = exact({**x, "params": x["params"] * 3, "tokens": x["tokens"] / 3})
    of_all, near = (best_of_budgets(x, settings).columns["params"][0] for settings in (ALL_SIZES, Settings()))
    assert abs(of_all / true_best(1e18)[0] - 1) > 0.05
    assert abs(near / true_best(1e18)[0] - 1) < 0.02
    formula = fitting.fit(LAWS["chinchilla-3"], x, Settings(starts=5))
    assert formula.values == pytest.approx(BESIROGLU, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, at: x["loss"].__setitem__(at, 6 - x["loss"][at]), "budget 3e+18: the parabola is concave"),
        (
            lambda x, at: x["loss"].__setitem__(at, x["params"][at] ** -0.1 * 20),
            "budget 3e+18: the lowest point, params",
        ),
    ],
    ids=["concave", "outside"],
)
def test_what_a_parabola_cannot_tell_is_refused_and_named(change, said):
    x = exact(isoflops())
    change(x, np.flatnonzero(x["flops"] == 3e18))
    found = fitting.fit(LAW, x, Settings())
    assert any(note.startswith(said) for note in found.notes), found.notes
    assert len(found.details["budgets"]["flops"]) == 4


def test_a_budget_of_three_sizes_is_taken_and_said_and_one_of_two_refused():
    x = exact(isoflops())
    at = np.arange(40) % 8
    keep = ((x["flops"] != 1e19) | ((at > 2) & (at < 6))) & ((x["flops"] != 1e20) | (at > 5))
    found = fitting.fit(LAW, {name: column[keep] for name, column in x.items()}, Settings())
    assert "at 1e+19 FLOPs there are three sizes: the parabola goes through them and cannot be checked" in found.notes
    assert "budget 1e+20: 2 sizes; a lowest point takes 3" in found.notes
    assert found.details["budgets"]["flops"] == pytest.approx([1e18, 3e18, 1e19, 3e19])
    assert found.details["budgets"]["params"][2] == pytest.approx(true_best(1e19)[0], rel=0.05)


@pytest.mark.parametrize("vertex", ["parabola", "akima"])
def test_three_sizes_tell_no_noise_and_so_no_interval(vertex):
    """A curve through three points leaves no errors: resamples of it would all be the same, of no width."""
    x = exact(isoflops(sizes=3, spread=2.0), 0.01)
    content = made("chinchilla-2", x, bootstrap=20, vertex=vertex)
    assert all((entry["low"], entry["high"]) == (None, None) for entry in content["parameters"].values())
    said = "no budget with a lowest point has more than three sizes: no noise is known, so no intervals"
    assert content["notes"].count(said) == 1
    assert not any("resamples" in note for note in content["notes"])
    assert (content["bootstrap"]["draws"], content["bootstrap"]["failed"]) == ([], 0)
    assert damage(json.loads(json.dumps(fit_file.jsonable(content)))) == ""
    assert text.number(content["parameters"]["a"]["value"]) in text.fit(content)
    found = predict(content, {"flops": 1e21})
    assert found["loss"].items() >= dict.fromkeys(("low", "high", "run_low", "run_high")).items()
    assert f"best params: {text.number(found['optimum']['params']['value'])} (no interval)" in text.prediction(
        found, "loss", 0.9
    )


@pytest.mark.parametrize("vertex", ["parabola", "akima"])
def test_one_budget_of_four_sizes_tells_the_noise_of_all(vertex):
    x = exact(isoflops(sizes=4, spread=2.0), 0.003)
    keep = (x["flops"] == 1e19) | (np.arange(20) % 4 != 3)
    content = made("chinchilla-2", {name: each[keep] for name, each in x.items()}, bootstrap=20, vertex=vertex)
    a = content["parameters"]["a"]
    assert a["low"] < a["high"]
    assert not any("no noise is known" in note for note in content["notes"])


def test_no_law_without_three_budgets():
    x = exact(isoflops())
    x["loss"][x["flops"] >= 1e19] *= -1
    x["loss"] += 10
    with pytest.raises(BadInputError, match="2 different best sizes") as caught:
        fitting.fit(LAWS["chinchilla-2"], x, Settings())
    assert len(caught.value.problems) == 4


def test_budgets_that_differ_by_whole_steps_are_one():
    x = isoflops()
    x["tokens"] = x["tokens"] * np.tile([0.98, 1.01, 1.0, 0.99, 1.02, 1.0, 0.97, 1.01], 5)
    x["flops"] = 6 * x["params"] * x["tokens"]
    assert len(best_of_budgets(exact(x), Settings()).columns["flops"]) == 5


def close_budgets(noise: float) -> dict:
    """26 budgets, each 1.24 times the one before, with sizes within a factor of two of the best."""
    return exact(isoflops(1e18 * 1.24 ** np.arange(26), sizes=9, spread=2.0), noise)


def interval_of_exponent(x: dict, settings: Settings) -> tuple[float, float]:
    found = fitting.fit(LAW, x, settings)
    draws = fitting.bootstrap(LAW, x, settings, found)
    return certainty.interval(draws[:, 1], certainty.share(0.9, LAW.independent(x, found), 7))


def test_budgets_that_lie_close_are_not_merged():
    """Those of two budgets put together would be no parabola, and its interval a hundred times as wide."""
    settings = Settings(bootstrap=40)
    truth = 0.3658 / (0.3658 + 0.3478)
    low, high = interval_of_exponent(close_budgets(0.0), settings)
    assert low < truth < high
    assert high - low < 0.001
    low, high = interval_of_exponent(close_budgets(0.0005), settings)
    assert low < truth < high
    assert high - low < 0.01
    assert (
        "26 budgets of 9 points, 234 in all; FLOPs within 0.02 of the next are one budget (--budget-tolerance)"
        in fitting.fit(LAW, close_budgets(0.0), settings).notes
    )


def test_groups_do_not_depend_on_the_order_of_rows():
    x = exact({**(flat := isoflops()), "flops": flat["flops"] * np.tile(np.linspace(0.99, 1.01, 8), 5)})
    order = np.random.default_rng(0).permutation(40)
    shuffled = {name: column[order] for name, column in x.items()}
    as_sets = [{frozenset(order[group]) for group in budgets(shuffled["flops"])},
               {frozenset(group) for group in budgets(x["flops"])}]  # fmt: skip
    assert as_sets[0] == as_sets[1]
    assert len(as_sets[0]) == 5
    assert fitting.fit(LAW, shuffled, Settings()).values == pytest.approx(
        fitting.fit(LAW, x, Settings()).values, rel=1e-9
    )


@pytest.mark.parametrize(
    ("spread", "tolerance", "count", "said"),
    [
        # Neighbours differ by 1.2%, the ends by 8.4%.
        (np.geomspace(1, 1.012**7, 8), 0.02, 5, "the 8 points at 1.04e+18 FLOPs are a chain"),
        # The upper half lies 3% above the lower.
        (np.array([1, 1, 1, 1, 1.03, 1.03, 1.03, 1.03]), 0.02, 10, "give --budget-tolerance 0.03"),
        (np.array([1, 1, 1, 1, 1.03, 1.03, 1.03, 1.03]), 0.03, 5, "chain"),
    ],
)
def test_groups_that_could_be_otherwise_are_said(spread, tolerance, count, said):
    x = isoflops()
    x = exact({**x, "flops": x["flops"] * np.tile(spread, 5)})
    best = best_of_budgets(x, Settings(budget_tolerance=tolerance))
    assert best.notes[0].startswith(f"{count} budgets")
    assert any(said in note for note in best.notes) == (said != "chain"), best.notes


def test_the_tolerance_that_is_advised_can_be_given():
    """Budgets that would be one only with more than --budget-tolerance takes are not called close."""
    chain, next_budget = np.geomspace(1, 1.31, 16), 1.31 * 1.3005
    flops = np.concatenate([1e18 * chain, np.repeat(1e18 * next_budget, 8), *(np.repeat(10.0**n, 8) for n in (19, 20))])
    params = np.sqrt(flops / 120) * np.resize(np.geomspace(0.5, 2, 8), len(flops))
    x = exact({"params": params, "tokens": flops / 6 / params, "flops": flops})
    assert not any("lie only" in note for note in best_of_budgets(x, Settings()).notes)
    # 24% and 25.5% apart as a whole: one could be a budget, the other would be refused.
    for top, said in ((1.24, 1), (1.255, 0)):
        spread = np.array([1, 1.1, 1.1 + (top - 1.1) / 2, top]).repeat(2)
        x = isoflops()
        x = exact({**x, "flops": x["flops"] * np.tile(spread, 5)})
        advised = [note.rpartition(" ")[2] for note in best_of_budgets(x, Settings(budget_tolerance=0.08)).notes
                   if "lie only" in note]  # fmt: skip
        assert (len(advised) > 0) == said
        assert all(0.08 < float(tolerance) <= CHAIN for tolerance in advised)


def test_points_without_budgets_are_no_isoflops():
    x = exact(scattered(2000))
    with pytest.raises(BadInputError, match="no budgets can be told apart"):
        fitting.fit(LAW, x, Settings())
    with pytest.raises(BadInputError) as caught:
        fitting.fit(LAW, exact(scattered(40)), Settings(budget_tolerance=1e-6))
    assert "40 budgets have fewer than three sizes and say nothing: " in caught.value.problems[1]
    assert caught.value.problems[1].endswith(" and 35 more")


def test_four_sizes_cannot_tell_what_window_they_need():
    notes = fitting.fit(LAW, exact(isoflops(sizes=4, spread=3.0)), Settings()).notes
    assert any("all sizes, which the data chose: 4 sizes or fewer cannot tell" in note for note in notes)


# Exponents far from alike: the curves of budgets are steep on the side of small models.
ASYMMETRIC = np.array([1.7, 400, 400, 0.34, 0.28])


def raw_curves(noise: float, seed: int = 0) -> dict:
    """The same twelve sizes at each of six budgets, so that the lowest points lie off the centre, left or right."""
    x = cross(flops=np.geomspace(1e18, 3e21, 6), params=np.geomspace(1e7, 2e10, 12))
    return with_noise("chinchilla-3", ASYMMETRIC, x | {"tokens": x["flops"] / 6 / x["params"]}, noise, seed)


@pytest.mark.parametrize("vertex", ["parabola", "akima"])
def test_curves_sampled_off_their_centres_give_the_exponent(vertex):
    truth = 0.28 / (0.34 + 0.28)
    settings = Settings(bootstrap=40, vertex=vertex)
    low, high = interval_of_exponent(raw_curves(0.0), settings)
    assert low < truth < high
    assert high - low < 0.02
    # Where parabolas go through all sizes the truth lies outside of the interval.
    low, high = interval_of_exponent(raw_curves(0.0), Settings(bootstrap=40, window=1e50))
    assert not low < truth < high
    held = 0
    for seed in range(10):
        low, high = interval_of_exponent(raw_curves(0.002, seed), settings)
        held += low < truth < high
    # Of ten samples, three standard errors below 90%.
    assert held >= 6


def test_lowest_points_that_were_sampled_are_not_refused():
    """Models that are far too large hardly learn, so their losses level off: no parabola goes through all of it."""
    x = cross(flops=np.geomspace(1e18, 3e21, 6), params=np.geomspace(3e7, 3e12, 16))
    x = with_noise("chinchilla-3", ASYMMETRIC, x | {"tokens": x["flops"] / 6 / x["params"]}, 0.0)
    x["loss"] = -np.log(np.exp(-8 * x["loss"]) + np.exp(-8 * 4.0)) / 8
    assert len(best_of_budgets(x, ALL_SIZES).refused) == 3
    best = best_of_budgets(x, Settings())
    assert best.refused == ()
    law = LAWS["chinchilla-3"]
    expected = [law.optimum(law, ASYMMETRIC, C, {})[0] for C in best.columns["flops"]]
    assert best.columns["params"] == pytest.approx(expected, rel=0.05)


def test_the_window_is_said_and_can_be_given():
    notes = fitting.fit(LAW, raw_curves(0.0), Settings()).notes
    assert any("within a factor of 4 of the lowest point, which the data chose" in note for note in notes), notes
    given = fitting.fit(LAW, raw_curves(0.0), Settings(window=8.0))
    assert any("within a factor of 8 of the lowest point, as given" in note for note in given.notes)
    assert given.details["window"] == 8.0
    # Close about the lowest point, with noise, no window is needed.
    near = fitting.fit(LAW, exact(isoflops(spread=2.0), 0.003), Settings())
    assert any("parabolas are fitted to all sizes, which the data chose" in note for note in near.notes)
    assert near.details["window"] is None


def test_weights_say_which_losses_to_trust():
    """A wild loss in each budget that hardly counts is as good as none."""
    x = exact(isoflops(spread=2.0))
    spoilt = {**x, "loss": x["loss"] * np.where(np.arange(40) % 8 == 6, 1.05, 1.0)}
    weighed = {**spoilt, "weight": np.where(np.arange(40) % 8 == 6, 1e-9, 3.0)}
    clean, wild, careful = (fitting.fit(LAW, each, ALL_SIZES).details["budgets"]["params"]
                            for each in (x, spoilt, weighed))  # fmt: skip
    assert careful == pytest.approx(clean, rel=0.02)
    assert np.abs(np.array(wild) / clean - 1).min() > 0.1


@pytest.mark.parametrize("vertex", ["parabola", "akima"])
def test_a_mean_of_two_runs_of_a_size_is_their_mean(vertex):
    x = exact(isoflops(spread=2.0))
    twice = {name: np.tile(column, 2) for name, column in x.items()}
    twice["loss"] = twice["loss"] * np.repeat([0.99, 1.01], 40)
    once, both = (fitting.fit(LAW, each, Settings(window=1e50, vertex=vertex)) for each in (x, twice))
    assert both.values == pytest.approx(once.values, rel=1e-6)


def test_a_parabola_that_misfits_is_named():
    x = exact(isoflops(spread=2.0), 0.001)
    x["loss"][np.flatnonzero(x["flops"] == 1e19)[6]] *= 1.04
    notes = fitting.fit(LAW, x, ALL_SIZES).notes
    (note,) = [note for note in notes if "misfits" in note]
    assert note.startswith("at 1e+19 FLOPs the parabola misfits: its points lie ")
    assert f"furthest off is params {x['params'][22]:.3g}, loss {x['loss'][22]:.4g}" in note
    # Budgets of four sizes, of which noise alone puts some far off.
    for seed in range(5):
        x = with_noise("chinchilla-3", BESIROGLU, isoflops(spread=2.0, sizes=4), 0.001, seed)
        assert not any("misfits" in note for note in fitting.fit(LAW, x, ALL_SIZES).notes)


def test_a_lowest_point_at_the_end_of_a_spline_is_refused():
    x = exact(isoflops())
    at = np.flatnonzero(x["flops"] == 3e18)
    x["loss"][at] = x["params"][at] ** -0.1 * 20
    found = fitting.fit(LAW, x, Settings(vertex="akima"))
    assert any("budget 3e+18: the lowest point" in note and "is at the end of what was sampled" in note
               for note in found.notes)  # fmt: skip


def curves() -> dict:
    x = cross(params=np.geomspace(1e7, 3e9, 12), tokens=np.geomspace(1e8, 3e11, 40))
    return exact(x | {"flops": 6 * x["params"] * x["tokens"]})


def test_the_envelope_of_training_curves():
    found = fitting.fit(LAWS["chinchilla-1"], curves(), Settings())
    _, a, _, b, *_ = found.values
    assert a == pytest.approx(0.3658 / (0.3658 + 0.3478), abs=0.02)
    assert a + b == pytest.approx(1, abs=0.01)
    params, _ = LAWS["chinchilla-1"].optimum(LAWS["chinchilla-1"], found.values, 1e20, {})
    assert params == pytest.approx(true_best(1e20)[0], rel=0.2)


def test_the_envelope_leaves_out_where_the_smallest_or_largest_is_best():
    best = envelope(curves())
    assert best.columns["params"].min() > 1.1e7
    assert best.columns["params"].max() < 2.9e9
    assert any("smallest or the largest" in note for note in best.refused)


def test_ends_of_runs_have_no_envelope():
    with pytest.raises(BadInputError, match="0 different best sizes"):
        fitting.fit(LAWS["chinchilla-1"], exact(isoflops()), Settings())


def test_resamples_of_parabolas_spread_as_the_noise_does():
    """Against fits to fresh samples: what the bootstrap is an estimate of."""
    law, settings = LAW, Settings(bootstrap=60)
    x = isoflops()
    fits = [fitting.fit(law, with_noise("chinchilla-3", BESIROGLU, x, 0.003, seed), settings) for seed in range(30)]
    draws = fitting.bootstrap(law, with_noise("chinchilla-3", BESIROGLU, x, 0.003, 99), settings, fits[0])
    assert draws[:, 1].std() == pytest.approx(np.std([each.values[1] for each in fits]), rel=0.5)
