"""A study's page from what lies in its directory, which others may have written to."""

import os
import subprocess
import sys

import pytest

from blobjax.config import BadInputError
from blobjax.report.prices import Prices
from blobjax.studies import analyses, study_command, study_report
from blobjax.studies.page import page
from blobjax.studies.study import load_study
from blobjax.studies.study_command import summarise
from tests.studies.small import made_up, write


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{", "[" * 100_000])
def test_a_summary_that_is_none_is_one_line(tmp_path, content):
    plan = load_study(write(tmp_path), [], tmp_path / "study")
    plan.directory.mkdir()
    (plan.directory / "study.yaml").write_text(study_command._record(plan))
    (plan.directory / "summary.json").write_text(content)
    with pytest.raises(BadInputError, match=r"study/summary\.json: ") as caught:
        study_report.report(plan.directory, "", Prices())
    assert len(caught.value.problems) == 1
    assert not (plan.directory / "study_report.html").exists()


def test_a_pipe_in_place_of_a_summary_is_one_line(tmp_path):
    plan = load_study(write(tmp_path), [], tmp_path / "study")
    plan.directory.mkdir()
    (plan.directory / "study.yaml").write_text(study_command._record(plan))
    os.mkfifo(plan.directory / "summary.json")
    asked = [sys.executable, "-m", "blobjax.cli", "report", str(plan.directory)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"blobjax: {plan.directory / 'summary.json'}: is not a file; move it away\n"


@pytest.mark.parametrize(("analysis", "verdict"), [("data-breadth", "cannot tell"), ("final-loss", "no verdict")])
def test_what_could_not_be_told_is_not_what_nobody_claimed(tmp_path, analysis, verdict):
    """Two kinds of training without a length in common: the sentence about it begins with other words."""
    plan = load_study(write(tmp_path), [], tmp_path / "study")
    mixtures = {"bible": {"bible": 1.0}, "broad": {"bible": 1.0, "shakespeare": 1.0}}
    cells = [
        made_up({"training": name, "rate": "1", "width": "w"}, [6.0, 3.0], config={"data": {"mixture": mixture}},
                tokens=tokens, **{f"eval/{domain}/cross_entropy": 3.0 for domain in mixture})
        for (name, mixture), tokens in zip(mixtures.items(), (100.0, 200.0), strict=True)
    ]  # fmt: skip
    finding = analyses.found(analysis, cells)
    summary = summarise(plan, cells, finding, None) | {"command": ""}
    assert summary["reproduced"] is None
    assert not any(words.startswith("Cannot tell") for words in summary["found"])
    assert f'<span class="verdict null">{verdict}</span>' in page(plan, cells, summary, finding, None, [])
