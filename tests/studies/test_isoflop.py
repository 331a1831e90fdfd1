"""IsoFLOP: cells made up from a known law give its best sizes back, and the next budget is predicted and tested."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest

from blobjax.compute.flops import flops_per_token, param_count
from blobjax.config import Config
from blobjax.laws import fit_file
from blobjax.laws.formulas import LAWS
from blobjax.report.plots import to_png
from blobjax.studies import confirmation, law_sections
from blobjax.studies.analyses import fits, isoflop
from tests.report.page import Page
from tests.studies.small import made_up

# E, A, B, alpha, beta: exponents alike, so that the best size grows as the square root of the budget.
TRUTH = np.array([1.2, 30.0, 60.0, 0.35, 0.35])
BUDGETS = (1e12, 2e12, 4e12, 8e12)
WIDTHS = (32, 48, 64, 96, 128)


def model(width: int) -> dict:
    return {"d_model": width, "n_heads": width // 8, "n_layers": 2, "activation": "gelu", "tie_embeddings": False}


def cell(budget: float, width: int, off: float = 0.0):
    config = {"model": model(width), "data": {"mixture": {"bible": 1.0}, "seq_len": 64}}
    made = Config.model_validate(config)
    params = param_count(made.model, made.conditioning, embeddings=True)
    tokens = budget / flops_per_token(made.model, 64)
    loss = LAWS["chinchilla-3"].predict(TRUTH, {"params": np.array([params]), "tokens": np.array([tokens])}).item()
    last = {"tokens": tokens, "eval/bible/cross_entropy": loss * (1 + off)}
    return made_up({"budget": f"{budget:g} flops", "size": str(width)}, [6.0, 3.0, 2.0], config=config, **last)


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fits, "RESAMPLES", 30)
        yield


@pytest.fixture(scope="module")
def finding():
    return isoflop.analyse([cell(budget, width) for budget in BUDGETS for width in WIDTHS])


def test_the_law_that_cells_were_made_from_comes_out(finding):
    assert finding.reproduced is True
    parametric = {name: entry["value"] for name, entry in finding.laws["chinchilla-3"]["parameters"].items()}
    assert parametric == {name: pytest.approx(value, rel=0.02) for name, value in zip(parametric, TRUTH, strict=True)}
    # Small models' tables make FLOPs a little less than 6 × params × tokens: the exponent is not exactly one half.
    assert finding.laws["chinchilla-2"]["parameters"]["a"]["value"] == pytest.approx(0.5, abs=0.05)
    assert all(to_png(picture.figure).startswith(b"\x89PNG") for picture in finding.pictures)
    assert finding.pictures[0].figure.axes[0].get_xscale() == "log"


def test_a_fit_in_the_finding_is_a_fit_file(finding, tmp_path):
    fit_file.write(finding.laws["chinchilla-2"], tmp_path / "fit.json")
    again = fit_file.refit(fit_file.read(tmp_path / "fit.json"))
    assert again["parameters"]["a"]["value"] == finding.laws["chinchilla-2"]["parameters"]["a"]["value"]


def test_the_command_beside_a_law_works_where_its_file_is(finding, tmp_path):
    for name, content in finding.laws.items():
        fit_file.write(content, tmp_path / f"fit-{name}.json")
        command, *words = shlex.split(law_sections.predict(name, content))
        assert command == "blobjax"
        done = subprocess.run(
            [sys.executable, "-m", "blobjax.cli", *words], cwd=tmp_path, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr


def test_the_page_shows_each_law_with_its_intervals(finding):
    (html,) = law_sections.laws(finding.laws)
    text = Page(html).text
    low = finding.laws["chinchilla-2"]["parameters"]["a"]["low"]
    for words in ("Fitted laws", "exponent of params", "90% from", f"{low:.4g}", "Leave-future-out", "resamples"):
        assert words in text
    assert law_sections.laws({}) == law_sections.worth({}) == []


def test_the_right_size_is_worth_more_than_the_wrong_ones(finding):
    # At the largest budget; the best of the law itself would be 1.
    found = {int(name.split("_")[1]): each for name, each in finding.worth.items()}
    assert set(found) == set(WIDTHS)
    multipliers = {width: each.multiplier for width, each in found.items() if each.multiplier}
    best = min(finding.worth.values(), key=lambda each: each.loss)
    assert best.multiplier is None or best.multiplier == max(multipliers.values())
    assert all(multiplier < 1.1 for multiplier in multipliers.values())
    assert multipliers[32] < 0.9


def test_the_next_budget_is_predicted_for_a_model_that_can_be_built(finding):
    found = finding.prediction
    settings = found.settings
    assert settings["duration.length"] == "1.6e13 flops"
    Config(name=f"isoflop_{found.name}")  # as the run will be called
    config = Config.model_validate(
        {"model": model(64) | {key.removeprefix("model."): value for key, value in settings.items() if "model." in key}}
    )
    params = param_count(config.model, config.conditioning, embeddings=True)
    content = finding.laws["chinchilla-2"]
    G, a = (content["parameters"][name]["value"] for name in ("G_N", "a"))
    assert params == pytest.approx(G * 1.6e13**a, rel=0.15)  # widths come in steps of a head
    tokens = 1.6e13 / flops_per_token(config.model, 64)
    truth = LAWS["chinchilla-3"].predict(TRUTH, {"params": np.array([params]), "tokens": np.array([tokens])}).item()
    for expected in found.expected.values():
        assert expected["value"] == pytest.approx(truth, rel=0.005)


def test_a_budget_without_a_lowest_point_is_refused_by_name_and_counts_against():
    # At the smallest budget only sizes that are too large for it.
    sizes = {5e10: (64, 96, 128, 192)} | dict.fromkeys(BUDGETS, WIDTHS)
    found = isoflop.analyse([cell(budget, width) for budget, widths in sizes.items() for width in widths])
    assert found.reproduced == "partly"
    assert any(
        words.startswith("Cannot tell the best size of every budget: budget 5e+10")
        and "outside of what was sampled" in words
        for words in found.words
    )


def test_an_exponent_whose_interval_is_too_wide_is_not_told():
    off = np.random.default_rng(0).normal(0, 0.02, (len(BUDGETS), len(WIDTHS)))
    cells = [cell(budget, width, off[i, j]) for i, budget in enumerate(BUDGETS) for j, width in enumerate(WIDTHS)]
    found = isoflop.analyse(cells)
    if "chinchilla-2" in found.laws:
        assert found.reproduced != True  # noqa: E712
        assert any("Cannot tell" in words for words in found.words)


def test_three_sizes_cannot_tell():
    """Their parabolas go through all points, so nothing is known of the noise."""
    found = isoflop.analyse([cell(budget, width) for budget in BUDGETS for width in (32, 64, 128)])
    assert found.reproduced is None
    doubts = [words for words in found.words if words.startswith("Cannot tell ")]
    assert len(doubts) == 2
    assert all("no budget has more than three sizes, so no noise is known" in words for words in doubts)
    expected = found.prediction.expected["chinchilla-2"]
    assert expected["value"] > 0
    assert expected["low"] is expected["run_low"] is None
    growth = found.pictures[1]
    assert "there are no intervals" in growth.caption
    assert to_png(growth.figure).startswith(b"\x89PNG")


def test_too_few_cells_give_words_and_no_law():
    found = isoflop.analyse([cell(1e12, width) for width in WIDTHS])
    assert (found.reproduced, found.laws, found.prediction) == (None, {}, None)
    assert "chinchilla-2 could not be fitted" in found.words[0]
    assert isoflop.analyse([]).reproduced is None


def as_measured(finding, measured: float) -> confirmation.Tested:
    result = made_up({}, [6.0, 2.0], status="waiting" if np.isnan(measured) else "finished")
    return confirmation.Tested(finding.prediction, result, measured)


def test_what_was_measured_stands_beside_the_prediction_and_counts(finding):
    expected = finding.prediction.expected["chinchilla-2"]
    assert expected["run_low"] < expected["value"] < expected["run_high"]
    inside, outside = as_measured(finding, expected["value"]), as_measured(finding, expected["value"] * 1.1)
    assert confirmation.weighed(finding, inside).reproduced is True
    assert confirmation.weighed(finding, outside).reproduced == "partly"
    assert "outside of that; the prediction is off by -9.09%" in confirmation.weighed(finding, outside).words[-1]
    assert json.loads(json.dumps(confirmation.record(outside)))["expected"]["chinchilla-2"]["held"] is False
    open_one = as_measured(finding, float("nan"))
    assert "--confirm runs it" in confirmation.weighed(finding, open_one).words[-1]
    assert confirmation.weighed(finding, open_one).reproduced is finding.reproduced
    assert confirmation.record(open_one)["measured"] is None
    assert "waiting" in confirmation.html(open_one)[0]
