"""What a fit says of runs that were not made: which columns it takes, its best split, and how sure it is."""

import numpy as np
import pytest

from blobjax.config import BadInputError
from blobjax.laws import certainty, fit_command, fit_file, text
from blobjax.laws.prediction import predict
from tests.laws.synthetic import BESIROGLU, cross, isoflops, made, repeated, sizes_and_tokens, with_noise, write_csv


def test_a_size_and_a_multiplier_are_enough():
    content = made("chinchilla-3", with_noise("chinchilla-3", BESIROGLU, sizes_and_tokens(5, 5), 0.001))
    whole = predict(content, {"params": 1e9, "tokens": 2e10})
    assert predict(content, {"params": 1e9, "overtraining": 20.0}) == whole
    assert whole["at"]["flops"] == pytest.approx(1.2e20)
    assert predict(content, {"tokens": 2e10, "overtraining": 20.0})["loss"] == whole["loss"]
    with pytest.raises(BadInputError, match=r"overtraining is 20, but tokens / params is 40; give two of them alone"):
        predict(content, {"params": 1e9, "tokens": 4e10, "overtraining": 20.0})


def test_what_a_law_does_not_use_is_not_taken(tmp_path):
    """A parabola's law is of the best at a budget: its loss at another split would be the best's all the same."""
    x = with_noise("chinchilla-3", BESIROGLU, isoflops(), 0.001)
    fit_file.write(
        fit_command.fit([write_csv(tmp_path / "a.csv", x)], "chinchilla-2", bootstrap=10), tmp_path / "fit.json"
    )
    with pytest.raises(BadInputError) as refused:
        fit_command.predict(str(tmp_path / "fit.json"), {"params": 1e8, "tokens": 1e12})
    assert refused.value.problems[0] == "--law chinchilla-2 uses no 'params'; it takes flops"
    assert fit_command.predict(str(tmp_path / "fit.json"), {"flops": 6e20})[0]["optimum"]


def test_kaplans_law_has_no_best_split_of_compute(tmp_path):
    x = with_noise("kaplan", [8.8e13, 5.4e13, 0.076, 0.095], isoflops(), 0.001)
    content = fit_command.fit([write_csv(tmp_path / "a.csv", x)], "kaplan", bootstrap=0, starts=5)
    fit_file.write(content, tmp_path / "fit.json")
    with pytest.raises(BadInputError, match=r"--law kaplan uses no 'flops'; it takes params, tokens$"):
        fit_command.predict(str(tmp_path / "fit.json"), {"flops": 1e22, "params": 1e9})


def test_a_single_run_is_never_surer_than_the_law(tmp_path):
    """One noise for each draw of the law would be one draw of their sum: with few draws it may be the narrower."""
    for seed in range(6):
        x = with_noise("power-flops", [1.7, 500, 0.15], {"flops": np.geomspace(1e16, 1e20, 12)}, 0.002, seed)
        content = fit_command.fit([write_csv(tmp_path / "a.csv", x)], "power-flops", bootstrap=20, starts=2)
        found = predict(content, {"flops": 1e23})["loss"]
        assert found["run_low"] < found["low"] < found["high"] < found["run_high"]


def test_training_curves_are_as_many_as_there_are_sizes(tmp_path):
    """Points of one curve are no measurements of their own, and what the envelope scatters by is no run's noise."""
    x = cross(params=np.geomspace(1e7, 3e9, 12), tokens=np.geomspace(1e8, 3e11, 40))
    x = with_noise("chinchilla-3", BESIROGLU, x | {"flops": 6 * x["params"] * x["tokens"]}, 0.002)
    content = fit_command.fit([write_csv(tmp_path / "a.csv", x)], "chinchilla-1", bootstrap=20)
    assert content["bootstrap"]["share"] == pytest.approx(certainty.share(0.9, 12, 7))
    found = predict(content, {"flops": 1e21})
    assert (found["loss"]["run_low"], found["loss"]["run_high"]) == (None, None)
    assert "of a single run" not in text.prediction(found, "loss", 0.9)


def test_the_best_of_a_budget_with_little_data(tmp_path):
    """What the law needs besides the budget is asked for."""
    x = repeated()
    path = write_csv(tmp_path / "a.csv", with_noise("data-constrained", [1.87, 521, 1488, 0.353, 15.4, 5.3], x, 0.001))
    fit_file.write(fit_command.fit([path], "data-constrained", bootstrap=5, starts=5), tmp_path / "fit.json")
    with pytest.raises(BadInputError, match=r"needs unique_tokens too; give --at unique_tokens=$"):
        fit_command.predict(str(tmp_path / "fit.json"), {"flops": 1e22})
    little, plenty = (
        fit_command.predict(str(tmp_path / "fit.json"), {"flops": 1e22}, [f"unique_tokens={unique}"])[0]
        for unique in ("1e9", "1e12")
    )
    assert little["loss"]["value"] > plenty["loss"]["value"]
    # Fewer unique tokens: epochs are worth more than excess parameters (R_D > R_N).
    assert little["optimum"]["tokens"]["value"] > 1e9
    assert 6 * little["at"]["params"] * little["at"]["tokens"] == pytest.approx(1e22)
