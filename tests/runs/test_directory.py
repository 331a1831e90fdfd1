"""Whose a run directory is, whether it can be written, and what its files survive."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from blobjax.config import BadInputError, Config
from blobjax.runs.directory import EventLog, Lines, RunDirectory, read_jsonl, write_atomically
from blobjax.training.metrics import JsonlWriter


def config(tmp_path, **changes) -> Config:
    return Config(logging={"run_dir": str(tmp_path / "run")}, **changes)


def claim(directory: RunDirectory, settings: Config) -> None:
    with directory.lock():
        directory.claim(settings)


def test_a_new_directory_is_claimed_and_then_resumed(tmp_path):
    settings = config(tmp_path)
    directory = RunDirectory(settings.logging.run_dir)
    assert not directory.check(settings, allow_config_change=False)
    assert not directory.path.exists(), "a check writes nothing that lasts"
    claim(directory, settings)
    assert directory.check(settings, allow_config_change=False)
    assert directory.previous_config() == settings


def test_other_maths_is_refused_with_a_diff_unless_allowed(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    claim(directory, config(tmp_path))
    other = config(tmp_path, seed=3, model={"d_model": 128})
    with pytest.raises(BadInputError) as refused:
        directory.check(other, allow_config_change=False)
    text = "\n".join(refused.value.problems)
    assert "--allow-config-change" in text
    assert "model.d_model" in text
    assert "seed" in text
    assert directory.check(other, allow_config_change=True)


def test_what_does_not_change_the_maths_may_change(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    claim(directory, config(tmp_path))
    assert directory.check(config(tmp_path, compute={"mesh": {"data": 1, "fsdp": 8}}), allow_config_change=False)


def test_settings_that_a_run_is_older_than_are_as_they_were(tmp_path):
    directory, sixteen = RunDirectory(tmp_path / "run"), {"precision": "bfloat16"}
    for conditioning, value, words in ((sixteen, "compute", "gradients of embeddings"), ({}, "float32", "halts")):
        settings = config(tmp_path, conditioning=conditioning)
        claim(directory, settings)
        lines = directory.config.read_text().splitlines(keepends=True)
        unknown = ("gradient_reduction:", "scale_rounding:", "nonfinite_limit:")
        directory.config.write_text("".join(line for line in lines if not line.strip().startswith(unknown)))
        resumed, note = directory.as_it_began(settings)
        assert resumed.compute.gradient_reduction == value
        assert resumed.conditioning.scale_rounding == "up", "no product is in an mx format"
        assert words in note
        assert directory.check(resumed, allow_config_change=False)
        given = config(tmp_path, conditioning=conditioning, compute={"gradient_reduction": "float32"})
        assert directory.as_it_began(given)[0] == given, "what the config sets counts"
        claim(directory, resumed)
        assert ("as before" in directory.as_it_began(settings)[1]) is False, "said once"


def test_somebody_elses_directory_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInputError, match="not empty"):
        RunDirectory(tmp_path / "run").check(config(tmp_path), allow_config_change=False)


def test_a_path_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    settings = Config(logging={"run_dir": str(tmp_path / "file" / "run")})
    with pytest.raises(BadInputError, match="cannot be written"):
        RunDirectory(settings.logging.run_dir).check(settings, allow_config_change=False)


def test_metrics_beyond_the_checkpoint_and_torn_lines_are_dropped_on_resume(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 8)) + '{"step": 8, "lo')
    writer = JsonlWriter(directory, resume_step=5)
    writer.write(6, {"loss": float("nan"), "x": 1.5})
    writer.close()
    lines = list(read_jsonl(directory.metrics))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1] == {"step": 6, "loss": "nan", "x": 1.5}


def test_events_are_appended_with_their_time(tmp_path):
    for attempt in (1, 2):
        with EventLog(tmp_path / "events.jsonl") as log:
            log.write("start", attempt=attempt)
    events = list(read_jsonl(tmp_path / "events.jsonl"))
    assert [event["attempt"] for event in events] == [1, 2]
    assert events[0]["time"] <= events[1]["time"]


def test_a_process_that_does_not_write_makes_no_file(tmp_path):
    with EventLog(None) as log:
        log.write("start")
    assert not list(tmp_path.iterdir())


def test_atomic_write_leaves_no_trace_of_itself(tmp_path):
    write_atomically(tmp_path / "a", "one")
    write_atomically(tmp_path / "a", "two")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "two")]


def test_a_directory_in_use_is_refused_and_free_again_afterwards(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    with directory.lock(), pytest.raises(BadInputError, match="in use by another run"):
        directory.lock()
    claim(directory, config(tmp_path))


def test_what_a_crash_leaves_behind_does_not_spoil_the_directory(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    (directory.path / ".blobjax-config.yaml").write_text("half a con")
    assert not directory.check(config(tmp_path), allow_config_change=False)
    claim(directory, config(tmp_path))
    assert directory.check(config(tmp_path), allow_config_change=False)


def test_a_torn_last_event_spoils_no_other(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "start", "time": 1}\n{"event": "sa')
    with EventLog(path) as log:
        log.write("stop")
    assert [event["event"] for event in read_jsonl(path)] == ["start", "stop"]


def test_a_full_disk_costs_lines_and_says_so(capsys):
    """/dev/full is a disk without room."""
    with EventLog(Path("/dev/full")) as log:
        log.write("start")
        log.write("stop")
    assert capsys.readouterr().err.count("/dev/full cannot be written: No space left on device") == 1


def test_a_line_that_a_full_disk_tore_spoils_no_other(tmp_path, capsys, monkeypatch):
    lines = Lines(tmp_path / "events.jsonl")
    lines.write('{"event": "start"}\n')
    parts = [5, 0]

    def write(content):
        if not (part := parts.pop(0)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return file.write(content[:part])

    file = lines._file
    with monkeypatch.context() as full:
        full.setattr(lines, "_file", SimpleNamespace(write=write))
        lines.write('{"event": "lost"}\n')
    lines.write('{"event": "stop"}\n')
    lines.close()
    assert [event["event"] for event in read_jsonl(tmp_path / "events.jsonl")] == ["start", "stop"]
    assert "1 of its lines are lost" in capsys.readouterr().err


def test_what_a_short_write_left_is_written_too(tmp_path, capsys, monkeypatch):
    """After a signal, or on some file systems, write(2) takes fewer bytes than it was given, and says so."""
    lines = Lines(tmp_path / "events.jsonl")
    file = lines._file
    with monkeypatch.context() as short:
        short.setattr(lines, "_file", SimpleNamespace(write=lambda content: file.write(content[:7])))
        lines.write('{"event": "start", "text": "é"}\n')
    lines.write('{"event": "stop"}\n')
    lines.close()
    assert (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines() == [
        '{"event": "start", "text": "é"}',
        '{"event": "stop"}',
    ]
    assert capsys.readouterr().err == ""


FOLDERS = ("checkpoints", "quarantine", "energy", "tensorboard", "profile", "wandb", "profile/plugins/profile")


@pytest.mark.parametrize(
    "name",
    [
        *(".blobjax-lock", ".blobjax-hang-0", ".blobjax-hang-17", "hang-0.txt", "config.yaml", "metrics.jsonl"),
        *("events.jsonl", "undone_metrics.jsonl", "passed_over.json", "halt.json", "flow.json", "tokenizer.json"),
        *("log.txt", "report.html"),
        *FOLDERS,
    ],
)
@pytest.mark.parametrize("dangling", [False, True])
def test_what_a_run_writes_is_never_written_through_a_link(tmp_path, name, dangling):
    directory = RunDirectory(tmp_path / "run")
    claim(directory, config(tmp_path))
    victim, path = tmp_path / "victim", directory.path / name
    if not dangling:
        victim.mkdir() if name in FOLDERS else victim.write_text("precious")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    for ask in (lambda: directory.check(config(tmp_path), False), directory.lock):
        with pytest.raises(BadInputError, match="is a symbolic link"):
            ask()
    assert not victim.exists() if dangling else victim.is_dir() or victim.read_text() == "precious"


def test_a_link_that_is_the_user_s_own_is_nothing_to_a_run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    claim(directory, config(tmp_path))
    (directory.path / "notes").symlink_to(tmp_path)
    assert directory.check(config(tmp_path), False)


def test_nor_a_file_that_is_written_whole(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".blobjax-config.yaml").symlink_to(victim)
    write_atomically(tmp_path / "config.yaml", "new")
    assert (victim.read_text(), (tmp_path / "config.yaml").read_text()) == ("precious", "new")


def test_what_is_of_another_kind_is_one_line(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    claim(directory, config(tmp_path))
    (directory.path / "tensorboard").write_text("")
    with pytest.raises(BadInputError, match="tensorboard is not a directory"):
        directory.check(config(tmp_path), False)


@pytest.mark.parametrize("name", ["0.json", "17.json", ".blobjax-0.json"])
@pytest.mark.parametrize(("make", "why"), [(os.mkfifo, "is not a file"), (Path.mkdir, "is not a file")])
def test_an_account_of_energy_is_a_file(tmp_path, name, make, why):
    directory = RunDirectory(tmp_path / "run")
    claim(directory, config(tmp_path))
    make(directory.energy / name)
    with pytest.raises(BadInputError, match=rf"energy/{name} {why}"):
        directory.check(config(tmp_path), False)


@pytest.mark.parametrize("dangling", [False, True])
def test_an_account_of_energy_is_no_link(tmp_path, dangling):
    directory = RunDirectory(tmp_path / "run")
    claim(directory, config(tmp_path))
    if not dangling:
        (tmp_path / "victim").write_text("{}")
    (directory.energy / "0.json").symlink_to(tmp_path / "victim")
    with pytest.raises(BadInputError, match=r"energy/0.json is a symbolic link"):
        directory.check(config(tmp_path), False)


def test_a_pipe_in_place_of_the_lock_keeps_nobody_waiting(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    claim(directory, config(tmp_path))
    (directory.path / ".blobjax-lock").unlink()
    os.mkfifo(directory.path / ".blobjax-lock")
    assert not directory.in_use()
    with pytest.raises(BadInputError, match="is not a file"):
        directory.lock()


def test_a_run_s_own_record_includes_no_other_file(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    claim(directory, config(tmp_path))
    secret = tmp_path / "secret.yaml"
    secret.write_text("password: hunter2")
    directory.config.write_text(f"include: {secret}\n")
    with pytest.raises(BadInputError) as refused:
        directory.previous_config()
    assert "include: a run's own record" in refused.value.problems[0]
    assert "hunter2" not in str(refused.value)
