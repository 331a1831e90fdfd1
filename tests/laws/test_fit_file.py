"""What a fit says of its points and of itself: what came out as zero, runs that diverged, R², options."""

import json

import numpy as np
import pytest

from blobjax.config import BadInputError
from blobjax.laws import fit_command, fit_file, text
from blobjax.laws.formulas import LAWS, Settings
from blobjax.laws.formulas.law import Estimate
from blobjax.laws.prediction import predict
from tests.laws.synthetic import (
    BESIROGLU,
    cross,
    harmful_size,
    isoflops,
    made,
    repeated,
    sizes_and_tokens,
    with_noise,
    write_csv,
)

ZERO = "E came out as zero: "


@pytest.mark.parametrize(
    ("name", "values", "x"),
    [
        ("power-flops", [0, 60, 0.08], {"flops": np.geomspace(1e18, 1e21, 30)}),
        ("chinchilla-3", [0, 30, 60, 0.1, 0.12], sizes_and_tokens(5, 5)),
        ("variable-projection", [0, 30, 60, 0.1, 0.12], sizes_and_tokens(5, 5)),
        ("over-training", [0, 10, 12, 0.05], cross(flops=np.geomspace(1e17, 1e21, 6), overtraining=[5, 20, 80, 320])),
        ("data-constrained", [0, 50, 100, 0.12, 15, 5], repeated()),
    ],
)
def test_a_floor_of_zero_is_said_alike_for_every_law(name, values, x):
    """Losses that curve the other way than a floor would make them: the best floor is below zero, so it is zero."""
    x = with_noise(name, values, x, 0.0)
    x["loss"] = x["loss"] - 0.3 * x["loss"].min()
    notes = made(name, x)["notes"]
    assert [note for note in notes if note.startswith("E ")] == [f"{ZERO}the points do not tell it from that"], notes


@pytest.mark.parametrize("name", ["chinchilla-1", "chinchilla-2"])
def test_a_floor_of_zero_is_said_of_the_best_of_budgets_too(name):
    x = isoflops(10.0 ** np.arange(18, 24), spread=2.0)
    if name == "chinchilla-1":
        x = cross(params=np.geomspace(1e7, 3e9, 12), tokens=np.geomspace(1e8, 3e11, 40))
        x |= {"flops": 6 * x["params"] * x["tokens"]}
    x = with_noise("chinchilla-3", [0, 30, 60, 0.1, 0.12], x, 0.0)
    x["loss"] = x["loss"] - 0.3 * x["loss"].min()
    assert f"{ZERO}the points do not tell it from that" in made(name, x)["notes"]
    if name == "chinchilla-2":
        three = {each: column[x["flops"] < 5e20] for each, column in x.items()}
        assert f"{ZERO}three budgets cannot tell what loss stays" in made(name, three)["notes"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chinchilla-3", {}),
        ("chinchilla-3", {"delta": np.inf}),
        ("variable-projection", {}),
        ("chinchilla-2", {"window": 2.0}),
    ],
)
def test_a_run_that_diverged_is_named(tmp_path, name, options):
    options |= {"bootstrap": 0, "starts": 5}
    x = with_noise("chinchilla-3", BESIROGLU, isoflops(spread=3.0), 0.005)
    x["loss"][[7, 20]] = [9.8, 6.0]
    content = fit_command.fit([write_csv(tmp_path / "a.csv", x)], name, **options)
    named = [note for note in content["notes"] if "diverged" in note]
    assert [note.partition(" is ")[0] for note in named] == [
        f"{tmp_path}/a.csv:9: loss 9.8",
        f"{tmp_path}/a.csv:22: loss 6",
    ]
    # The fit file knows where its points came from, and says it again.
    fit_file.write(content, tmp_path / "fit.json")
    assert fit_command.fit([str(tmp_path / "fit.json")], "")["notes"] == content["notes"]
    x = with_noise("chinchilla-3", BESIROGLU, isoflops(spread=3.0), 0.02)
    good = fit_command.fit([write_csv(tmp_path / "b.csv", x)], name, **options)
    assert not any("diverged" in note for note in good["notes"])


@pytest.mark.parametrize(
    "name", ["power-flops", "variable-projection", "over-training", "chinchilla-2", "chinchilla-1"]
)
def test_r_squared_is_that_of_the_target_in_its_own_unit(name):
    x = isoflops(spread=2.0)
    if name == "chinchilla-1":
        x = cross(params=np.geomspace(1e7, 3e9, 12), tokens=np.geomspace(1e8, 3e11, 40))
        x |= {"flops": 6 * x["params"] * x["tokens"]}
    x = with_noise("chinchilla-3", BESIROGLU, x, 0.002)
    x |= {"overtraining": x["tokens"] / x["params"]}
    content, law = made(name, x), LAWS[name]
    # Of a law of the best at a budget the points are the best of each.
    at = x if law.measured is None else law.measured(x, Settings())
    predicted = law.predict(fit_file.values(content), at)
    expected = 1 - np.var(at["loss"] - predicted, mean=0.0) / np.var(at["loss"])
    assert content["objective"]["r_squared"] == pytest.approx(expected, rel=1e-9)
    assert f"R² {expected:.5f}" in text.fit(content)


def test_r_squared_of_a_straight_line_is_the_correlation_squared():
    x = with_noise("rl-log-linear", [0.1, 0.08], {"flops": np.geomspace(1e2, 1e5, 20)}, 0.02)
    expected = np.corrcoef(np.log10(x["flops"]), x["reward"])[0, 1] ** 2
    assert made("rl-log-linear", x)["objective"]["r_squared"] == pytest.approx(expected, rel=1e-12)


def test_a_reward_before_training_is_a_point(tmp_path):
    flops = np.array([0.0, *np.geomspace(1e2, 1e5, 30)])
    x = with_noise("rl-compute", [0.61, 0.2, 2000, 1.2], {"flops": flops}, 0.002)
    content = fit_command.fit([write_csv(tmp_path / "a.csv", x)], "rl-compute", bootstrap=20, starts=5)
    assert content["points"]["count"] == 31
    assert content["parameters"]["R_0"]["value"] == pytest.approx(0.2, abs=0.005)
    assert content["beside"]["rl-log-linear"]["r_squared"] > 0.8
    fit_file.write(content, tmp_path / "fit.json")
    again = fit_file.read(tmp_path / "fit.json")
    assert predict(again, {"flops": 0.0})["reward"]["value"] == content["parameters"]["R_0"]["value"]
    with pytest.raises(BadInputError, match="flops is 0, and must be more than 0"):
        predict(
            made("power-flops", with_noise("power-flops", [1.7, 500, 0.15], {"flops": flops[1:]}, 0)), {"flops": 0.0}
        )


def test_how_budgets_were_read_is_in_the_fit_file_and_done_again(tmp_path):
    x = with_noise("chinchilla-3", BESIROGLU, isoflops(), 0.001)
    path = write_csv(tmp_path / "a.csv", x)
    for options in ({}, {"vertex": "akima"}, {"window": np.inf}, {"window": 3.0, "budget_tolerance": 0.1}):
        content = fit_command.fit([path], "chinchilla-2", bootstrap=20, **options)
        fit_file.write(content, tmp_path / "fit.json")
        again = json.loads(json.dumps(fit_file.jsonable(fit_command.fit([str(tmp_path / "fit.json")], ""))))
        assert again == fit_file.read(tmp_path / "fit.json")
        assert again["settings"]["vertex"] == options.get("vertex", "parabola")
    content["settings"] = {name: value for name, value in content["settings"].items()
                           if name not in ("window", "vertex", "budget_tolerance")}  # fmt: skip
    fit_file.write(content, tmp_path / "old.json")
    assert fit_file.read(tmp_path / "old.json")["law"] == "chinchilla-2"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--law", "chinchilla-3", "--law", "kaplan"], "--law: is given twice; give it once"),
        (["--law", "chinchilla-3", "--delta", "1e-3", "--delta=inf"], "--delta: is given twice"),
        (["--law", "chinchilla-3", "--seed", "1", "--seed", "1"], "--seed: is given twice"),
        (
            ["--law", "chinchilla-3", "--window", "4"],
            "--window: --law chinchilla-3 has no use for it, only chinchilla-2",
        ),
        (["--law", "chinchilla-1", "--budget-tolerance", "0.1"], "--budget-tolerance: --law chinchilla-1 has no use"),
        (["--law", "chinchilla-2", "--window", "1"], "--window 1: must be more than 1"),
        (["--law", "chinchilla-2", "--budget-tolerance", "2"], "--budget-tolerance 2: must be 0 to 0.25"),
        (["--law", "chinchilla-2", "--vertex", "akyma"], "--vertex 'akyma' is not known; did you mean 'akima'?"),
        (["--law", "chinchilla-2", "--vertex", "akima", "--window", "4"], "--window: a spline has none"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, monkeypatch, options, said):
    from blobjax.cli import commands

    path = write_csv(tmp_path / "a.csv", with_noise("chinchilla-3", BESIROGLU, isoflops(), 0.01))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match=said) as caught:
        commands.app(["laws", "fit", path, *options], standalone_mode=False)
    assert len(caught.value.problems) == 1


def test_a_budget_to_predict_for_is_given_once(tmp_path, monkeypatch):
    from blobjax.cli import commands

    x = with_noise("power-flops", [1.7, 500, 0.15], {"flops": np.geomspace(1e16, 1e20, 12)}, 0)
    fit_file.write(made("power-flops", x), tmp_path / "fit.json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match="--flops: is given twice; give it once"):
        commands.app(["laws", "predict", "fit.json", "--flops", "1e19", "--flops", "1e20"], standalone_mode=False)


def test_no_intervals_where_they_were_not_asked_for(tmp_path):
    x = with_noise("chinchilla-3", BESIROGLU, isoflops(), 0.01)
    content = fit_command.fit([write_csv(tmp_path / "a.csv", x)], "chinchilla-3", bootstrap=0, starts=5)
    assert content["parameters"]["E"]["low"] is None
    fit_file.write(content, tmp_path / "fit.json")
    result, _ = fit_command.predict(str(tmp_path / "fit.json"), {"flops": 1e21})
    assert result["loss"]["low"] is None
    assert "E " in text.fit(content)


@pytest.mark.parametrize(
    ("name", "x", "zero"),
    [
        # Three budgets cannot tell what loss stays.
        ("chinchilla-2", with_noise("chinchilla-3", BESIROGLU, isoflops((1e18, 1e19, 1e20)), 0.001), "E"),
        # Size does harm here, so what it costs is at its bound.
        ("variable-projection", harmful_size(), "A"),
    ],
)
def test_a_coefficient_of_zero_is_a_result(tmp_path, name, x, zero):
    content = fit_command.fit([write_csv(tmp_path / "a.csv", x)], name, bootstrap=20)
    assert content["parameters"][zero]["value"] == 0
    fit_file.write(content, tmp_path / "fit.json")
    at = {"flops": 1e20} if name == "chinchilla-2" else {"params": 1e9, "tokens": 2e10}
    result, _ = fit_command.predict(str(tmp_path / "fit.json"), at)
    assert result["loss"]["run_low"] < result["loss"]["low"] <= result["loss"]["value"] <= result["loss"]["high"]
    assert fit_command.fit([str(tmp_path / "fit.json")], "")["parameters"] == content["parameters"]


@pytest.mark.parametrize(("name", "fixed", "values"), [
    ("power-flops", "E", [0, 60, 0.08]),
    ("chinchilla-3", "E", [0, 30, 60, 0.1, 0.12]),
    ("chinchilla-3", "A", [1.8, 0, 2000, None, 0.35]),
    ("over-training", "a", [1.8, 0, 500, 0.18]),
    ("precision-weights", "E", [0, 30, 60, 0.1, 0.12, 2.5]),
    ("data-constrained", "E", [0, 50, 100, 0.12, 15, 5]),
])  # fmt: skip
def test_a_term_that_is_held_at_zero_drops_out(tmp_path, name, fixed, values):
    x = repeated() if name == "data-constrained" else sizes_and_tokens(5, 5)
    x |= {"overtraining": x["tokens"] / x["params"], "weight_bits": np.resize([3.0, 6.0, 12.0], len(x["params"]))}
    x = with_noise(name, [1.0 if value is None else value for value in values], x, 1e-4)
    options = {"fixed": [f"{fixed}=0"], "starts": 2, "bootstrap": 0 if name == "data-constrained" else 10}
    content = fit_command.fit([write_csv(tmp_path / "a.csv", x)], name, **options)
    found = [entry["value"] for entry in content["parameters"].values()]
    assert [value for value in found if value is not None] == pytest.approx(
        [value for value in values if value is not None], rel=0.1
    )
    assert [value is None for value in found] == [value is None for value in values]
    fit_file.write(content, tmp_path / "fit.json")
    again = json.loads(json.dumps(fit_file.jsonable(fit_command.fit([str(tmp_path / "fit.json")], ""))))
    assert again == fit_file.read(tmp_path / "fit.json")


def test_an_exponent_without_a_coefficient_has_no_value(tmp_path):
    content = fit_command.fit([write_csv(tmp_path / "a.csv", harmful_size())], "variable-projection", bootstrap=20)
    alpha = content["parameters"]["alpha"]
    assert (alpha["value"], alpha["low"], alpha["weakly_identified"]) == (None, None, True)
    assert content["derived"] == {}
    said = text.fit(content)
    assert "exponent of size; not identified" in said
    assert "note: a, b, G: there is no best split, as A is 0" in said
    assert "note: no profile of B, weakly identified: variable-projection has an estimator of its own" in said
    fit_file.write(content, tmp_path / "fit.json")
    with pytest.raises(BadInputError, match="no best split, as A is 0; give --params and --tokens"):
        fit_command.predict(str(tmp_path / "fit.json"), {"flops": 1e20})


def test_draws_without_a_best_split_are_counted():
    """Where tokens hardly matter, more of them even harm in some resamples: no interval is NaN for that."""
    law, draws = LAWS["chinchilla-3"], np.tile(BESIROGLU, (20, 1)) * np.linspace(0.9, 1.1, 20)[:, None]
    found = Estimate(BESIROGLU, 1.0, np.zeros(60))
    whole = fit_file._derived(law, found, draws, 0.92)
    assert fit_file._without_derived(law, found, draws) == []
    draws[[3, 8], 4] = -0.01
    spoilt = fit_file._derived(law, found, draws, 0.92)
    assert spoilt["G"]["low"] == pytest.approx(whole["G"]["low"], rel=0.1)
    (note,) = fit_file._without_derived(law, found, draws)
    assert "a, b, G: 2 of 20 resamples have none" in note
