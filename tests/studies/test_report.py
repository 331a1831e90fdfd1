"""A study's page from what lies in its directory, which others may have written to."""

import os
import subprocess
import sys

import pytest

from blobjax.config import BadInputError
from blobjax.report.prices import Prices
from blobjax.studies import command, report
from blobjax.studies.study import load_study
from tests.studies.small import write


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{", "[" * 100_000])
def test_a_summary_that_is_none_is_one_line(tmp_path, content):
    plan = load_study(write(tmp_path), [], tmp_path / "study")
    plan.directory.mkdir()
    (plan.directory / "study.yaml").write_text(command._record(plan))
    (plan.directory / "summary.json").write_text(content)
    with pytest.raises(BadInputError, match=r"study/summary\.json: ") as caught:
        report.report(plan.directory, "", Prices())
    assert len(caught.value.problems) == 1
    assert not (plan.directory / "report.html").exists()


def test_a_pipe_in_place_of_a_summary_is_one_line(tmp_path):
    plan = load_study(write(tmp_path), [], tmp_path / "study")
    plan.directory.mkdir()
    (plan.directory / "study.yaml").write_text(command._record(plan))
    os.mkfifo(plan.directory / "summary.json")
    asked = [sys.executable, "-m", "blobjax.cli", "report", str(plan.directory)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"blobjax: {plan.directory / 'summary.json'}: is not a file; move it away\n"
