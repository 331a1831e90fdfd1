"""What the cells of a study took, each for itself and all together."""

import re
from pathlib import Path

import pytest

from blobjax.report.prices import Prices
from blobjax.studies import runs_table
from blobjax.studies.results import read
from blobjax.studies.study import load_study
from tests.report.made_up import line, start, stop
from tests.report.made_up import write as write_run
from tests.report.page import Page
from tests.studies.small import write

PER_STEP = 512  # tokens, by what `line` says
BRANCH = {"event": "branch", "time": 1, "step": 80, "sequences": 80 * 16}
HTML = "<img src=x onerror=alert(1)>"


@pytest.fixture
def taken(tmp_path):
    """The page's part of two cells, each with its events, its lines of metrics and its account of energy."""
    plan = load_study(write(tmp_path, grid={"seed": {"key": "seed", "values": [0, 1]}}), [], tmp_path / "study")

    def taken(*cells, **prices) -> str:
        for cell, (events, metrics, energy) in zip(plan.cells, cells, strict=True):
            write_run(Path(cell.config.logging.run_dir), events, metrics, energy={0: energy})
        return runs_table.html([read(cell) for cell in plan.cells], Prices(**prices))

    return taken


def rows(html: str) -> list[list[str]]:
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]
    return [row for row in found if row]


def test_a_branch_took_what_it_trained_itself_and_the_trunk_is_counted_once(taken):
    trunk = ([start(0), stop(100)], [line(step) for step in range(1, 101)], {"nvml": 1e3})
    branch = ([start(200), BRANCH, stop(220)], [line(step) for step in range(81, 101)], {"nvml": 1e3})
    html = taken(trunk, branch)
    head, *cells, whole = rows(html)
    tokens, flops, per_param = (head.index(name) for name in ("tokens", "FLOPs", "tokens/param"))
    assert [row[tokens] for row in cells] == ["51.2k", "10.2k"]
    assert [row[flops] for row in cells] == ["51.2M", "10.2M"]
    assert (whole[tokens], whole[flops]) == ("61.4k", "61.4M")
    assert cells[0][per_param] == cells[1][per_param]  # the same length of training
    assert "began from another" in html
    assert "began from another" not in taken(trunk, trunk)


def ran(began: float, **energy: float):
    sources = {name.replace("_", " "): joules for name, joules in energy.items()}
    return [start(began), stop(began + 100)], [line(1), line(100)], sources


def test_a_counter_of_the_machine_is_not_summed_over_cells_that_ran_at_once(taken):
    html = taken(ran(0, rapl=3.6e6, nvml=3.6e6), ran(99, rapl=3.6e6, nvml=3.6e6), grid=100)
    head, *cells, whole = rows(html)
    rapl, nvml = head.index("energy, rapl"), head.index("energy, nvml")
    assert [row[rapl] for row in cells] == ["1 kWh", "1 kWh"]
    assert (whole[rapl], whole[nvml]) == ("no sum", "2 kWh")
    assert "Cells ran at once" in html
    assert "kg CO2e (nvml)" in html
    assert "kg CO2e (rapl)" not in html
    assert "CO2e" not in taken(ran(0, rapl=3.6e6), ran(50, rapl=3.6e6), grid=100)


def test_one_after_the_other_they_have_a_sum(taken):
    # A cell that was resumed after the other had ended.
    resumed = [start(0), stop(50, "SIGTERM", 3), start(200), stop(300)], [line(1), line(100)], {"rapl": 3.6e6}
    html = taken(resumed, ran(60, rapl=3.6e6), grid=100)
    head, *_, whole = rows(html)
    assert whole[head.index("energy, rapl")] == "2 kWh"
    assert "kg CO2e (rapl)" in html
    assert "at once" not in html


def test_two_estimates_are_told_apart_and_a_source_is_text(taken):
    one, two = "estimate: 5 W a core", "estimate: 700 W a H100 SXM"
    head = rows(taken(ran(0, **{one: 1.0}), ran(200, **{two: 2.0})))[0]
    assert head[-2:] == [f"energy, {one}", f"energy, {two}"]
    assert rows(taken(ran(0, **{one: 1.0}), ran(200, **{one: 2.0})))[0][-1] == "energy, estimate"
    html = taken(ran(0, **{HTML: 1.0}), ran(200, **{HTML: 2.0}), grid=100)
    assert "<img" not in html
    assert HTML in Page(html).text
