"""`blobjax report STUDY`: a study's page from what lies in its directory, whether it has come to its end or not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from blobjax.config import BadInputError
from blobjax.report import plots, redaction, report_command
from blobjax.report.prices import Prices
from blobjax.runs.outcome import DONE
from blobjax.studies import confirmation
from blobjax.studies.analyses import found
from blobjax.studies.finding import Finding
from blobjax.studies.page import page
from blobjax.studies.results import read
from blobjax.studies.study import ResolvedStudy, load_study
from blobjax.studies.study_command import summarise


def report(directory: Path, out: str, prices: Prices) -> Path:
    """Writes the page that the study wrote itself, and more where prices are given; where.

    Args:
      directory: of a study, with its study.yaml.
      out: a file; empty: report.html in the directory.

    Raises:
      BadInputError: no page can be made or written.
    """
    path = report_command.check(directory, out)
    plan, recorded = _plan(directory)
    results = [read(cell) for cell in plan.cells]
    still_open = [result for result in results if result.status not in (*DONE, "failed")]
    if still_open:
        ended = len(results) - len(still_open)
        words = f"Not finished: {ended} of {len(results)} cells are at their end, and nothing is concluded from a part."
        finding, tested = Finding(None, (words,), {}, ()), None
    else:
        finding = found(plan.study.analysis, results)
        tested = confirmation.look(plan, finding)
        finding = confirmation.weighed(finding, tested)
    # The command is known of a study that has written its summary: study.yaml holds overrides as applied.
    again = redaction.command(str(recorded.get("command", "")))
    summary = summarise(plan, results, finding, tested) | {"command": again}
    pictures = [(picture.caption, plots.to_png(picture.figure)) for picture in finding.pictures]
    report_command.write(path, page(plan, results, summary, finding, tested, pictures, prices))
    return path


def _plan(directory: Path) -> tuple[ResolvedStudy, dict[str, Any]]:
    """The study as it was run, and its summary.json; empty where there is none yet."""
    summary = directory / "summary.json"
    if summary.exists() and not summary.is_file():  # a pipe would keep us waiting for its other end
        raise BadInputError(f"{summary}: is not a file; move it away")
    try:
        recorded = json.loads(summary.read_text(encoding="utf-8"))
    except FileNotFoundError:
        recorded = {}
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"{summary}: cannot be read: {error}") from None
    if not isinstance(recorded, dict):
        raise BadInputError(f"{summary}: is none; move it away, and run the study again")
    plan = load_study(str(directory / "study.yaml"), [], directory)
    return replace(plan, name=str(recorded.get("study", directory.resolve().name))), recorded
