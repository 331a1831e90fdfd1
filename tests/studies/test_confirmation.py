"""A prediction and the run that tests it: made once, an ordinary run, and read again whenever the study concludes."""

import json
import math

import pytest

from blobjax.config import BadInputError, load
from blobjax.laws.multiplier import Worth
from blobjax.runs.directory import read_jsonl
from blobjax.studies import study_command
from blobjax.studies.analyses import ANALYSES, Analysis
from blobjax.studies.finding import Finding, Prediction
from tests.report.page import Page
from tests.studies.small import write


def predicts(results):
    """A finding that is sure of what is wrong, and knows it of another law."""
    sure = {"value": 1.0, "low": 0.9, "high": 1.1, "run_low": 0.8, "run_high": 1.2}
    wide = {"value": 3.0, "low": 2.0, "high": 4.0, "run_low": 0.5, "run_high": 9.0}
    settings = {"duration.length": "12 steps", "seed": 7}
    prediction = Prediction("next", "twelve steps", settings, {"sure": sure, "wide": wide})
    worth = {"right": Worth(1e12, 2.0, 4e12, 4.0, 3.0, None), "beyond": Worth(1e12, 1.0, refused="too good")}
    return Finding(True, ("Words.",), {}, (), {}, worth, prediction)


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("confirmed")
    path = write(folder, grid={"seed": {"key": "seed", "values": [0]}})
    more = ["evaluation.every=100%", "duration={length: 20 steps, global_batch_size: 4, warmup: 2 steps}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ANALYSES, "final-loss", Analysis(predicts, predicts=True))
        assert study_command.study(path, more, str(folder / "study"), 1) == 0
        before = json.loads((folder / "study" / "summary.json").read_text())
        codes = [study_command.study(path, more, str(folder / "study"), 1, confirm=True) for _ in range(2)]
    return folder / "study", before, codes


def test_without_confirm_the_prediction_is_open(confirmed):
    _, before, _ = confirmed
    assert (before["prediction"]["status"], before["prediction"]["measured"]) == ("waiting", None)
    assert before["reproduced"] is True
    assert "--confirm runs it" in before["found"][-1]


def test_the_run_is_an_ordinary_one_and_is_made_once(confirmed):
    directory, _, codes = confirmed
    assert codes == [0, 0]
    config = load(str(directory / "confirm" / "next" / "config.yaml"))
    assert (str(config.duration.length), config.seed, config.model.d_model) == ("12 steps", 7, 16)
    events = [event["event"] for event in read_jsonl(directory / "confirm" / "next" / "events.jsonl")]
    assert events.count("start") == 1
    # It is no cell: the study's own results are what they were.
    assert len((directory / "cells.jsonl").read_text().splitlines()) == 1


def test_what_was_measured_stands_beside_the_prediction(confirmed):
    directory, _, _ = confirmed
    summary = json.loads((directory / "summary.json").read_text())
    found = summary["prediction"]
    last = [line for line in read_jsonl(directory / "confirm" / "next" / "metrics.jsonl") if "eval" in str(line)][-1]
    assert found["measured"] == pytest.approx(last["eval/shakespeare/cross_entropy"])
    assert math.log(256) > found["measured"] > 1.2
    assert [each["held"] for each in found["expected"].values()] == [False, True]
    assert summary["reproduced"] == "partly"
    assert "outside of that" in summary["found"][-1]
    text = Page((directory / "index.html").read_text()).text
    assert "Predicted, and tested" in text
    assert f"{found['measured']:.4f}" in text


def test_the_page_says_what_it_was_worth(confirmed):
    text = Page((confirmed[0] / "index.html").read_text()).text
    assert "Worth in compute" in text
    assert "3 to -" in text
    assert "not known: too good" in text


def test_a_study_that_predicts_nothing_is_refused_before_it_runs(tmp_path):
    with pytest.raises(BadInputError, match="--confirm: small predicts nothing that a run could test"):
        study_command.study(write(tmp_path), [], str(tmp_path / "study"), confirm=True)
    assert not (tmp_path / "study").exists()
