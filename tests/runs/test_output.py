"""No `--out` destroys anything: devices and links stay what they are, inputs and what runs own are refused."""

import os

import pytest

from blobjax.config import BadInputError
from blobjax.runs import output


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with points, and a study of one cell in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "points.csv").write_text("params\n")
    os.link("points.csv", "same.csv")
    os.symlink("points.csv", "link.csv")
    os.mkfifo("pipe")
    os.symlink("pipe", "link.json")
    os.symlink("circle", "circle")
    cell = tmp_path / "study" / "cells" / "a"
    (cell / "energy").mkdir(parents=True)
    for name in ("../../study.yaml", "../../summary.json", "../../cells.jsonl", "config.yaml", "events.jsonl",
                 "metrics.jsonl", "report.html", "energy/0.json"):  # fmt: skip
        (cell / name).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "--out: an empty name"),
        (" ", "--out: an empty name"),
        ("study", "is a directory; give a file in it"),
        ("none/fit.json", "there is no directory"),
        ("points.csv/fit.json", "there is no directory"),
        ("pipe", "is not a regular file"),
        ("link.json", "is not a regular file"),
        ("circle", "cannot be the name of a file"),
        ("a\0b", "cannot be the name of a file"),
        ("n" * 300, "cannot be the name of a file"),
        ("points.csv", "is what the command reads"),
        ("link.csv", "is what the command reads"),
        ("same.csv", "is what the command reads"),
        ("study/cells.jsonl", "belongs to the run or study in"),
        ("study/summary.json", "belongs to the run or study in"),
        ("study/fit-kaplan.json", "belongs to the run or study in"),
        ("study/cells/a/metrics.jsonl", "belongs to the run or study in"),
        ("study/cells/a/report.html", "belongs to the run or study in"),
        ("study/cells/a/energy/0.json", "belongs to the run or study in"),
        ("study/cells/a/halt.json", "belongs to the run or study in"),
    ],
)
def test_what_may_not_be_replaced_is_one_line(place, given, said):
    with pytest.raises(BadInputError) as refused:
        output.check(given, ".json", ["points.csv"])
    (line,) = refused.value.problems
    assert said in line
    assert "\n" not in line
    assert line.startswith("--out")


def test_a_folder_or_file_that_cannot_be_written(place, monkeypatch):
    (place / "fit.json").write_text("{}")
    for locked in (place, place / "fit.json"):
        monkeypatch.setattr(os, "access", lambda path, mode, locked=locked: path != locked)
        with pytest.raises(BadInputError, match="cannot be written to"):
            output.check("fit.json", ".json")


def test_a_directory_that_is_read_is_nobody_elses(place):
    """Also that of a run that has not come to its first event."""
    (place / "begun").mkdir()
    (place / "begun" / "metrics.jsonl").write_text("")
    assert output.check("begun/metrics.jsonl", ".html").name == "metrics.jsonl"
    with pytest.raises(BadInputError, match="belongs to the run or study in"):
        output.check("begun/metrics.jsonl", ".html", ["begun"])


@pytest.mark.parametrize(
    ("given", "suffix"),
    [("fit.json", ".json"), ("study/fit.json", ".json"), ("study/cells/a/report.html", ".html"), ("~/x.json", ".json")],
)
def test_what_may_be_written(place, monkeypatch, given, suffix):
    monkeypatch.setenv("HOME", str(place))
    for _ in range(2):  # and again
        output.write(output.check(given, suffix, ["points.csv", "study"]), "new")
    assert (place / given.removeprefix("~/")).read_text() == "new"


def test_a_link_stays_and_what_it_leads_to_is_written(place):
    (place / "old.json").write_text("old")
    os.symlink("old.json", "to.json")
    os.symlink("not yet.json", "dangling.json")
    for link, leads in (("to.json", "old.json"), ("dangling.json", "not yet.json")):
        output.write(output.check(link, ".json"), "new")
        assert (place / link).is_symlink()
        assert (place / leads).read_text() == "new"
