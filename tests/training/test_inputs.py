"""What decides a run's future besides its arrays is in every checkpoint: what is lost comes from there."""

import json
import shutil

import pytest

from blobjax.checkpointing.files import COMMITTED, Leaf, Record, _digest, kept_of, read_record
from blobjax.config import BadInputError, HaltedError
from blobjax.config.diff import changed_since, maths
from blobjax.data import train_bpe
from blobjax.runs.directory import read_jsonl
from blobjax.runs.outcome import sequences_before
from blobjax.runs.passages import read_passages, write_passages
from blobjax.runs.status import status
from blobjax.training.inference import sample_run
from blobjax.training.inputs import agree
from blobjax.training.trainer import train
from tests.tiny import tiny
from tests.training.test_resume import assert_same_bits, trajectory

# Batches of 16: step 5 is bad, and sequences from 48 on are left out.
ROLLBACK = (
    "conditioning.guard={window: 2, sigmas: 0, patience: 0, rollback: {snapshots: 0, margin: 1, skip: 1}}",
    "faults.nan=[64, 80]",
    "model.n_layers=1",
)


def config(run_dir, *overrides):
    return tiny(f"logging.run_dir={run_dir}", *ROLLBACK, *overrides)


def run(run_dir, *overrides):
    assert train(config(run_dir, *overrides)) == 0
    return run_dir


def events(run_dir, name):
    return [event for event in read_jsonl(run_dir / "events.jsonl") if event["event"] == name]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture
def stopped(undisturbed, tmp_path):
    """The run as it was after its rollback and its save of step 8."""
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    return tmp_path / "run"


def test_every_checkpoint_records_what_decides(undisturbed):
    (window,) = read_passages(undisturbed / "passed_over.json")
    assert (window["first"], window["last"]) == (48, 96)
    records = {step: read_record(undisturbed / "checkpoints" / str(step)) for step in (8, 12)}
    for record in records.values():
        assert record.inputs["passed_over"] == [window]
        assert record.inputs["maths"]["optimizer.learning_rate"] == 2e-3
        assert record.inputs["tokenizer"] == "bytes"
    assert read_record(undisturbed / "checkpoints" / "4").inputs["passed_over"] in ([], [window])


def test_windows_that_are_lost_come_from_the_checkpoint(stopped, undisturbed, capsys):
    path = stopped / "passed_over.json"
    before = path.read_bytes()
    path.unlink()
    run(stopped)
    assert path.read_bytes() == before
    assert "passed_over.json is gone: written anew from a checkpoint's record" in capsys.readouterr().out
    assert_same_bits(stopped, undisturbed)
    assert trajectory(stopped) == trajectory(undisturbed)


def without_inputs(stopped):
    """As the checkpoints were before they recorded what decides."""
    for step in (4, 8):

        def older(content):
            ours = content["custom_metadata"]
            del ours["record"]["inputs"]
            ours["digest"] = _digest(ours["data"], ours["record"])

        changed(stopped / "checkpoints" / str(step) / COMMITTED, older)
        assert read_record(stopped / "checkpoints" / str(step)).inputs is None


def test_windows_that_no_checkpoint_records_come_from_the_events(stopped, undisturbed, capsys):
    without_inputs(stopped)
    path = stopped / "passed_over.json"
    before = path.read_bytes()
    path.write_text("")
    with pytest.raises(BadInputError, match=r"remove it: .* those of the rollbacks in events\.jsonl"):
        train(config(stopped))
    path.unlink()
    run(stopped)
    assert path.read_bytes() == before
    assert "passed_over.json is gone: written anew from events.jsonl" in capsys.readouterr().out
    assert_same_bits(stopped, undisturbed)
    assert trajectory(stopped) == trajectory(undisturbed)


@pytest.mark.parametrize("window", [None, [], [48], [96, 48], ["48", "96"], 3])
def test_a_rollback_whose_window_nothing_says_is_refused(stopped, window):
    without_inputs(stopped)
    (stopped / "passed_over.json").unlink()
    path = stopped / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["event"] == "rollback":
            line["passed_over"] = window
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = path.read_bytes()
    with pytest.raises(
        BadInputError, match=r"passed_over\.json is gone, and neither a checkpoint nor events\.jsonl says"
    ):
        train(config(stopped))
    assert path.read_bytes() == before
    assert not (stopped / "passed_over.json").exists()


def test_windows_that_cannot_be_read_at_the_moment_are_not_called_damaged(tmp_path):
    path = tmp_path / "passed_over.json"
    # Nothing is mapped at its beginning, so that Linux answers with EIO, also to root.
    path.symlink_to("/proc/self/mem")
    with pytest.raises(HaltedError, match=r"cannot be read at the moment \(Input/output error\)") as halted:
        read_passages(path)
    assert "remove" not in str(halted.value)


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.write_text(""), "does not hold the windows of data"),
        (lambda path: path.write_text(path.read_text().replace('"last": 96', '"last": 97')), "does not hold"),
        (lambda path: write_passages(path, []), "does not go with checkpoint 8"),
        (lambda path: write_passages(path, [{"first": 48, "last": 97}]), "does not go with checkpoint 8"),
        (lambda path: write_passages(path, [*read_passages(path), {"first": 3, "last": 4}]), "does not go with"),
    ],
    ids=["emptied", "a digit", "none, well formed", "another, well formed", "one before the checkpoint"],
)
def test_other_windows_are_refused_and_the_line_says_how_to_go_on(stopped, undisturbed, harm, said):
    path = stopped / "passed_over.json"
    harm(path)
    before = path.read_bytes()
    with pytest.raises(BadInputError, match=said) as refused:
        train(config(stopped))
    assert len(refused.value.problems) == 1
    assert "remove it: the run then takes the windows that " in str(refused.value)
    assert path.read_bytes() == before, "nothing is moved or written"
    path.unlink()
    run(stopped)
    assert_same_bits(stopped, undisturbed)


@pytest.mark.parametrize(
    "content",
    [
        '{"windows": [{"first": 1.5, "last": 3}]}',
        '{"windows": [{"first": 1, "last": Infinity}]}',
        '{"windows": [{"first": NaN, "last": 3}]}',
        '{"windows": [{"first": true, "last": 3}]}',
        '{"windows": [{"first": "1", "last": 3}]}',
        '{"windows": [{"first": 1, "last": 9223372036854775808}]}',
        '{"windows": [{"first": 1, "last": ' + "9" * 5000 + "}]}",
        '{"windows": {"first": 1, "last": 3}}',
        '{"windows": [], "digest": 3}',
        "[" * 100_000,
        '{"windows": ' + '{"a":' * 100_000,
        "null",
    ],
)
def test_a_file_of_windows_that_is_none_is_one_line(tmp_path, content):
    path = tmp_path / "passed_over.json"
    path.write_text(content)
    with pytest.raises(BadInputError, match=r"passed_over\.json does not hold the windows") as refused:
        read_passages(path)
    assert len(refused.value.problems) == 1


def test_windows_go_with_a_checkpoint_that_knew_the_first_of_them():
    one, two = {"first": 10, "last": 20}, {"first": 50, "last": 60}
    assert agree([one, two], [one], sequences=40), "the second lies at 50, where the checkpoint is"
    assert not agree([one, two], [one], sequences=41)
    assert agree([one], [one], sequences=500)
    assert agree([], [], sequences=0)
    assert not agree([], [one], sequences=5)
    assert not agree([two, one], [one, two], sequences=5)


def test_a_record_of_the_config_that_was_edited_is_found_out(stopped):
    """Its config.yaml says what the command says, and neither is what the checkpoint was trained with."""
    path = stopped / "config.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.002", "learning_rate: 0.003"))
    with pytest.raises(BadInputError) as refused:
        train(config(stopped, "optimizer.learning_rate=3.0e-3"))
    assert refused.value.problems[0].startswith("checkpoint 8 was trained with another config")
    assert refused.value.problems[1:] == ("  optimizer.learning_rate: 0.002 -> 0.003",)
    assert train(config(stopped, "optimizer.learning_rate=3.0e-3"), allow_config_change=True) == 0


def test_what_was_recorded_is_compared_key_by_key():
    before = maths(tiny())
    assert changed_since(json.loads(json.dumps(before)), tiny()) == []
    assert changed_since(before, tiny("checkpoint.keep=7", "compute.mesh={data: 1}")) == []
    assert "conditioning.guard: None -> (absent)" in changed_since(before, tiny("conditioning.guard={}"))
    assert changed_since(before, tiny("seed=3")) == ["seed: 0 -> 3"]
    # From a version that did not have the key yet.
    older = {key: value for key, value in before.items() if key != "optimizer.update_clipping"}
    assert changed_since(older, tiny()) == []
    assert changed_since(older, tiny("optimizer.update_clipping=true")) == [
        "optimizer.update_clipping: (absent) -> True"
    ]
    assert changed_since({}, tiny("seed=3")) == [], "from before it was recorded"


def test_an_older_record_of_mx_products_was_rounded_down():
    mx = ("conditioning.precision=mxfp8", "conditioning.simulate=true")
    older = {key: value for key, value in maths(tiny(*mx)).items() if key != "conditioning.scale_rounding"}
    assert changed_since(older, tiny(*mx, "conditioning.scale_rounding=floor")) == []
    assert changed_since(older, tiny(*mx)) == ["conditioning.scale_rounding: (absent) -> up"]


def test_a_run_that_is_older_than_a_setting_goes_on_as_it_began(tmp_path, capsys):
    """A run made before scales of mx formats were rounded up, and before a run halted where its loss was NaN."""
    key, run_dir = "conditioning.scale_rounding", tmp_path / "run"
    mx = ("conditioning.precision=mxfp8", "conditioning.simulate=true", "model.n_layers=1", "duration.length=8 steps")
    settings = (*mx, f"logging.run_dir={run_dir}")
    assert train(tiny(*settings, f"{key}=floor")) == 0
    shutil.copytree(run_dir, tmp_path / "whole")
    shutil.rmtree(run_dir / "checkpoints" / "8")
    lines = (run_dir / "config.yaml").read_text().splitlines(keepends=True)
    unknown = ("scale_rounding:", "nonfinite_limit:")
    (run_dir / "config.yaml").write_text("".join(line for line in lines if not line.strip().startswith(unknown)))

    def older(content):
        ours = content["custom_metadata"]
        del ours["record"]["inputs"]["maths"][key]
        ours["digest"] = _digest(ours["data"], ours["record"])

    changed(run_dir / "checkpoints" / "4" / COMMITTED, older)
    for again in (False, True):  # once its record has the settings too
        capsys.readouterr()
        assert train(tiny(*settings)) == 0
        (said,) = [line for line in capsys.readouterr().err.splitlines() if "today's defaults" in line]
        assert f"it keeps {key}=floor (default now: up)" in said
        assert ("a run whose loss stays not finite halts" in said) is not again
    assert_same_bits(tmp_path / "whole", run_dir)
    with pytest.raises(BadInputError) as refused:
        train(tiny(*settings, f"{key}=up"))
    assert f"  {key}: floor -> up" in refused.value.problems


def test_a_branch_knows_its_trunk_without_its_events(tmp_path):
    for name, more in (("trunk", ()), ("branch", ("duration.start_from=trunk@4 steps",))):
        settings = ("faults.nan=null", "optimizer.schedule=constant", *more)
        run(tmp_path / name, *settings)
    branch = tmp_path / "branch"
    shutil.rmtree(branch / "checkpoints" / "12")
    (branch / "events.jsonl").unlink()
    run(branch, *settings)
    (event,) = events(branch, "branch")
    assert (event["step"], event["sequences"], event["run"]) == (4, 64, str(tmp_path / "trunk"))
    assert sequences_before(read_jsonl(branch / "events.jsonl")) == 64


def test_what_was_found_good_is_known_without_its_events(tmp_path):
    settings = ("faults.nan=null", "reliability.check_every=3")
    run(tmp_path / "run", *settings)
    assert read_record(tmp_path / "run" / "checkpoints" / "8").inputs["good_step"] == 6
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    (tmp_path / "run" / "events.jsonl").unlink()
    run(tmp_path / "run", *settings)
    assert [(e["step"], e.get("taken")) for e in events(tmp_path / "run", "check")] == [(9, None), (12, None)]


def test_what_is_gone_from_the_logs_is_said_once_at_resume_and_in_the_status(stopped, undisturbed, capsys):
    """The first four lines of metrics.jsonl, the first attempt's account of energy, and the end of events.jsonl."""
    for name, keep in (("metrics", slice(4, None)), ("events", slice(None, 2))):
        path = stopped / f"{name}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[keep]))
    metered = (stopped / "energy" / "0.json").is_file()
    shutil.rmtree(stopped / "energy")
    run(stopped)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lost: ")]
    assert said[0].startswith("lost: metrics.jsonl lacks 4 of the 8 lines that were logged, between step 1 and step 4")
    assert any(line.startswith("lost: energy/0.json is gone") for line in said) == metered
    assert "lost: events.jsonl has lost " in said[1]
    assert len(said) == 2 + metered
    assert status(str(stopped))["notes"][0].startswith("metrics.jsonl lacks 4 of the 12 lines that were logged")
    assert_same_bits(stopped, undisturbed)


def test_nothing_is_sampled_with_another_tokenizer(tmp_path):
    run_dir = tmp_path / "run"
    run(run_dir, "faults.nan=null", "model.vocab_size=300", "duration.length=2 steps")
    train_bpe(config(run_dir), 300, run_dir / "tokenizer.json")
    with pytest.raises(
        BadInputError, match=r"tokenizer\.json is not the tokenizer that .* was trained with; restore it"
    ):
        sample_run(str(run_dir), "To be", 4, seed=0, temperature=1.0, top_p=1.0)


def test_what_another_metric_ranked_is_not_ranked():
    def record(step, metric, name):
        inputs = {"ranked_by": name, "passed_over": []}
        return Record("data", step, step, metric, {"params/a": Leaf((2,), "float32", "0" * 16)}, inputs=inputs)

    records = {2: record(2, 0.1, "eval/shakespeare/cross_entropy"), 4: record(4, 3.0, "eval/bible/cross_entropy")}
    records[6] = record(6, 9.0, "eval/bible/cross_entropy")
    policy = tiny("checkpoint={keep: 1, keep_best: {metric: eval/bible/cross_entropy}}").checkpoint
    assert list(kept_of(records, policy)) == [4, 6]
