"""A study file becomes a grid of checked configs, or one clear line for each thing that is wrong with it."""

import pytest

from blobjax.config import BadInputError
from blobjax.config.load import find, shipped, shipped_studies
from blobjax.studies import runner, study_command
from blobjax.studies.analyses import ANALYSES
from blobjax.studies.axis import Axis, label
from blobjax.studies.finding import verdict
from blobjax.studies.study import load_study, one_more
from blobjax.studies.study_command import _record, study
from tests.studies.small import BASE, write


def test_a_cell_for_each_combination_the_first_axis_slowest(tmp_path):
    plan = load_study(write(tmp_path), [])
    assert plan.name == "small"
    assert [cell.name for cell in plan.cells] == ["0.001_narrow", "0.001_wide", "0.01_narrow", "0.01_wide"]
    last = plan.cells[-1]
    assert last.labels == {"rate": "0.01", "width": "wide"}
    assert last.overrides == {"optimizer.learning_rate": 0.01, "model.d_model": 24, "model.n_heads": 3}
    assert (last.config.model.d_model, last.config.optimizer.learning_rate) == (24, 0.01)
    assert last.config.logging.run_dir == "studies/small/cells/0.01_wide"
    # What one cell sets is not found in the next, and the base is what no axis touches.
    assert plan.cells[2].config.model.d_model == plan.base.model.d_model == 16


def test_excluded_combinations_are_left_out(tmp_path):
    plan = load_study(write(tmp_path, exclude=[{"rate": 0.001, "width": ["wide"]}]), [])
    assert [cell.name for cell in plan.cells] == ["0.001_narrow", "0.01_narrow", "0.01_wide"]


def test_overrides_go_to_every_cell_and_replace_values_of_an_axis(tmp_path):
    overrides = ["duration.length=7 steps", "grid.rate=[3e-5, 1]", "grid.width=[wide]"]
    plan = load_study(write(tmp_path), overrides, tmp_path / "there")
    assert [cell.name for cell in plan.cells] == ["3e-5_wide", "1_wide"]
    assert all(str(cell.config.duration.length) == "7 steps" for cell in plan.cells)
    assert plan.cells[0].config.logging.run_dir == f"{tmp_path}/there/cells/3e-5_wide"
    written_out = load_study(write(tmp_path), ["grid.width={huge: {model.d_model: 64}}"])
    assert [cell.config.model.d_model for cell in written_out.cells] == [64, 64]


def test_a_base_may_be_a_shipped_config_or_include_one(tmp_path):
    assert (
        load_study(write(tmp_path, base="laptop", grid={"seed": {"key": "seed", "values": [1]}}), []).base.model.d_model
        == 256
    )
    included = load_study(write(tmp_path, base={"include": "laptop", "seed": 7}), [])
    assert (included.base.seed, included.base.optimizer.name) == (7, "muon")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.001, "0.001"), (3e-5, "3e-5"), (1e10, "1e10"), (1, "1"), (True, "true"), ("300 steps", "300 steps")],
)
def test_labels(value, expected):
    assert label(value) == expected


@pytest.mark.parametrize(
    ("changes", "overrides", "expected"),
    [
        ({"questoin": "?"}, [], "small.yaml: questoin: unknown key; did you mean 'question'?"),
        ({"question": None}, [], "small.yaml: question: required"),
        ({"analysis": "lr-sensitivty"}, [], "did you mean 'lr-sensitivity'?"),
        ({"grid": {}}, [], "small.yaml: grid: expected at least one axis, such as {learning_rate"),
        ({"grid": {"a": {"key": "seed", "values": [1, 1]}}}, [], "grid.a: expected other values; 1 stands there twice"),
        ({"grid": {"a": {"x": {"seed": 1}}, "b": {"y": {"seed": 2}}}}, [], "the axes a and b both set seed"),
        ({"grid": {"a": {"x": {"logging.run_dir": "there"}}}}, [], "grid.a: logging.run_dir is what the study decides"),
        ({"grid": {"a": {"x": {}, "y": {}}}}, [], "grid: x and y are the same run"),
        ({"grid": {"a": {"x" * 200: {}}}}, [], "has 200 letters, and 150 is the most"),
        (
            {"grid": {"a": {"key": "seed", "values": list(range(1001))}}},
            [],
            "1,001 combinations are more than the 1,000",
        ),
        ({"exclude": [{"width": "wid"}]}, [], "exclude: axis width has no 'wid'; did you mean 'wide'?"),
        ({"grid": {"a": 3}}, [], "grid.a: expected values such as"),
        ({"grid": {"a": {"key": "seed", "values": []}}}, [], "grid.a: expected {key: dotted.key, values: [a list]}"),
        ({"exclude": [{"rat": 0.001}]}, [], "no axis 'rat'; did you mean 'rate'?"),
        ({"exclude": [{"width": ["narrow", "wide"]}]}, [], "exclude leaves no cell"),
        ({"grid": {"a": {"x/y": {"seed": 1}, "x:y": {"seed": 2}}}}, [], "two cells would be called x-y"),
        ({"grid": {"a": {"x": {"model.n_layer": 1}}}}, [], "grid.a.x: model.n_layer: unknown key; did you mean"),
        ({"grid": {"a": {"x": {"model.n_heads": 3}}}}, [], "16 / 3"),
        (
            {"grid": {"a": {"x": {"duration.start_from": "y@50%"}, "y": {}}}},
            [],
            "no cell before it in the grid is called y",
        ),
        ({"grid": {"a": {"x": {}, "y": {"duration.start_from": "z@50%"}}}}, [], "is called z; known: x"),
        ({"base": {**BASE, "modle": {}}}, [], "small.yaml: modle: unknown key"),
        ({"base": "laptpo"}, [], "did you mean 'laptop'?"),
        ({}, ["grid.rat=[1]"], "override grid.rat: the study has no such axis; did you mean 'rate'?"),
        ({}, ["grid.rate=1"], "override grid.rate: expected a list of values"),
        ({}, ["grid.width=[wid]"], "wid is none, did you mean 'wide'?"),
        ({}, ["grid.width=[huge]"], "new values are written out, such as {'huge': {'model.d_model': 16}}"),
        ({}, ["optimizer.learning_rate=1"], "axis rate sets it; give grid.rate=[…]"),
        ({}, ["model={d_model: 8}"], "axis width sets it"),
        ({}, ["name=x"], "give --dir for another"),
        ({}, ["model.d_modle=3"], "override: model.d_modle: unknown key; did you mean 'model.d_model'?"),
        ({}, ["seed"], "dotted.key=value"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_one_clear_line(tmp_path, monkeypatch, changes, overrides, expected):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, **changes)
    with pytest.raises(BadInputError) as caught:
        load_study("small.yaml", overrides)
    (line,) = caught.value.problems
    assert expected in line
    assert "\n" not in line


def test_one_line_for_each_problem_and_not_for_each_cell(tmp_path):
    base = {**BASE, "seed": -1}
    with pytest.raises(BadInputError) as caught:
        load_study(write(tmp_path, base=base, grid={"a": {"key": "model.d_model", "values": ["x", "y", 16]}}), [])
    assert len(caught.value.problems) == 1  # the base alone is wrong already
    with pytest.raises(BadInputError) as caught:
        load_study(write(tmp_path, grid={"a": {"key": "model.d_model", "values": ["x", "y", 16]}}), [])
    assert [line.partition("expected")[0].rpartition("grid")[2] for line in caught.value.problems] == [
        ".a.x: model.d_model: ",
        ".a.y: model.d_model: ",
    ]


def test_a_missing_study_suggests_a_shipped_one_and_a_study_is_no_config():
    with pytest.raises(BadInputError, match=r"study 'lr-sensitivty' is neither .* did you mean 'lr-sensitivity'"):
        load_study("lr-sensitivty", [])
    for name in ("lr-sensitivity", "studies/lr-sensitivity"):
        with pytest.raises(BadInputError, match=r"is a study, .* blobjax study lr-sensitivity"):
            find(name)
    assert not any("studies" in name for name in shipped())


def test_axes_keep_their_key_when_values_are_replaced():
    axis = Axis.model_validate({"key": "seed", "values": [1, 2]})
    assert axis.replaced([3]).values == {"3": {"seed": 3}}
    assert axis.replaced([3]).key == "seed"


@pytest.mark.parametrize("name", shipped_studies())
def test_the_record_of_a_study_is_the_study(name, tmp_path):
    """Cells of another width too: what the base's width decided is not in the record."""
    plan = load_study(name, [], tmp_path)
    (tmp_path / "study.yaml").write_text(_record(plan))
    again = load_study(str(tmp_path / "study.yaml"), [], tmp_path)
    named = [cell.config.model_copy(update={"name": f"study_{cell.name}"}) for cell in plan.cells]
    assert [cell.config for cell in again.cells] == named


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_resolve(name):
    plan = load_study(name, [])
    assert plan.study.analysis == name
    assert 2 <= len(plan.cells) <= 100
    # What compares single numbers has seeds to compare them over; laws have points.
    seeds = {cell.config.seed for cell in plan.cells}
    assert plan.study.grid["seed"].key == "seed"
    assert len(seeds) >= (1 if name == "isoflop" else 2)
    assert {cell.config.compute.cpu_threads for cell in plan.cells} == {1}


@pytest.mark.parametrize(
    ("analysis", "grid", "expected"),
    [
        ("in-context", {"layer": {"key": "model.n_layers", "values": [1, 2]}}, "needs an axis 'layers' in the grid"),
        (
            "bf16-rounding",
            {"parameters": {"nearest": {}}, "learning_rate": {"one": {}}},
            "parameters 'float32', and the",
        ),
    ],
)
def test_what_an_analysis_needs_is_asked_before_anything_runs(tmp_path, analysis, grid, expected):
    with pytest.raises(BadInputError, match=expected) as caught:
        study(write(tmp_path, grid=grid, analysis=analysis), [], str(tmp_path / "study"))
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "study").exists()


def test_a_verdict_is_of_all_claims():
    assert verdict(True, True) is True
    assert verdict(True, None) == verdict(True, False) == "partly"
    assert verdict(False, None) is False
    assert verdict(None) is verdict() is None


def test_every_analysis_has_its_study_and_every_study_its_analysis():
    assert set(ANALYSES) - {"final-loss"} == set(shipped_studies())


def test_a_branch_of_each_seed_begins_from_the_trunk_of_its_seed(tmp_path):
    grid = {
        "seed": {"key": "seed", "values": [0, 1]},
        "run": {"trunk": {}, "branch": {"duration.start_from": "trunk@80%", "optimizer.schedule": "wsd"}},
    }
    plan = load_study(write(tmp_path, grid=grid), [])
    assert {cell.name: cell.after for cell in plan.cells} == {
        "0_trunk": "",
        "0_branch": "0_trunk",
        "1_trunk": "",
        "1_branch": "1_trunk",
    }


def test_threads_are_never_left_to_the_machine(tmp_path):
    def threads(base: dict, *overrides: str, **grid) -> list[int]:
        plan = load_study(write(tmp_path, base=BASE | base, **grid), overrides)
        more = one_more(plan, "more", {"seed": 3}, tmp_path / "confirm")
        assert more.config.compute.cpu_threads == plan.base.compute.cpu_threads
        return list(dict.fromkeys(cell.config.compute.cpu_threads for cell in plan.cells))

    assert threads({}) == [1]
    assert threads({"compute": {"cpu_threads": 3}}) == [3]
    assert threads({"compute": {"cpu_threads": 3}}, "compute.cpu_threads=0") == [1]
    assert threads({}, "compute.cpu_threads=2") == [2]
    assert threads({}, grid={"n": {"key": "compute.cpu_threads", "values": [0, 4]}}) == [1, 4]


def test_other_threads_are_another_study(tmp_path):
    plan = load_study(write(tmp_path), [], tmp_path / "study")
    runner.prepare(plan.cells[0])
    (tmp_path / "study" / "study.yaml").touch()
    with pytest.raises(BadInputError, match=r"compute\.cpu_threads: 1 -> 2"):
        runner.check(load_study(write(tmp_path), ["compute.cpu_threads=2"], tmp_path / "study"))


def test_a_wrong_name_is_found_before_a_missing_extra(monkeypatch):
    monkeypatch.setattr(study_command, "find_spec", lambda name: None)
    with pytest.raises(BadInputError, match="nosuch"):
        study_command.study("nosuch")
    with pytest.raises(BadInputError, match=r"pip install 'blobjax\[plot\]'"):
        study_command.study("lr-sensitivity")
