"""Chinchilla's approaches 1 and 2: what they find, and what they refuse."""

import numpy as np
import pytest

from blobjax.config import BadInputError
from blobjax.scaling import fitting
from blobjax.scaling.laws import LAWS, Settings
from blobjax.scaling.laws.isoflop import envelope, parabolas
from tests.scaling.synthetic import BESIROGLU, cross, isoflops, with_noise


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


def test_a_wide_sample_biases_a_parabola_and_not_the_formula():
    """Off a sample's centre the parabola is not the loss: the exponent is wrong without any noise."""
    x = isoflops(spread=8.0)
    x = exact({**x, "params": x["params"] * 3, "tokens": x["tokens"] / 3})
    best = parabolas(x).columns
    assert abs(best["params"][0] / true_best(1e18)[0] - 1) > 0.05
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
    found = fitting.fit(LAWS["chinchilla-2"], x, Settings())
    assert any(note.startswith(said) for note in found.notes), found.notes
    assert len(found.details["budgets"]["flops"]) == 4


def test_a_budget_of_three_sizes_is_refused():
    x = exact(isoflops())
    keep = (x["flops"] != 1e19) | (np.arange(40) % 8 < 3)
    found = fitting.fit(LAWS["chinchilla-2"], {name: column[keep] for name, column in x.items()}, Settings())
    assert any("budget 1e+19: 3 sizes" in note for note in found.notes)


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
    assert len(parabolas(exact(x)).columns["flops"]) == 5


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
    law, settings = LAWS["chinchilla-2"], Settings(bootstrap=60)
    x = isoflops()
    fits = [fitting.fit(law, with_noise("chinchilla-3", BESIROGLU, x, 0.003, seed), settings) for seed in range(30)]
    draws = fitting.bootstrap(law, with_noise("chinchilla-3", BESIROGLU, x, 0.003, 99), settings, fits[0])
    assert draws[:, 1].std() == pytest.approx(np.std([each.values[1] for each in fits]), rel=0.5)
