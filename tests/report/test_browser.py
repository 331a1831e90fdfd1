"""A real run, stopped and gone on with, and a study; their pages as a real browser shows them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from blobjax.reliability.run_directory import read_jsonl
from blobjax.report import command
from blobjax.report.prices import Prices
from blobjax.studies import command as studies
from blobjax.studies import report as study_report
from blobjax.studies import runner
from blobjax.studies.study import load_study
from blobjax.training.trainer import train
from tests.report.browser import CHROMIUM, Browser
from tests.report.made_up import evaluation, leave, line, start, stop
from tests.report.page import check
from tests.studies.small import write
from tests.tiny import tiny

PRICES = Prices(price=2, grid=400)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Two attempts of one run with a guard and probes."""
    directory = tmp_path_factory.mktemp("run") / "run"
    settings = (f"logging.run_dir={directory}", "conditioning.probe_every=4", "conditioning.guard={rollback: {}}")
    assert train(tiny(*settings, "duration.wall_clock_limit=0.001 seconds")) == 75
    assert train(tiny(*settings, "evaluation.every=8 steps")) == 0
    return directory


@pytest.fixture(scope="module")
def pages(run, tmp_path_factory) -> SimpleNamespace:
    """The run's page; and a study's, before its end and at it, and the one that it writes itself."""
    folder = tmp_path_factory.mktemp("study")
    plan = load_study(write(folder), ["grid.rate=[0.01]"], folder / "study")
    plan.directory.mkdir()
    (plan.directory / "study.yaml").write_text(studies._record(plan))
    before = Path()
    for cell in plan.cells:  # of different widths
        runner.prepare(cell)
        metrics = [line(step, 5 / step**0.1) for step in range(1, 31)]
        leave(Path(cell.config.logging.run_dir), [start(0), stop(60, step=30)], [*metrics, evaluation(30)])
        if cell is plan.cells[0]:
            before = study_report.report(plan.directory, str(folder / "before.html"), Prices())
    assert studies.conclude(plan, Console(quiet=True)) == 0
    return SimpleNamespace(
        run=command.run(run, "", PRICES),
        before=before,
        study=study_report.report(plan.directory, "", PRICES),
        own=plan.directory / "index.html",
    )


def test_a_run_keeps_account_of_its_energy_over_attempts(run):
    lines = [line for line in read_jsonl(run / "metrics.jsonl") if "loss" in line]
    joules = [line["energy_joules"] for line in lines]
    assert joules[0] > 0
    assert joules == sorted(joules)
    assert lines[-1]["tokens_per_joule"] == lines[-1]["tokens"] / joules[-1]
    assert all(line["host_memory_peak_bytes"] > 2**20 for line in lines)
    compiled = next(event for event in read_jsonl(run / "events.jsonl") if event["event"] == "compile")
    assert compiled["memory_bytes"]["temporaries"] > 0


def test_the_pages_say_what_they_are_to_say(pages):
    page = check(pages.run.read_text())
    for words in ("Trained to its length", "2 attempts", "block_00", "estimate", "kg CO2e", "tokens per joule"):
        assert words in page.text, words
    before = check(pages.before.read_text())
    assert "not finished" in before.text
    assert "1 of 2 cells are at their end" in before.text
    assert "waiting" in before.text
    after = check(pages.study.read_text())
    for words in (
        "Is 1 < 2?",
        "model.n_heads: 2 -> 3",
        "What the runs took",
        "blobjax study small.yaml",
        "chip-hours",
        "0.03",
    ):
        assert words in after.text, words
    own = check(pages.own.read_text())
    assert "What the runs took" in own.text
    assert "cost" not in own.text
    assert own.references == after.references  # the same plots


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")
def test_a_browser_shows_them_without_a_complaint_at_any_width(pages, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<p style="width: 2000px">wide</p><img src="data:image/png;base64,AAAA"><img src="http://127.0.0.1:9/x.png">'
        "<script>console.error('x')</script>"
    )
    with Browser() as browser:
        # What is looked for would be seen.
        seen = browser.look(broken, 390)
        assert seen.overflow > 1600
        assert seen.broken == 2
        assert seen.requests == ["http://127.0.0.1:9/x.png"]
        assert seen.complaints
        for page in (pages.run, pages.before, pages.study, pages.own):
            for width in (1200, 390, 320):
                seen = browser.look(page, width)
                assert (seen.requests, seen.complaints) == ([], []), page
                assert (seen.overflow, seen.broken) == (0, 0), (page, width)
                assert seen.png.startswith(b"\x89PNG")
                assert "Made with" in seen.text or "Run it again" in seen.text
