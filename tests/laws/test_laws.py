"""Each law says what its paper says, and is found again in points made from it."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from blobjax.laws import fitting
from blobjax.laws.formulas import LAWS, Settings
from tests.laws.synthetic import BESIROGLU, cross, harmful_size, isoflops, repeated, sizes_and_tokens, with_noise


def one(**columns: float) -> dict:
    return {name: np.array([float(value)]) for name, value in columns.items()}


def quantised(bits: tuple[str, ...], seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    x = {"params": np.exp(rng.uniform(17, 21, 200)), "tokens": np.exp(rng.uniform(20, 24, 200))}
    x |= {name: rng.choice([3.0, 4.0, 6.0, 8.0, 12.0, 16.0], 200) for name in bits}
    return x | {"flops": 6 * x["params"] * x["tokens"]}


# name: parameters, columns, noise, and how far off in relation to them what is found may be
KNOWN = {
    "power-flops": ([1.7, 500, 0.15], {"flops": np.geomspace(1e16, 1e22, 30)}, 0.002, 0.25),
    "power-params": ([2.0, 40, 0.2], {"params": np.geomspace(1e5, 1e10, 30)}, 0.002, 0.25),
    "power-tokens": ([1.5, 300, 0.3], {"tokens": np.geomspace(1e6, 1e11, 30)}, 0.002, 0.25),
    "kaplan": ([8.8e13, 5.4e13, 0.076, 0.095], sizes_and_tokens(), 0.0005, 0.3),
    "chinchilla-3": (BESIROGLU, sizes_and_tokens(), 0.0005, 0.2),
    "variable-projection": (BESIROGLU, sizes_and_tokens(), 0.0005, 0.2),
    "data-constrained": ([1.87, 521, 1488, 0.353, 15.4, 5.3], repeated(), 0.0005, 0.1),
    "over-training": (
        [1.51, 141, 190, 0.121],
        cross(flops=np.geomspace(1e17, 1e21, 6), overtraining=[5, 20, 40, 80, 320]),
        0.0005,
        0.1,
    ),
    "precision-weights": ([1.8, 480, 2100, 0.35, 0.37, 2.7], quantised(("weight_bits",)), 0.001, 0.2),
    "precision": (
        [1.8, 480, 2100, 0.35, 0.37, 2.7, 2.2, 0.95],
        quantised(("weight_bits", "activation_bits", "kv_bits")),
        0.001,
        0.25,
    ),
    "rl-compute": ([0.61, 0.2, 2000, 1.2], {"flops": np.geomspace(1e2, 1e5, 40)}, 0.002, 0.1),
    "rl-log-linear": ([0.1, 0.08], {"flops": np.geomspace(1e2, 1e5, 20)}, 0.002, 0.1),
    "critical-batch": ([3000, 400], {"batch_size": np.geomspace(16, 8192, 10)}, 0.01, 0.1),
    "critical-batch-loss": ([2e8, 0.21], {"loss": np.linspace(2.5, 5, 12)}, 0.01, 0.2),
    "critical-batch-tokens": ([22, 0.47], {"tokens": np.geomspace(1e9, 1e11, 12)}, 0.01, 0.4),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_law_is_found_again(name):
    values, x, noise, tolerance = KNOWN[name]
    law = LAWS[name]
    x = with_noise(name, values, x, noise)
    assert not law.problems(x, {})
    found = fitting.fit(law, x, Settings(delta=law.delta, starts=10))
    assert found.converged
    assert found.values == pytest.approx(np.asarray(values, float), rel=tolerance)
    assert np.sqrt(np.mean(found.residuals**2)) == pytest.approx(noise, rel=0.5)


@pytest.mark.parametrize("name", [name for name in KNOWN if LAWS[name].starts is not None])
def test_derivatives_are_those_of_the_formula(name):
    """A formula that is not analytic (an abs, a maximum of its parameters) would have none by a complex step."""
    values, x, _, _ = KNOWN[name]
    law = LAWS[name]
    x = with_noise(name, values, x, 0.0)
    objective = fitting._objective(law, x, Settings(delta=np.inf))
    z = law.internal(np.asarray(values, float) * 1.1)
    _, slopes = objective.linearised(z)
    for i in range(len(z)):
        step = 1e-5 * np.eye(len(z))[i]
        ahead, behind = objective.predicted(np.stack([z + step, z - step]))
        assert slopes[i] == pytest.approx((ahead - behind) / 2e-5, rel=1e-4, abs=1e-7)


def test_all_laws_are_known_here():
    assert {*KNOWN, "chinchilla-1", "chinchilla-2"} == set(LAWS)


@pytest.mark.parametrize("name", LAWS)
def test_a_law_says_where_it_is_from(name):
    law = LAWS[name]
    assert any(year in law.source for year in ("19", "20"))
    assert all(parameter.meaning for parameter in law.parameters)
    assert law.minimises or law.estimate is None


def test_chinchillas_law_as_it_is_written():
    at = one(params=70e9, tokens=1.4e12)
    published = LAWS["chinchilla-3"].predict(np.array([1.69, 406.4, 410.7, 0.34, 0.28]), at).item()
    assert published == pytest.approx(1.69 + 406.4 / 70e9**0.34 + 410.7 / 1.4e12**0.28, rel=1e-12)


def test_kaplans_law_as_it_is_written():
    N_c, D_c, a_N, a_D = 8.8e13, 5.4e13, 0.076, 0.095
    found = LAWS["kaplan"].predict(np.array([N_c, D_c, a_N, a_D]), one(params=1e9, tokens=1e10)).item()
    assert found == pytest.approx(((N_c / 1e9) ** (a_N / a_D) + D_c / 1e10) ** a_D, rel=1e-12)


def test_data_that_is_not_repeated_is_chinchillas_law():
    values = [1.87, 521, 1488, 0.353, 15.4, 5.3]
    fresh = one(params=1e8, tokens=1e10, unique_tokens=1e10)
    plain = LAWS["chinchilla-3"].predict(np.array([1.87, 521, 1488, 0.353, 0.353]), fresh)
    assert LAWS["data-constrained"].predict(np.array(values), fresh) == pytest.approx(plain, rel=1e-12)


def test_repeated_data_as_it_is_written():
    E, A, B, alpha, R_D, R_N = 1.87, 521, 1488, 0.353, 15.4, 5.3
    N, D, U = 1e10, 6e10, 1e10
    U_N = (A / B) ** (1 / alpha) * U
    D_eff = U + U * R_D * (1 - np.exp(-(D / U - 1) / R_D))
    N_eff = U_N + U_N * R_N * (1 - np.exp(-(N / U_N - 1) / R_N))
    found = LAWS["data-constrained"].predict(
        np.array([E, A, B, alpha, R_D, R_N]), one(params=N, tokens=D, unique_tokens=U)
    )
    assert found.item() == pytest.approx(E + A / N_eff**alpha + B / D_eff**alpha, rel=1e-12)
    # The paper's 0.05 parameters for each unique token.
    assert pytest.approx(0.051, abs=0.0005) == U_N / U


def test_over_training_is_chinchillas_law_in_other_variables():
    E, a, b, eta = 1.51, 141, 190, 0.121
    N, D = 4e8, 3.2e10
    found = LAWS["over-training"].predict(np.array([E, a, b, eta]), one(flops=6 * N * D, overtraining=D / N)).item()
    A, B = a * 6**-eta, b * 6**-eta
    assert found == pytest.approx(E + A * N ** (-2 * eta) + B * D ** (-2 * eta), rel=1e-12)


def test_half_the_bits_are_fewer_parameters():
    law = LAWS["precision-weights"]
    values = np.array([1.8, 480, 2100, 0.35, 0.37, 2.7])
    narrow = law.predict(values, one(params=1e9, tokens=1e10, weight_bits=4)).item()
    fewer = law.predict(values, one(params=1e9 * (1 - np.exp(-4 / 2.7)), tokens=1e10, weight_bits=1e9)).item()
    assert narrow == pytest.approx(fewer, rel=1e-12)


def test_a_sigmoid_is_half_way_at_its_middle():
    values = np.array([0.61, 0.2, 2000, 1.2])
    middle, never, ever = LAWS["rl-compute"].predict(values, {"flops": np.array([2000, 1e-300, 1e300])})
    assert (middle, never, ever) == pytest.approx((0.405, 0.2, 0.61))


def test_at_the_critical_batch_steps_and_examples_are_twice_their_least():
    law = LAWS["critical-batch"]
    steps = law.predict(np.array([3000.0, 400.0]), one(batch_size=400)).item()
    assert steps == pytest.approx(6000)
    assert steps * 400 == pytest.approx(2 * law.derived(3000.0, 400.0)["E_min"])
    assert (steps / 3000 - 1) * (steps * 400 / (3000 * 400) - 1) == pytest.approx(1)


@pytest.mark.parametrize("flops", [1e18, 5.76e23])
def test_the_best_split_is_that_of_the_formula(flops):
    law = LAWS["chinchilla-3"]
    derived = law.derived(*BESIROGLU)
    params, tokens = law.optimum(law, BESIROGLU, flops, {})
    assert params == pytest.approx(derived["G"] * (flops / 6) ** derived["a"], rel=1e-5)
    assert tokens == pytest.approx((flops / 6) ** derived["b"] / derived["G"], rel=1e-5)
    assert derived["a"] == pytest.approx(0.3658 / (0.3658 + 0.3478))


@pytest.mark.parametrize("change", [{"alpha": -0.02}, {"beta": 0.0}, {"A": 0.0}])
def test_where_size_or_data_is_worth_nothing_there_is_no_best_split(change):
    law = LAWS["chinchilla-3"]
    values = np.array([change.get(name, value) for name, value in zip(law.names, BESIROGLU, strict=True)])
    assert np.all(np.isnan(law.optimum(law, values, 1e20, {})))
    assert np.all(np.isnan([*law.derived(*values).values()]))


def test_over_training_is_fitted_as_its_paper_does_by_least_squares_of_the_loss():
    values, x, *_ = KNOWN["over-training"]
    sample = with_noise("over-training", values, x, 0.02, 0)
    found = fitting.fit(LAWS["over-training"], sample, Settings(delta=np.inf))
    given = np.stack([sample["flops"], sample["overtraining"]])
    theirs, _ = curve_fit(lambda x, E, a, b, eta: E + (a * x[1] ** eta + b * x[1] ** -eta) * x[0] ** -eta,
                          given, sample["loss"], p0=values, maxfev=20000)  # fmt: skip
    assert found.values == pytest.approx(theirs, rel=1e-4)


def test_a_multiplier_without_end_is_none():
    law = LAWS["over-training"]
    assert np.isnan(law.derived(1.5, 0.0, 190.0, 0.1)["best_multiplier"])
    assert np.all(np.isnan(law.optimum(law, np.array([1.5, 0.0, 190.0, 0.1]), 1e20, {})))


def test_the_best_multiplier_is_that_of_the_formula():
    law, values = LAWS["over-training"], np.array([1.51, 141, 190, 0.121])
    params, tokens = law.optimum(law, values, 1e20, {})
    losses = law.predict(values, {"flops": np.full(3, 1e20), "overtraining": tokens / params * np.array([0.9, 1, 1.1])})
    assert losses.argmin() == 1
    assert 6 * params * tokens == pytest.approx(1e20)


def test_variable_projection_finds_the_least_squares():
    """The same as a general optimiser of the same objective, given its answer to start from."""
    x = with_noise("chinchilla-3", BESIROGLU, isoflops(), 0.01)
    law = LAWS["variable-projection"]
    found = fitting.fit(law, x, Settings())

    def squares(values):
        return np.sum((law.predict(values, x) - x["loss"]) ** 2)

    assert found.objective == pytest.approx(squares(found.values), rel=1e-9)
    for i in range(5):
        for off in (0.999, 1.001):
            moved = found.values.copy()
            moved[i] *= off
            assert squares(moved) > found.objective


def test_a_coefficient_that_would_be_negative_is_zero_and_said():
    found = fitting.fit(LAWS["variable-projection"], harmful_size(), Settings())
    assert found.values[1] == 0
    assert any("A" in note and "zero" in note for note in found.notes)
    assert any(note.startswith("alpha is not identified") for note in found.notes)
    assert np.all(np.isfinite(found.residuals))


def test_an_exponent_at_the_end_of_the_search_is_said():
    """Only the smallest size is worse than the others: the steeper the power law, the better."""
    x = sizes_and_tokens()
    x["loss"] = 2 + (x["params"] == x["params"].min()) + 1e3 * x["tokens"] ** -0.4
    found = fitting.fit(LAWS["variable-projection"], x, Settings())
    assert found.values[1] > 0
    assert any("alpha came out as 5, where the search ends" in note for note in found.notes), found.notes
