"""Paths that lead nowhere are one line before anything is written: URLs, and `~` where there is no home directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blobjax.cli import commands
from blobjax.config import BadInputError, load
from tests.tiny import TINY

NAMESPACE = ["unshare", "--user", "--map-user=12345"]
try:
    # A user id that no entry of passwd names, as `docker run --user 12345` gives one, and Kubernetes' runAsUser.
    NOBODY = subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
except OSError:
    NOBODY = False
nobody = pytest.mark.skipif(not NOBODY, reason="needs user namespaces, to be a user whom the system does not know")


def blobjax(*arguments: str, cwd: Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not before or name != "HOME"}
    environment.pop("XDG_CACHE_HOME", None)
    return subprocess.run(
        [*before, sys.executable, "-m", "blobjax.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("logging.run_dir=gs://b/x", "logging.run_dir 'gs://b/x'"),
        ("data.prepared_dir=s3://b/x", "data.prepared_dir 's3://b/x'"),
        ("data.tokenizer=https://example.com/t.json", "data.tokenizer 'https://example.com/t.json'"),
        ("compute.compilation_cache=gs://b/x", "compute.compilation_cache 'gs://b/x'"),
        ("duration.start_from=gs://b/trunk@80%", "duration.start_from 'gs://b/trunk@80%'"),
        ("data.sources.a.path=s3a://b/*.txt", "data.sources.a.path 's3a://b/*.txt'"),
        ("logging.run_dir=file:///tmp/x", "logging.run_dir 'file:///tmp/x'"),
    ],
)
def test_a_url_is_refused_with_its_key(override, key):
    with pytest.raises(BadInputError) as refused:
        load("laptop", [override])
    (line,) = refused.value.problems
    assert f"{key} is a URL (" in line


@pytest.mark.parametrize(
    "path",
    [
        *("gs:/b/x", "gcs:/b", "s3:/b", "abfss:/b", "FILE:/tmp/q", "file:///tmp/q", " gs://b/x", "\tgs:/b", "abfs://b"),
        "other+1://b",
    ],
)
def test_one_slash_and_blanks_before_it_make_it_no_path(path):
    with pytest.raises(BadInputError, match=r"logging\.run_dir '.*' is a URL \("):
        load("laptop", [f"logging.run_dir={path}"])


@pytest.mark.parametrize("cache", ["gs://b", "gs:/b", " s3://b"])
def test_nor_is_one_the_cache_directory(tmp_path, cache):
    done = blobjax("train", "laptop", *TINY, cwd=tmp_path, before=("env", f"XDG_CACHE_HOME={cache}"))
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert f"XDG_CACHE_HOME '{cache}' is a URL (" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["status", ""], ["checkpoint", "list", " "], ["report", ""]])
def test_empty_text_is_no_run_directory(command):
    with pytest.raises(BadInputError, match="the run directory is empty text; give one such as runs/laptop"):
        commands.app(command, standalone_mode=False)


@pytest.mark.parametrize("path", ["runs/a:b//c", "runs/gs://x", "mine:/b"])
def test_a_colon_makes_no_url(path):
    config = load("laptop", [f"logging.run_dir={path}", "data.prepared_dir='/x: y/1://2'"])
    assert config.logging.run_dir == path


@pytest.mark.parametrize(
    "command",
    [
        ["train", "laptop", *TINY, "logging.run_dir=gs://b/x"],
        ["train", "laptop", *TINY, "logging.run_dir=gs://b/x", "--restarts", "1"],
        ["status", "gs://b/x"],
        ["sample", "gs://b/x"],
        ["report", "gs://b/x"],
        ["report", ".", "--out", "gs://b/x.html"],
        ["checkpoint", "list", "gs://b/x"],
        ["checkpoint", "verify", "gs://b/x"],
        ["checkpoint", "show", "gs://b/x"],
        ["checkpoint", "prune", "gs://b/x"],
        ["doctor", "gs://b/x"],
        ["study", "lr-sensitivity", "--dir", "gs://b/x"],
        ["data", "prepare", "laptop", "--train-bpe", "300", "--tokenizer-out", "gs://b/x.json"],
    ],
    ids=lambda command: " ".join(each for each in command if each not in TINY),
)
def test_no_command_takes_one_and_makes_a_folder_of_it(tmp_path, command):
    done = blobjax(*command, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert "is a URL (gs)" in line
    assert not list(tmp_path.iterdir())


@nobody
def test_without_a_home_directory_one_line_names_the_keys(tmp_path):
    done = blobjax("train", "laptop", *TINY, cwd=tmp_path, before=tuple(NAMESPACE))
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert "there is no home directory" in line
    assert "data.prepared_dir=FOLDER" in line
    assert "compute.compilation_cache=FOLDER" in line
    assert not list(tmp_path.iterdir())


@nobody
def test_with_those_keys_a_run_and_its_commands_need_none(tmp_path):
    keys = ["data.prepared_dir=prepared", "compute.compilation_cache=cache", "duration.length=4 steps", "name=a"]
    before = tuple(NAMESPACE)
    for command in (["train", "laptop", *TINY, *keys], ["status", "runs/a"], ["sample", "runs/a", "--tokens", "2"]):
        done = blobjax(*command, cwd=tmp_path, before=before)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [["status", "~nobody-here/x"], ["report", "~nobody-here/x"]], ids=" ".join)
def test_a_run_in_a_home_directory_that_there_is_not_is_one_line(tmp_path, command):
    done = blobjax(*command, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.splitlines()
    assert "'~nobody-here/x': there is no home directory that ~ could stand for" in line


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("logging.run_dir=~nobody-here/x", "run directory"),
        ("data.prepared_dir=~nobody-here/x", "data.prepared_dir"),
        ("compute.compilation_cache=~nobody-here/x", "compute.compilation_cache"),
        ("duration.start_from=~nobody-here/x@80%", "duration.start_from"),
        ("data={seq_len: 32, mixture: {a: 1}, sources: {a: {path: ~nobody-here/x}}}", "data.sources.a.path"),
    ],
)
def test_nor_does_a_key_take_one(tmp_path, override, key):
    prepared = [] if "data" in override else [f"data.prepared_dir={tmp_path}"]
    done = blobjax("train", "laptop", *TINY, override, *prepared, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"blobjax: {key} '~nobody-here/x': there is no home directory that ~ could stand for")
