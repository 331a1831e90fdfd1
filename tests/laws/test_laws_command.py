"""`blobjax laws` as a person meets it: fits, files that reproduce them, predictions, refusals."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from blobjax.config import BadInputError
from blobjax.laws import fit_command, fit_file, text
from blobjax.laws.prediction import predict
from tests.laws.synthetic import (
    BESIROGLU,
    cross,
    isoflops,
    scattered,
    with_noise,
    write_csv,
)


def blobjax(*arguments: str, cwd) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "blobjax.cli", "laws", *arguments], capture_output=True, text=True, timeout=300, cwd=cwd
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Chinchilla's figure as it might be digitised: 245 points, five of them far too high."""
    x = with_noise("chinchilla-3", BESIROGLU, scattered(245), 0.01)
    x["loss"][:5] *= 1.8
    path = tmp_path_factory.mktemp("points") / "figure.csv"
    return write_csv(path, {"Model Size": x["params"], "Training FLOP": x["flops"], "loss": x["loss"]})


@pytest.fixture(scope="module")
def fitted(table, tmp_path_factory):
    """The fit of the documentation's first example, by command line; its folder and output."""
    folder = tmp_path_factory.mktemp("fit")
    options = ["--law", "chinchilla-3", "--col", "params=Model Size", "--col", "flops=Training FLOP"]
    options += ["--drop-highest-loss", "5", "--delta", "1e-3", "--bootstrap", "40", "--starts", "10"]
    done = blobjax("fit", table, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def content(fitted):
    return fit_file.read(fitted[0] / "fit.json")


def test_a_fit_says_what_it_did(fitted):
    _, said = fitted
    for words in (
        "L(N, D) = E + A N^-alpha + B D^-beta",
        "Hoffmann et al. 2022",
        "240, 5 left out (highest loss)",
        "tokens: flops / (6 × params)",
        "whether embeddings or attention are in it is not recorded",
        "sum of Huber losses of log loss, delta 0.001",
        "90% from",
        "leave-future-out",
        "fit file: fit.json",
    ):
        assert words in said, words
    assert all(name in said for name in ("E ", "A ", "B ", "alpha", "beta"))


def test_a_fit_file_holds_what_it_promises(content):
    values = [content["parameters"][name]["value"] for name in ("E", "A", "B", "alpha", "beta")]
    assert values == pytest.approx(BESIROGLU, rel=0.5)
    for entry in content["parameters"].values():
        assert entry["low"] < entry["value"] < entry["high"]
    assert content["objective"]["converged"]
    assert content["points"]["count"] == len(content["points"]["columns"]["loss"]) == 240
    assert content["points"]["dropped"] == {"highest loss": 5}
    assert len(content["points"]["sources"][0]["sha256"]) == 64
    assert {"python", "blobjax", "numpy", "scipy"} == set(content["versions"])
    assert content["settings"]["seed"] == 0
    assert content["settings"]["delta"] == 1e-3
    assert len(content["bootstrap"]["draws"]) == 40
    assert content["future"]
    assert content["derived"]["a"]["value"] == pytest.approx(values[4] / (values[3] + values[4]))


def test_a_fit_file_is_enough_to_fit_again(content):
    again = json.loads(json.dumps(fit_file.jsonable(fit_file.refit(content))))
    assert again == content


def test_a_fit_file_with_other_points_is_refused(content):
    points = {**content["points"], "columns": {**content["points"]["columns"]}}
    points["columns"]["loss"] = [2 * loss for loss in points["columns"]["loss"]]
    with pytest.raises(BadInputError, match="hash differs"):
        fit_file.refit({**content, "points": points})


def test_a_fit_file_is_points_too(fitted):
    again = fit_command.fit([str(fitted[0] / "fit.json")], "")
    assert again["law"] == "chinchilla-3"
    with pytest.raises(BadInputError, match="is a fit of chinchilla-3; for --law kaplan give its points"):
        fit_command.fit([str(fitted[0] / "fit.json")], "kaplan")


def test_a_prediction_for_a_budget(fitted, content):
    done = blobjax("predict", "fit.json", "--flops", "5.76e23", "--json", cwd=fitted[0])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    E, A, B, alpha, beta = (content["parameters"][name]["value"] for name in ("E", "A", "B", "alpha", "beta"))
    params, tokens = (result["optimum"][name]["value"] for name in ("params", "tokens"))
    assert 6 * params * tokens == pytest.approx(5.76e23)
    assert alpha * A * params**-alpha == pytest.approx(beta * B * tokens**-beta, rel=1e-3)
    assert result["loss"]["value"] == pytest.approx(E + A * params**-alpha + B * tokens**-beta, rel=1e-9)
    for entry in (result["loss"], *result["optimum"].values()):
        assert entry["low"] < entry["value"] < entry["high"]
    # A single run has noise of its own.
    assert result["loss"]["run_low"] < result["loss"]["low"]
    assert result["loss"]["run_high"] > result["loss"]["high"]
    assert any("times the largest that was fitted" in note for note in result["notes"])


@pytest.mark.filterwarnings("error")
def test_where_the_law_overflows_there_is_no_prediction(content):
    steep = {**content["parameters"], "alpha": {**content["parameters"]["alpha"], "value": 8.0}}
    with pytest.raises(BadInputError, match="has no value there"):
        predict({**content, "parameters": steep}, {"params": 1e-45, "tokens": 1e9})


def test_the_order_of_keys_in_a_fit_file_means_nothing(content, tmp_path):
    (tmp_path / "fit.json").write_text(json.dumps(content, sort_keys=True))
    given = {"params": 1e9, "tokens": 2e10}
    assert fit_command.predict(str(tmp_path / "fit.json"), given)[0] == predict(content, given)


def test_a_fit_that_ran_off_is_none(tmp_path):
    """A floor above every loss leaves nothing for the terms of size and data to say."""
    path = write_csv(tmp_path / "a.csv", with_noise("chinchilla-3", BESIROGLU, isoflops(), 0.01))
    with pytest.raises(BadInputError, match="ran off to infinity; look at --fix E=5 and the points"):
        fit_command.fit([path], "chinchilla-3", fixed=["E=5"], bootstrap=0, starts=5)


def test_a_prediction_for_a_size(fitted):
    result, words = fit_command.predict(str(fitted[0] / "fit.json"), {"params": 1e9, "tokens": 2e10})
    assert "optimum" not in result
    assert result["at"]["flops"] == pytest.approx(1.2e20)
    assert result["loss"]["value"] == pytest.approx(1.8172 + 482.01 * 1e9**-0.3478 + 2085.43 * 2e10**-0.3658, rel=0.01)
    assert words.splitlines()[1].startswith("loss: 2.")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give what to predict for"),
        (["--params", "1e9"], "needs tokens too; give --tokens, or --flops alone"),
        (["--params", "-1", "--tokens", "1e9"], "params is -1, and must be more than 0"),
        (["--at", "reward=1"], "uses no 'reward'"),
        (["--flops", "1e-300"], "flops is 1e-300; it takes 1e-50 to 1e.50"),
        (["--params", "1e200", "--tokens", "1e200"], "params is 1e.200; it takes"),
        (["--at", "params"], "expected NAME=VALUE"),
        (["--params", "1e9", "--at", "params=1e8"], "--at params: is given as --params too"),
        (["--at", "params=1e9", "--at", "params=1e8"], "--at params: is given twice"),
        (["--flops", "1e21", "--params", "1e9", "--tokens", "1e9"], "flops is 1e.21, but 6 × params × tokens is 6e.18"),
        (
            ["--flops", "6e18", "--params", "1e9", "--at", "overtraining=20"],
            "overtraining is 20, but tokens . params is 1",
        ),
    ],
)
def test_a_prediction_that_cannot_be(fitted, options, said):
    given = {name.strip("-"): float(value) for name, value in zip(options[::2], options[1::2], strict=True)
             if name != "--at"}  # fmt: skip
    others = [value for name, value in zip(options[::2], options[1::2], strict=True) if name == "--at"]
    with pytest.raises(BadInputError, match=said):
        fit_command.predict(str(fitted[0] / "fit.json"), given, others)


def test_no_other_file_is_a_fit(tmp_path):
    (tmp_path / "a.json").write_text('{"law": "chinchilla-9", "format": 1}')
    (tmp_path / "b.json").write_text("[]")
    (tmp_path / "c.json").write_text('{"law": "kaplan", "format": 99}')
    os.mkfifo(tmp_path / "e.json")
    with pytest.raises(BadInputError, match="not a regular file"):
        fit_file.read(tmp_path / "e.json")
    for name, said in (("a", "did you mean"), ("b", "not a fit file"), ("c", "format 99"), ("d", "cannot be read")):
        with pytest.raises(BadInputError, match=said):
            fit_file.read(tmp_path / f"{name}.json")


def _set(value, *keys):
    """What sets a value deep in a fit file."""

    def spoil(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return spoil


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda c: c.pop("parameters"), "parameters: Field required"),
    (_set(-1.0, "parameters", "E", "value"), "parameters.E: is -1"),
    (_set(None, "parameters", "E", "value"), "parameters.E: has no value"),
    (_set("1.8", "parameters", "E", "value"), "parameters.E.value: Input should be a valid number"),
    (_set(100.0, "parameters", "E", "value"), "with these values the residuals are others"),
    (_set(100.0, "parameters", "E", "high"), "its interval, .* is not that of the draws"),
    (lambda c: c["parameters"].update(F=c["parameters"]["E"]), "chinchilla-3 has no 'F'"),
    (lambda c: c["parameters"].pop("E"), "there is no 'E'"),
    (_set([[1.0]], "bootstrap", "draws"), "bootstrap.draws: not all have 5 numbers"),
    (_set(float("nan"), "bootstrap", "draws", 0, 0), "Input should be a finite number"),
    (_set(-1.0, "bootstrap", "draws", 0, 0), "not all of what must be positive is"),
    (lambda c: c["bootstrap"]["draws"].pop(), "39 draws and 0 that failed, of 40"),
    (_set(5, "bootstrap", "share"), "bootstrap.share: Input should be less"),
    (_set(-1, "bootstrap", "share"), "bootstrap.share: Input should be greater"),
    (_set("x", "settings"), "settings: "),
    (_set("x", "settings", "level"), "settings.level: "),
    (_set(None, "settings", "level"), "settings.level: "),
    (_set(None, "settings", "fixed"), "settings.fixed: "),
    (_set({"F": 1.0}, "settings", "fixed"), "settings.fixed: chinchilla-3 has no 'F'"),
    (_set(-5, "settings", "seed"), "settings.seed: "),
    (_set("x", "settings", "seed"), "settings.seed: "),
    (_set(-3, "settings", "bootstrap"), "settings.bootstrap: "),
    (_set("many", "settings", "starts"), "settings.starts: "),
    (_set([], "residuals"), "residuals: "),
    (lambda c: c["residuals"].pop(), "residuals: 239 for 240 points"),
    (_set("reward", "target"), "target: is 'reward', of chinchilla-3 'loss'"),
    (_set(5, "counted"), "counted: "),
    (lambda c: c["points"].pop("columns"), "points.columns: Field required"),
    (lambda c: c["points"].pop("dropped"), "points.dropped: Field required"),
    (lambda c: c["points"]["columns"].pop("tokens"), "there is no 'tokens'"),
    (lambda c: c["points"]["columns"]["params"].pop(), "has 239 numbers for 240 points"),
    (_set(-1.0, "points", "columns", "params", 0), "points.columns.params: not all are more than 0"),
    (_set({"flops": []}, "details", "budgets"), "details.budgets"),
    (_set(True, "format"), "format: "),
    (_set(["kaplan"], "law"), "is not known here"),
])  # fmt: skip
def test_a_damaged_fit_file_is_one_line(content, tmp_path, spoil, said):
    spoilt = json.loads(json.dumps(content))
    spoil(spoilt)
    (tmp_path / "fit.json").write_text(json.dumps(spoilt))
    with pytest.raises(BadInputError, match=said) as refused:
        fit_file.read(tmp_path / "fit.json")
    (line,) = refused.value.problems
    assert "\n" not in line


def test_a_fit_that_cannot_be_written_leaves_the_one_that_is_there(content, tmp_path, monkeypatch):
    path = tmp_path / "fit.json"
    fit_file.write(content, path)
    before = path.read_text()
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(BadInputError, match="No space left"):
        fit_file.write({**content, "notes": ["other"]}, path)
    assert [each.name for each in tmp_path.iterdir()] == ["fit.json"]
    assert path.read_text() == before


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--law", "chinchila-3"], "did you mean 'chinchilla-3'?"),
        ([], "give --law NAME; known: power-flops"),
        (["--law", "chinchilla-3", "--col", "loss"], "expected NAME=VALUE"),
        (["--law", "chinchilla-3", "--col", "loss=loss", "--col", "loss=params"], "--col loss: is given twice"),
        (["--law", "chinchilla-3", "--col", "loss=params"], "column 'params' would be params and loss"),
        (["--law", "chinchilla-3", "--fix", "E=1", "--fix", "E=2"], "--fix E: is given twice"),
        (["--law", "chinchilla-3", "--fix", "gamma=1"], "no such parameter"),
        (["--law", "chinchilla-3", "--fix", "E=-1"], "must be 0 or more"),
        (["--law", "kaplan", "--fix", "alpha_N=0"], "must be more than 0"),
        (["--law", "chinchilla-2", "--fix", "a=0.5"], "an estimator of its own"),
        (["--law", "chinchilla-2", "--delta", "1e-3"], "does not minimise a Huber loss"),
        (["--law", "chinchilla-3", "--delta", "0"], "must be more than 0"),
        (["--law", "chinchilla-3", "--drop-highest-loss", "40"], "there are 40 points"),
        (["--law", "rl-compute"], "needs a column 'reward'"),
        (["--law", "kaplan", "--fix", "alpha_N=x"], "not a number"),
        (["--law", "kaplan", "--fix", "alpha_N=1_0"], "not a number"),
        (["--law", "kaplan", "--bootstrap", "1000000000"], "--bootstrap 1000000000: must be 100000 or less"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(tmp_path, monkeypatch, capsys, options, said):
    """Through the command line's own main, in this process: a process for each would take a second."""
    from blobjax.cli import commands

    path = write_csv(tmp_path / "a.csv", with_noise("chinchilla-3", BESIROGLU, isoflops(), 0.01))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match=said) as caught:
        commands.app(["laws", "fit", path, *options], standalone_mode=False)
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "fit.json").exists()


@pytest.mark.parametrize(("out", "said"), [("a.csv", "is what the command reads"), ("pipe", "is not a regular file")])
def test_a_place_for_the_fit_is_refused_before_any_work(tmp_path, monkeypatch, out, said):
    from blobjax.cli import commands

    path = write_csv(tmp_path / "a.csv", with_noise("chinchilla-3", BESIROGLU, isoflops(), 0.01))
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fit_command, "fit", lambda *_, **__: pytest.fail("it was fitted"))
    with pytest.raises(BadInputError, match=said):
        commands.app(["laws", "fit", path, "--law", "chinchilla-3", "--out", out], standalone_mode=False)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.smoke
def test_bad_input_exits_with_2_and_nothing_imports_jax(tmp_path):
    (tmp_path / "a.csv").write_text("params,tokens,loss\n1e8,1e9,nan\n")
    done = blobjax("fit", "a.csv", "--law", "chinchilla-3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "blobjax: a.csv:2: loss is missing or NaN; remove the row, or give --drop-missing\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    code = (
        "import sys; import blobjax.laws.fit_command, blobjax.laws.runs\n"
        "assert not {'jax', 'matplotlib'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_both_laws_of_reward_are_shown(tmp_path):
    x = with_noise("rl-compute", [0.61, 0.2, 2000, 1.2], {"flops": np.geomspace(1e2, 1e5, 30)}, 0.005)
    content = fit_command.fit([write_csv(tmp_path / "a.csv", x)], "rl-compute", bootstrap=20)
    assert content["objective"]["r_squared"] > content["beside"]["rl-log-linear"]["r_squared"] > 0.8
    said = text.fit(content)
    assert f"R²: rl-compute {content['objective']['r_squared']:.5f}, rl-log-linear" in said
    known = fit_command.fit([str(tmp_path / "a.csv")], "rl-compute", bootstrap=20, fixed=["R_0=0.2"])
    assert known["parameters"]["R_0"] == {
        "value": 0.2, "low": None, "high": None, "fixed": True, "weakly_identified": False,
        "meaning": "reward without training",
    }  # fmt: skip


def test_weakly_identified_parameters_have_a_profile(tmp_path):
    x = with_noise("kaplan", [8.8e13, 5.4e13, 0.076, 0.095], isoflops(), 0.01)
    content = fit_command.fit([write_csv(tmp_path / "a.csv", x)], "kaplan", bootstrap=40, starts=10)
    assert content["parameters"]["N_c"]["weakly_identified"]
    profile = content["profiles"]["N_c"]
    assert len(profile["values"]) == len(profile["deviance"])
    assert "profile of N_c, weakly identified" in text.fit(content)


def test_budgets_that_were_refused_are_named(tmp_path):
    x = with_noise("chinchilla-3", BESIROGLU, isoflops(), 0.001)
    at = x["flops"] == 3e18
    x["loss"][at] = 6 - x["loss"][at]
    content = fit_command.fit([write_csv(tmp_path / "a.csv", x)], "chinchilla-2", bootstrap=20)
    assert "note: budget 3e+18: the parabola is concave" in text.fit(content)
    assert content["details"]["budgets"]["flops"] == pytest.approx([1e18, 1e19, 3e19, 1e20])


def test_draws_without_a_best_split_are_no_prediction(content):
    """They have no loss at one either; half of them or more leave no interval."""
    rows = content["bootstrap"]["draws"]
    for lost in (4, 25):
        draws = [[*row[:4], -0.01] if n < lost else row for n, row in enumerate(rows)]
        found = predict({**content, "bootstrap": {**content["bootstrap"], "draws": draws}}, {"flops": 1e21})
        assert f"{lost} of 40 resamples say nothing of it" in found["notes"][0]
        for entry in (found["loss"], *found["optimum"].values()):
            assert (entry["low"] is None) == (lost > 20)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"delta": 0.5, "bootstrap": 7, "seed": 0}, "--delta --bootstrap --seed: a fit file is fitted again as it was"),
        ({"drop_highest_loss": 3}, "--drop-highest-loss: a fit file"),
        ({"fixed": ["E=1.7"]}, "--fix: a fit file"),
    ],
)
def test_options_beside_a_fit_file_are_refused(fitted, options, said):
    with pytest.raises(BadInputError, match=said):
        fit_command.fit([str(fitted[0] / "fit.json")], "", **options)


def test_resamples_that_are_few_or_lost_are_said(tmp_path):
    x = with_noise("power-flops", [1.7, 500, 0.15], {"flops": np.geomspace(1e16, 1e20, 12)}, 0.002)
    few = fit_command.fit([write_csv(tmp_path / "a.csv", x)], "power-flops", bootstrap=5, starts=2)
    assert "5 resamples are too few for intervals; they take --bootstrap 10 or more" in few["notes"]
    # Of whole curves drawn with replacement some hold too few sizes for an envelope.
    x = cross(params=np.geomspace(1e7, 3e9, 5), tokens=np.geomspace(1e8, 3e11, 40))
    x = with_noise("chinchilla-3", BESIROGLU, x | {"flops": 6 * x["params"] * x["tokens"]}, 0)
    lost = fit_command.fit([write_csv(tmp_path / "b.csv", x)], "chinchilla-1", bootstrap=40)
    assert 0 < lost["bootstrap"]["failed"] < 40
    assert any(note.startswith(f"{lost['bootstrap']['failed']} of 40 resamples") or "only" in note
               for note in lost["notes"])  # fmt: skip
