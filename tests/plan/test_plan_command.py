"""`blobjax plan` as a person meets it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from blobjax.cli import commands
from blobjax.config import BadInputError
from tests.tiny import TINY


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "blobjax.cli", "plan", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"},
    )


def test_a_plan_for_cpus_as_json():
    """More devices than the machine has cores, none of them asked for by the config."""
    done = plan("laptop", *TINY, "compute.mesh={fsdp: -1}", "--on", "cpu:16", "--price", "2", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["chips"], said["mesh"]["fsdp"], said["steps"], said["tokens"]) == (16, 16, 12, 12 * 16 * 32)
    memory = said["memory_bytes"]
    assert memory["total"] == sum(memory[name] for name in ("arguments", "temporaries", "outputs"))
    assert 0 < memory["activations"] <= memory["temporaries"]
    assert said["step_seconds"] is said["cost"] is None
    assert {each["kind"] for each in said["collectives"]} >= {"all-gather", "all-reduce"}
    # Every parameter's gradient once, the table's twice: as embedding and as output projection. On a CPU a
    # reduce-scatter is written as an all-reduce.
    table = 256 * 32
    wanted = 4 * (said["parameters"] + table) * 2 * 15 / 16
    assert said["gradient_reduction"]["format"] == "float32"
    assert said["gradient_reduction"]["sent_bytes"] == pytest.approx(wanted, rel=0.02)  # and some scalars


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("/no/such/f.yaml", "there is no directory /no/such"),
        ("/tmp", "--out /tmp: is a directory"),
        ("", "an empty name"),
    ],
)
def test_a_place_for_the_layout_is_refused_before_any_work(out, said):
    with pytest.raises(BadInputError, match=said):
        commands.app(["plan", "no such config", "--on", "v5e:4x4", "--search", "--out", out], standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["laptop", "--on", "v9:4x4"], "unknown chip 'v9'"),
        (["laptop", "--on", "cpu:8", "--pue", "0.5"], "--pue 0.5 must be a number of at least 1"),
        (
            ["laptop", "duration.length='3 epochs'", "--on", "cpu:8"],
            "duration.length '3 epochs': a plan looks at no data",
        ),
        (["laptop", "--on", "cpu:3"], "duration.global_batch_size 8 does not divide over 3 devices"),
        (["laptop", "--on", "cpu:8", "--search"], "--search weighs layouts by the chip's peaks"),
        (["laptop", "--on", "cpu:8", "--out", "f.yaml"], "--out is for --search"),
        (["laptop", "--on", "cpu:8", "--compiles", "3"], "--compiles is for --search"),
        pytest.param(
            ["laptop", "--on", "v5e:4x4"],
            "pip install 'blobjax[plan-tpu]'",
            marks=pytest.mark.skipif(find_spec("libtpu") is not None, reason="the extra plan-tpu is installed"),
        ),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, expected):
    done = plan(*arguments)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("blobjax: ")
    assert expected in line
    assert done.stdout == ""
