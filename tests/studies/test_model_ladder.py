"""The ladder: an axis of sizes, and rungs made up from a known law."""

from dataclasses import replace

import numpy as np
import pytest

from blobjax.compute.flops import flops_per_token, param_count
from blobjax.config import load
from blobjax.laws.formulas import LAWS
from blobjax.report.plots import to_png
from blobjax.studies import noise
from blobjax.studies.analyses import fits, found, model_ladder
from blobjax.studies.study import load_study, one_more
from tests.studies.small import made_up, seeded, write

TRUTH = np.array([1.1, 60.0, 0.16])
# Of held-out losses, from seed to seed: enough that no two points are one, and too little for any claim.
APART = 1e-5
SIZES = ("14k", "25k", "50k", "100k", "200k")


def rung(size: str, off: float = 0.0):
    config = load("laptop", ["data={seq_len: 64, mixture: {bible: 1}}", "model.activation=gelu"], size)
    tokens = 20 * param_count(config.model, config.conditioning, embeddings=False)
    flops = flops_per_token(config.model, 64) * tokens
    loss = LAWS["power-flops"].predict(TRUTH, {"flops": np.array([flops])}).item() + off
    last = {"tokens": tokens, "eval/bible/cross_entropy": loss}
    result = made_up({"size": size}, [6.0, 2.0], config=config.model_dump(mode="json"), **last)
    return replace(result, cell=replace(result.cell, overrides={"size": size}))


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fits, "RESAMPLES", 30)
        yield


def test_the_smaller_rungs_predict_the_largest_and_all_of_them_the_next():
    finding = model_ladder.analyse([rung(size) for size in reversed(SIZES)])
    # The law has its interval, and the largest rung, measured once, has none.
    assert finding.reproduced == "partly"
    assert "Cannot tell whether the largest rung is predicted to within 2%: there is one seed" in finding.words[-1]
    seeds = model_ladder.analyse(seeded([rung(size) for size in SIZES], (0, 1), APART))
    assert seeds.reproduced is True
    assert seeds.prediction.settings == {"size": "400k"}
    found = {name: entry["value"] for name, entry in finding.laws["power-flops"]["parameters"].items()}
    assert list(found.values()) == pytest.approx(TRUTH.tolist(), rel=0.01)
    assert "an error of" in finding.words[-2]
    # On the law a rung is worth what it took; at the ends rounding decides on which side of the last budget it is.
    assert [finding.worth[size].multiplier for size in SIZES[1:-1]] == pytest.approx([1, 1, 1], rel=0.01)
    assert finding.prediction.settings == {"size": "400k"}
    size = finding.prediction.settings["size"]
    expected = finding.prediction.expected["power-flops"]["value"]
    next_one = rung(size)
    assert expected == pytest.approx(next_one.held_out["eval/bible/cross_entropy"], rel=1e-3)
    assert all(to_png(picture.figure).startswith(b"\x89PNG") for picture in finding.pictures)


def test_a_largest_rung_that_is_not_as_predicted_counts_against():
    off = [*(rung(size) for size in SIZES[:-1]), rung(SIZES[-1], 0.1)]
    finding = model_ladder.analyse(seeded(off, (0, 1), APART))
    assert finding.reproduced == "partly"
    assert not any("Cannot tell" in words for words in finding.words)
    few = model_ladder.analyse([rung(size) for size in SIZES[:3]])
    assert (few.reproduced, few.laws) == (None, {})
    assert "could not be fitted" in few.words[-1]


def test_whether_the_loss_falls_is_compared_within_each_seed():
    """Seeds differ by more than rungs do. The largest is lower with one seed and higher with the other."""
    cells = [
        replace(cell, metrics=[line | {"eval/bible/cross_entropy": losses[seed]} for line in cell.metrics])
        for size, losses in (("14k", (2.0, 3.0)), ("25k", (1.9, 2.9)), ("50k", (1.8, 2.85)), ("100k", (1.7, 2.86)))
        for seed in (0, 1)
        for cell in seeded([rung(size)], [seed])
    ]
    three = model_ladder.analyse([cell for cell in cells if cell.label("size") != "100k"])
    assert "Cannot tell whether each rung has a lower loss" in three.words[0]
    two = model_ladder.analyse(cells[:4])
    assert two.words[0] == "Each rung has a lower loss than the one below it."
    four = model_ladder.analyse(cells)
    assert "Cannot tell whether each rung has a lower loss than the one below it: of " in four.words[0]
    assert four.numbers["held_out_loss"]["14k"] == noise.mean_of([2.0, 3.0])
    assert list(four.numbers["flops"]) == ["14k", "25k", "50k", "100k"]
    one = model_ladder.analyse([rung(size) for size in SIZES])
    assert "Cannot tell whether each rung has a lower loss" in one.words[0]
    assert "there is one seed" in one.words[0]
    risen = model_ladder.analyse(seeded([rung("14k"), rung("25k", 1.0)]))
    assert risen.words[0].startswith("Not each rung has a lower loss than the one below it (25k)")
    assert risen.reproduced is False


def test_a_rung_that_came_to_no_end_is_named_and_the_rest_is_no_reproduction():
    rungs = [*(rung(size) for size in SIZES), replace(rung("400k"), status="diverged")]
    finding = found("model-ladder", rungs)
    assert model_ladder.analyse(seeded(rungs[:5], (0, 1), APART)).reproduced is True
    assert finding.reproduced == "partly"
    assert finding.words[-1] == "Without an end to be compared, and so missing from all of this: 400k (diverged)."


def test_an_axis_of_sizes_is_the_dial_for_each_cell(tmp_path):
    path = write(tmp_path, base="laptop", grid={"size": {"key": "size", "values": ["100k", "5M"]}})
    plan = load_study(path, ["optimizer.learning_rate=1e-3"], tmp_path / "there")
    assert [cell.name for cell in plan.cells] == ["100k", "5M"]
    for cell, size in zip(plan.cells, ("100k", "5M"), strict=True):
        alone = load("laptop", ["optimizer.learning_rate=1e-3"], size)
        assert (cell.config.model, cell.config.optimizer) == (alone.model, alone.optimizer)
        assert cell.config.duration == alone.duration
    more = one_more(plan, "1M", {"size": "1M"}, tmp_path / "confirm")
    assert more.config.model == load("laptop", size="1M").model
    assert more.config.optimizer.learning_rate == 1e-3
    assert more.config.logging.run_dir == f"{tmp_path}/confirm/1M"


def test_another_axis_wins_over_the_size(tmp_path):
    grid = {"size": {"key": "size", "values": ["100k"]}, "rate": {"key": "optimizer.learning_rate", "values": [0.5]}}
    (cell,) = load_study(write(tmp_path, base="laptop", grid=grid), []).cells
    assert (cell.config.optimizer.learning_rate, cell.config.model.d_model) == (0.5, 64)
