"""A study's page from what lies in its directory, which others may have written to."""

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
