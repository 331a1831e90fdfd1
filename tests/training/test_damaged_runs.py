"""Runs whose checkpoints were damaged or whose disk is full go on from what is good; the command that looks at them."""

import json
import shutil
import subprocess
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from blobjax.checkpointing import inspection as command
from blobjax.checkpointing.checkpointer import Checkpointer
from blobjax.compute.sharding import make_layout
from blobjax.config import BadInputError, HaltedError
from blobjax.program.program import make_program
from blobjax.report import facts
from blobjax.runs.directory import RunDirectory, read_jsonl
from blobjax.runs.status import status
from blobjax.training.inference import sample_run
from blobjax.training.trainer import train
from tests.checkpointing.test_checkpoints import data_file, flip, make_pipe, truncate
from tests.tiny import tiny

TIMED = {
    "tokens_per_second",
    "step_seconds",
    "data_wait_seconds",
    "model_flops_utilization",
    "host_memory_peak_bytes",
    "energy_joules",
    "tokens_per_joule",
}


def config(run_dir, *overrides):
    return tiny(f"logging.run_dir={run_dir}", *overrides)


def history(run_dir):
    return [
        {key: value for key, value in line.items() if key not in TIMED}
        for line in read_jsonl(run_dir / "metrics.jsonl")
    ]


def last_state(run_dir):
    program = make_program(config(run_dir), make_layout(config(run_dir)), tokens_per_epoch=10_000)
    return jax.device_get(Checkpointer(run_dir / "checkpoints").restore(12, program.state, None)[0])


def assert_same(run_dir, other):
    assert history(run_dir) == history(other)
    jax.tree.map(np.testing.assert_array_equal, last_state(run_dir), last_state(other))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(config(run_dir)) == 0
    return run_dir


@pytest.fixture
def stopped(undisturbed, tmp_path):
    """The run as it was after step 8, with checkpoints 4 and 8."""
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    return tmp_path / "run"


def test_a_run_goes_on_from_the_checkpoint_before_a_bad_one(stopped, undisturbed, capsys):
    flip(data_file(stopped / "checkpoints" / "8"))
    assert train(config(stopped)) == 0
    assert_same(stopped, undisturbed)
    (event,) = (each for each in read_jsonl(stopped / "events.jsonl") if each["event"] == "quarantine")
    assert (event["step"], event["moved_to"]) == (8, "quarantine/8-1")
    assert event["reason"].startswith("not what was saved: ")
    assert (stopped / "quarantine" / "8-1" / "params").is_dir()
    out = capsys.readouterr().out
    assert "checkpoint 8 is bad (not what was saved" in out
    assert "resuming at step 4" in out


def test_a_run_with_no_good_checkpoint_starts_again_and_says_so_loudly(stopped, undisturbed, capsys):
    for step in ("4", "8"):
        truncate(stopped / "checkpoints" / step / "params" / "manifest.ocdbt")
    assert train(config(stopped)) == 0
    assert_same(stopped, undisturbed)
    assert "NO GOOD CHECKPOINT IS LEFT" in capsys.readouterr().out


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


UNFINISHED = {
    "half a data file": lambda checkpoints: half(data_file(checkpoints / "12")),
    "an empty file of metadata": lambda checkpoints: (checkpoints / "12" / "_CHECKPOINT_METADATA").write_bytes(b""),
    "another step's checkpoint": lambda checkpoints: (
        shutil.rmtree(checkpoints / "12"),
        shutil.copytree(checkpoints / "8", checkpoints / "12"),
    ),
    "a later step that was never trained": lambda checkpoints: shutil.copytree(checkpoints / "8", checkpoints / "60"),
    "a pipe for metadata": lambda checkpoints: make_pipe(checkpoints / "12" / "_CHECKPOINT_METADATA"),
}


@pytest.mark.parametrize("how", UNFINISHED)
def test_finished_is_what_has_a_good_last_checkpoint(undisturbed, tmp_path, capsys, how):
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    UNFINISHED[how](run_dir / "checkpoints")
    assert train(config(run_dir)) == 0
    assert_same(run_dir, undisturbed)
    out = capsys.readouterr().out
    assert "already finished" not in out
    assert out.count("moved to quarantine/") == 1
    (event,) = (each for each in read_jsonl(run_dir / "events.jsonl") if each["event"] == "quarantine")
    assert event["step"] == (60 if "later" in how else 12)
    assert all(each["verified"] for each in command.verify(str(run_dir)))
    # Now it is.
    assert train(config(run_dir)) == 0
    assert "already finished" in capsys.readouterr().out


def test_a_last_checkpoint_that_went_bad_is_no_finish(tmp_path, undisturbed):
    """After it was committed, and before the run ends."""
    run_dir = tmp_path / "run"
    close = Checkpointer.close

    def damaging(self):
        close(self)
        flip(data_file(run_dir / "checkpoints" / "12"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "close", damaging)
        with pytest.raises(HaltedError, match=r"step 12, is not what was saved .*moved to quarantine/12-1"):
            train(config(run_dir))
    assert Checkpointer(run_dir / "checkpoints").steps() == [4, 8]
    assert train(config(run_dir)) == 0
    assert_same(run_dir, undisturbed)
    last = [each["event"] for each in read_jsonl(run_dir / "events.jsonl")]
    assert last.index("quarantine") < last.index("verify"), "what was found good is the second"


def test_a_run_lives_in_a_directory_of_any_name(tmp_path, undisturbed):
    """Trained, stopped, resumed, sampled from, branched from and looked at."""
    run_dir = tmp_path / "[a]*?{$%#:=@'\" \u00fc." / "run [2]"
    assert train(config(run_dir)) == 0
    shutil.rmtree(run_dir / "checkpoints" / "12")
    assert train(config(run_dir)) == 0
    assert_same(run_dir, undisturbed)
    assert all(each["verified"] for each in command.verify(str(run_dir)))
    assert isinstance(sample_run(str(run_dir), "", 4, seed=0, temperature=1.0, top_p=1.0), str)
    branch = config(run_dir.with_name("[b]"), f"duration.start_from={run_dir}@8 steps", "duration.length=14 steps")
    assert train(branch) == 0


def test_a_name_that_cannot_hold_checkpoints_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(BadInputError, match=r"no checkpoint can be saved in .*logging.run_dir"):
        train(tiny().model_copy(update={"logging": tiny().logging.model_copy(update={"run_dir": f"{tmp_path}/a\\b"})}))
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused_and_nothing_moved(stopped):
    with pytest.raises(BadInputError, match="does not fit this config"):
        train(config(stopped, "model.d_ff=96"), allow_config_change=True)
    assert not (stopped / "quarantine").exists()
    assert Checkpointer(stopped / "checkpoints").steps() == [4, 8]


def test_a_run_that_is_going_on_keeps_others_from_its_checkpoints(stopped):
    flip(data_file(stopped / "checkpoints" / "8"))
    with RunDirectory(stopped).lock():
        with pytest.raises(BadInputError, match="in use by another run"):
            train(config(stopped))
        with pytest.raises(BadInputError, match="in use by another run"):
            list(command.prune(str(stopped), 1, None, dry_run=False))
    assert Checkpointer(stopped / "checkpoints").steps() == [4, 8]


def test_a_rollback_puts_a_bad_checkpoint_aside_too(tmp_path):
    """Saved at 5 and 10, trouble from step 13 on; 10 is damaged meanwhile, and 5 gone back to."""
    settings = config(
        tmp_path / "run",
        "duration.length=16 steps",
        "checkpoint.every=5 steps",
        "faults.nan=[208, 224]",
        "conditioning.guard={patience: 0, rollback: {snapshots: 0, margin: 1, skip: 0}}",
    )
    folder = tmp_path / "run" / "checkpoints" / "10"
    restore = Checkpointer.restore_newest

    def damaged(self, like, data, last, bad):
        if last is not None and folder.is_dir():
            flip(data_file(folder))
        return restore(self, like, data, last, bad)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "restore_newest", damaged)
        assert train(settings) == 0
    events = list(read_jsonl(tmp_path / "run" / "events.jsonl"))
    assert [(each["step"], each["moved_to"]) for each in events if each["event"] == "quarantine"] == [
        (10, "quarantine/10-1")
    ]
    assert [each["to_step"] for each in events if each["event"] == "rollback"] == [5]


def test_a_bad_checkpoint_is_not_sampled_from(stopped):
    flip(data_file(stopped / "checkpoints" / "8"))
    with pytest.raises(BadInputError, match=r"8 is bad .*move it away to sample from step 4"):
        sample_run(str(stopped), "", 4, seed=0, temperature=1.0, top_p=1.0)
    assert Checkpointer(stopped / "checkpoints").steps() == [4, 8]


def test_the_best_by_a_metric_is_kept(tmp_path):
    run_dir = tmp_path / "run"
    metric = "eval/bible/cross_entropy"
    settings = (f"checkpoint={{every: 2 steps, keep: 1, keep_best: {{metric: {metric}, mode: max}}}}",)
    assert train(config(run_dir, "evaluation.every=4 steps", *settings)) == 0
    values = {line["step"]: line[metric] for line in read_jsonl(run_dir / "metrics.jsonl") if metric in line}
    worst = max(values, key=values.get)
    assert worst == 4, "losses fall, so the largest is the first"
    found = command.describe(str(run_dir))
    assert [(each["step"], each["kept"].split(" (")[0]) for each in found] == [
        (4, f"best {metric}"),
        (12, "one of the newest 1"),
    ]


@contextmanager
def small_disk(path, megabytes):
    """A disk of its own; skips visibly where none can be had."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs a disk to fill, and mount says {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_ends_a_run_after_three_saves_and_loses_no_checkpoint(tmp_path, undisturbed, capfd):
    disk = tmp_path / "disk"
    with small_disk(disk, 2):
        run_dir = disk / "run"
        with pytest.raises(HaltedError, match=r"3 saves in a row failed; the newest checkpoint is that of step \d+"):
            train(config(run_dir, "checkpoint={every: 1 step, keep: 100}"))
        failed = [each for each in read_jsonl(run_dir / "events.jsonl") if each["event"] == "save_failed"]
        said = capfd.readouterr()
        assert len(failed) == 3 or "lines are lost" in said.err
        assert said.out.count("not saved") == 3
        assert "Traceback" not in said.err
        found = list(command.verify(str(run_dir)))
        assert found
        assert all(each["verified"] for each in found)
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert train(config(run_dir, "checkpoint={every: 4 steps, keep: 100}")) == 0
        assert_same(run_dir, undisturbed)


def test_a_disk_that_turns_read_only_ends_a_run_and_loses_no_checkpoint(tmp_path, capfd):
    disk = tmp_path / "disk"
    with small_disk(disk, 20):
        train(config(disk / "run", "duration.length=2 steps", "checkpoint.every=1 step"))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(BadInputError, match="cannot be written: Read-only file system"):
            train(config(disk / "run"), allow_config_change=True)
        assert all(each["verified"] for each in command.verify(str(disk / "run")))


class TestCommand:
    def test_list_says_what_each_is_kept_for(self, stopped):
        flip(stopped / "checkpoints" / "8" / "_CHECKPOINT_METADATA", at=20)
        four, eight = command.describe(str(stopped))
        assert (four["step"], four["fingerprints"], four["kept"], four["bad"]) == (4, True, "one of the newest 10", "")
        assert eight["bad"].startswith("_CHECKPOINT_METADATA is damaged") or eight["kept"]
        assert four["bytes"] > 300_000
        assert "one of the newest 10" in "\n".join(command.list_lines([four, eight]))

    def test_verify_names_the_bad_one(self, stopped):
        flip(data_file(stopped / "checkpoints" / "4"))
        four, eight = command.verify(str(stopped))
        assert not four["good"]
        assert four["bad"].startswith("not what was saved: params/")
        assert eight["verified"]
        assert "step 4: BAD: not what was saved" in command.verify_line(four)

    def test_verify_says_what_the_run_deletes_meanwhile(self, stopped):
        looking = command.verify(str(stopped))
        assert next(looking)["verified"]
        shutil.rmtree(stopped / "checkpoints" / "8")
        (eight,) = looking
        assert (eight["good"], eight["removed"], eight["bad"]) == (None, True, "")
        assert command.verify_line(eight).startswith("step 8: removed meanwhile")

    @pytest.mark.parametrize("ask", ["list", "prune"])
    def test_another_step_s_checkpoint_is_bad(self, stopped, ask):
        shutil.copytree(stopped / "checkpoints" / "4", stopped / "checkpoints" / "20")
        if ask == "list":
            assert "is the checkpoint of step 4" in "\n".join(command.list_lines(command.describe(str(stopped))))
        else:  # it takes no good one's place
            assert "deleted the checkpoint of step 4" in list(command.prune(str(stopped), 1, None, dry_run=False))
            assert Checkpointer(stopped / "checkpoints").steps() == [8, 20]

    def test_verify_takes_any_mesh_apart(self, tmp_path):
        settings = config(tmp_path / "run", "duration.length=2 steps", "compute.mesh={data: 1, fsdp: 4, tensor: 2}")
        assert train(settings) == 0
        (found,) = command.verify(str(tmp_path / "run"))
        assert found["verified"]

    def test_show_lists_every_array(self, stopped):
        found = command.show(str(stopped), None)
        assert (found["step"], found["sequences"]) == (8, 8 * 16)
        assert found["leaves"]["params/embedding"]["shape"] == [256, 32]
        assert found["leaves"]["params/embedding"]["bytes"] == 256 * 32 * 4
        assert len(list(command.show_lines(found))) == len(found["leaves"]) + 2
        json.dumps(found)

    def test_a_link_in_a_circle_is_bad(self, stopped):
        path = stopped / "checkpoints" / "8" / "_CHECKPOINT_METADATA"
        path.unlink()
        path.symlink_to(path.name)
        four, eight = command.describe(str(stopped))
        assert (four["bad"], eight["bad"][:9]) == ("", "OSError: ")
        assert [bool(each["bad"]) for each in command.verify(str(stopped))] == [False, True]
        with pytest.raises(BadInputError, match=r"8 is bad: OSError: .*; choose another with --step"):
            command.show(str(stopped))

    @pytest.mark.parametrize("name", ["checkpoints/8/_CHECKPOINT_METADATA", "checkpoints", "quarantine"])
    def test_what_cannot_be_read_at_the_moment_is_one_line(self, stopped, nobody, name):
        (stopped / "quarantine").mkdir()
        asks = [command.describe] if name == "quarantine" else [command.describe, command.show]
        (stopped / name).chmod(0)
        for ask in asks:
            with nobody(stopped / name), pytest.raises(BadInputError, match=r"cannot be read at the moment .*Permis"):
                ask(str(stopped))

    @pytest.mark.parametrize("mode", [0o000, 0o400], ids=["closed", "listed only"])
    def test_prune_says_what_it_may_not_read_or_delete(self, stopped, nobody, mode):
        checkpoints = stopped / "checkpoints"
        checkpoints.chmod(mode)
        for ask in (lambda run: list(command.prune(run, 1, None, dry_run=True)), command.describe, command.show):
            with nobody(checkpoints), pytest.raises(BadInputError, match=r"checkpoints cannot be read .*Permission"):
                ask(str(stopped))
        checkpoints.chmod(0o755)
        (stopped / ".blobjax-lock").touch()
        (stopped / ".blobjax-lock").chmod(0o666)
        with nobody(checkpoints), pytest.raises(BadInputError, match=r"4 cannot be deleted .*Permission denied"):
            list(command.prune(str(stopped), 1, None, dry_run=False))
        assert (checkpoints / "4").is_dir()

    @pytest.mark.parametrize("name", ["", "energy", "events.jsonl", "config.yaml"])
    def test_what_looks_at_a_run_says_what_it_may_not_read(self, stopped, nobody, name):
        asks = [command.describe, lambda run: list(command.verify(run)), facts.read]
        asks = [facts.read, status] if name == "events.jsonl" else [*asks, status] if name == "" else asks
        (stopped / name).chmod(0)
        for ask in asks:
            with nobody(stopped / name), pytest.raises(BadInputError, match=r"cannot be read.*Permission denied"):
                ask(str(stopped))
        (stopped / name).chmod(0o755)

    def test_what_was_removed_meanwhile_is_not_listed_and_not_shown(self, stopped, monkeypatch):
        """A run that goes on deletes a checkpoint between the look at the folder and the look into it."""
        monkeypatch.setattr(command.files, "numbered", lambda checkpoints: [4, 8, 12])
        assert [each["step"] for each in command.describe(str(stopped))] == [4, 8]
        with pytest.raises(BadInputError, match=r"12 was removed meanwhile; choose another with --step"):
            command.show(str(stopped))

    def test_prune_deletes_what_no_rule_keeps(self, stopped):
        assert list(command.prune(str(stopped), 1, None, dry_run=True)) == [
            "would delete the checkpoint of step 4",
            "kept: 8",
        ]
        assert Checkpointer(stopped / "checkpoints").steps() == [4, 8]
        assert next(command.prune(str(stopped), 1, None, dry_run=False)) == "deleted the checkpoint of step 4"
        assert Checkpointer(stopped / "checkpoints").steps() == [8]

    @pytest.mark.parametrize("ask", [command.describe, command.show, lambda run: list(command.verify(run))])
    def test_what_is_no_run_is_one_line(self, tmp_path, ask):
        with pytest.raises(BadInputError, match="is not a run directory"):
            ask(str(tmp_path))

    @pytest.mark.parametrize("ask", [command.show, lambda run: list(command.verify(run))])
    def test_no_checkpoint_is_none_that_is_good(self, tmp_path, ask):
        (tmp_path / "config.yaml").write_text("name: new\n")
        with pytest.raises(BadInputError, match="has no checkpoint yet"):
            ask(str(tmp_path))
