"""A real run, stopped and gone on with, and a study; their pages as a real browser shows them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from blobjax.laws import fit_file
from blobjax.laws.formulas import LAWS, Settings
from blobjax.laws.multiplier import Worth
from blobjax.laws.points import Row, Table, choose
from blobjax.report import plots, report_command
from blobjax.report.prices import Prices
from blobjax.runs.directory import read_jsonl
from blobjax.studies import confirmation, runner, study_report
from blobjax.studies import study_command as studies
from blobjax.studies.finding import Finding, Picture, Prediction
from blobjax.studies.page import page
from blobjax.studies.study import load_study
from blobjax.training.trainer import train
from tests.report.browser import CHROMIUM, Browser
from tests.report.made_up import evaluation, leave, line, start, stop
from tests.report.page import check
from tests.studies.small import made_up, write
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
        run=report_command.run(run, "", PRICES),
        before=before,
        study=study_report.report(plan.directory, "", PRICES),
        own=plan.directory / "index.html",
    )


@pytest.fixture(scope="module")
def concluded(tmp_path_factory) -> Path:
    """The page of a study with all that one can have: fitted laws, a prediction that was tested, worth in compute."""
    folder = tmp_path_factory.mktemp("concluded")
    plan = load_study(write(folder), [], folder / "study")
    losses = {rate: [6.0, 4.0, 2.5 + rate] for rate in (0.1, 0.2, 0.3, 0.4)}
    results = [replace(made_up(cell.labels, those), cell=cell)
               for cell, those in zip(plan.cells, losses.values(), strict=True)]  # fmt: skip
    law, flops = LAWS["power-flops"], np.geomspace(1e12, 1e14, 6)
    rows = [Row(f"row {n}", {"flops": C, "loss": 1.5 + 40 * C**-0.12}) for n, C in enumerate(flops)]
    content = fit_file.make(law, choose(law, Table(rows, []), {}), Settings(starts=2, bootstrap=12))
    assert content["future"]
    figure, (axes,) = plots.charts()
    plots.draw(axes, {"measured": (flops.tolist(), [row.cells["loss"] for row in rows])}, "FLOPs", "loss", log_x=True)
    finding = Finding(
        True,
        ("What was found.",),
        {"a_number": 1.25, "by_size": dict.fromkeys(("narrow", "wide"), 0.5)},
        (Picture("loss", "The loss by FLOPs.", figure),),
        {"by-compute": content},
        {"worthy": Worth(1e12, 2.0, 4e12, 4.0, 3.0, 5.0), "unworthy": Worth(1e12, 1.0, refused="too good to be told")},
        Prediction(
            "next",
            "the next run",
            {"duration.length": "60 steps", "model.d_model": 64},
            {"by-compute": {"value": 2.5, "low": 2.4, "high": 2.6, "run_low": 2.3, "run_high": 2.7}},
        ),
    )
    tested = confirmation.Tested(finding.prediction, results[0], 2.45)
    finding = confirmation.weighed(finding, tested)
    summary = studies.summarise(plan, results, finding, tested)
    pictures = [(each.caption, plots.to_png(each.figure)) for each in finding.pictures]
    path = folder / "index.html"
    path.write_text(page(plan, results, summary, finding, tested, pictures, PRICES))
    return path


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
        "blobjax study study.yaml --dir again",
        "chip-hours",
        "0.03",
    ):
        assert words in after.text, words
    own = check(pages.own.read_text())
    assert "What the runs took" in own.text
    assert "cost" not in own.text
    assert own.references == after.references  # the same plots


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")
def test_a_browser_shows_them_without_a_complaint_at_any_width(pages, concluded, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<p style="width: 2000px">wide</p><h2>seen</h2><h2 hidden>hidden</h2><img src="data:image/png;base64,AAAA"><img src="http://127.0.0.1:9/x.png">'
        "<script>console.error('x')</script>"
    )
    with Browser() as browser:
        # What is looked for would be seen.
        seen = browser.look(broken, 390)
        assert seen.overflow > 1600
        assert (seen.broken, seen.pictures) == (2, 0)
        assert seen.headings == ["seen"]
        assert seen.requests == ["http://127.0.0.1:9/x.png"]
        assert seen.complaints
        for file, pictures, headings in (
            (pages.run, 1, ["Ingredients", "Flow", "Made with"]),
            (pages.before, 0, ["Cells", "Made with"]),
            (pages.study, 1, ["Cells", "Run it again"]),
            (pages.own, 1, ["Cells", "Run it again"]),
            (concluded, 1, ["Fitted laws", "Predicted, and tested", "Worth in compute", "Numbers", "Run it again"]),
        ):
            for width in (1200, 390, 320):
                seen = browser.look(file, width)
                assert (seen.requests, seen.complaints) == ([], []), file
                assert (seen.overflow, seen.broken) == (0, 0), (file, width)
                assert seen.pictures >= pictures, file
                assert [each for each in headings if each not in seen.headings] == [], (file, width)
                assert seen.png.startswith(b"\x89PNG")
        # Of the last, what stands in those sections can be read too, folded parts unfolded.
        for words in (
            "by-compute: L(C) = E + A C^-alpha",
            "fitted up to",
            "leave-future-out:",
            "2.3 to 2.7",
            "inside",
            "duration.length=60 steps",
            "3 to 5",
            "not known: too good to be told",
        ):
            assert words in seen.text, words
