"""The Cloud TPU scripts, with a gcloud that only writes down what it is asked. This checks how we ask, not that Google
understands it."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "launch" / "tpu"


@pytest.fixture
def gcloud(tmp_path):
    """Runs a script; returns its exit code, its stderr, and the words of each call."""
    log = tmp_path / "calls"
    fake = tmp_path / "bin" / "gcloud"
    fake.parent.mkdir()
    fake.write_text(
        f"#!/bin/bash\nprintf '%q ' \"$@\" >> {log}; echo >> {log}\n"
        'for word in "$@"; do case $word in *-1) exit ${SECOND:-0};; esac; done\nexit ${FIRST:-0}\n'
    )
    fake.chmod(0o755)

    def run(script: str, *arguments: str, **environment: str):
        path = f"{fake.parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [str(FOLDER / script), *arguments],
            env={**os.environ, **environment, "PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        calls = [shlex.split(line) for line in log.read_text().splitlines()] if log.exists() else []
        return done.returncode, done.stderr, calls

    return run


def option(call: list[str], name: str) -> str:
    return call[call.index(name) + 1]


def test_one_slice(gcloud):
    code, _, (call,) = gcloud("create.sh", "mine", "v6e-64", "us-east5-b", "--spot")
    assert code == 0
    assert call[:5] == ["compute", "tpus", "queued-resources", "create", "mine"]
    assert (option(call, "--node-id"), option(call, "--zone")) == ("mine", "us-east5-b")
    assert (option(call, "--accelerator-type"), option(call, "--runtime-version")) == ("v6e-64", "v2-alpha-tpuv6e")
    assert call[-1] == "--spot"


def test_several_slices(gcloud):
    _, _, (call,) = gcloud("create.sh", "mine", "v5p-128", "us-east5-a", "4")
    assert (option(call, "--node-prefix"), option(call, "--node-count")) == ("mine", "4")
    assert "--node-id" not in call


def test_the_command_comes_to_every_slice_as_it_was_given(gcloud):
    code, _, calls = gcloud("run.sh", "mine", "us-east5-a", "2", "--", "laptop", "compute.mesh={replica: 2}")
    assert code == 0
    assert sorted(call[4] for call in calls) == ["mine-0", "mine-1"]
    for call in calls:
        assert call[:4] == ["compute", "tpus", "tpu-vm", "ssh"]
        assert "--worker=all" in call
        _, _, train = option(call, "--command").partition("exec ")
        assert shlex.split(train) == ["blobjax", "train", "laptop", "compute.mesh={replica: 2}"]


@pytest.mark.parametrize(
    ("first", "second", "code"), [("75", "75", 75), ("75", "134", 134), ("1", "75", 1), ("0", "0", 0)]
)
def test_the_exit_code_is_that_of_the_run(gcloud, first, second, code):
    found, _, _ = gcloud("run.sh", "mine", "zone", "2", "--", "laptop", FIRST=first, SECOND=second)
    assert found == code


@pytest.mark.parametrize(
    ("script", "arguments", "line"),
    [
        ("create.sh", ["mine", "v6e-64"], "create.sh: give NAME ACCELERATOR ZONE [SLICES] [gcloud options …]"),
        ("create.sh", ["mine", "h100-8", "zone"], "create.sh: h100-8 is not v4-N, v5litepod-N, v5p-N or v6e-N"),
        ("run.sh", ["mine"], "run.sh: give NAME ZONE [SLICES], then --, then what blobjax train is to train"),
    ],
)
def test_bad_input_is_one_line(gcloud, script, arguments, line):
    code, stderr, calls = gcloud(script, *arguments)
    assert (code, stderr.splitlines(), calls) == (2, [line], [])
