import os
import re
import subprocess
import sys

import pytest

from blobjax.compute import runtime
from blobjax.compute.runtime import _bundle_flags
from blobjax.compute.xla_flags import _NEEDED, BUNDLES, needed
from blobjax.config import BadInputError

COMPUTE = "import jax.numpy as j; print(float(j.ones((4, 4)).sum()))"


def run_with(flags: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", COMPUTE], env=environment, capture_output=True, text=True)


@pytest.mark.smoke
def test_this_jaxlib_knows_every_flag():
    """All bundles in one process: XLA parses the flags of every platform, and aborts on one that it does not know."""
    of_bundles = [flag for bundle in BUNDLES.values() for flag in bundle.flags]
    done = run_with(" ".join([*of_bundles, *(flag for flags in _NEEDED.values() for flag in flags)]))
    assert done.stdout.strip() == "16.0", done.stderr


def test_an_unknown_flag_would_have_been_noticed():
    assert run_with("--xla_no_such_flag=true").returncode != 0


def test_bundles_by_name():
    assert _bundle_flags(("gpu-deterministic", "cpu-compile")) == [
        "--xla_gpu_exclude_nondeterministic_ops=true",
        "--xla_backend_optimization_level=1",
    ]
    assert _bundle_flags(()) == []


def test_auto_takes_what_was_measured_to_pay_here():
    paying = [
        flag for bundle in BUNDLES.values() if bundle.measured and bundle.platform == "cpu" for flag in bundle.flags
    ]
    assert _bundle_flags("auto") == paying


def test_an_unknown_bundle_is_named_with_the_nearest():
    line = "compute.xla_flags: unknown bundle 'gpu-overlp'; did you mean 'gpu-overlap'?"
    with pytest.raises(BadInputError, match=f"^{re.escape(line)}$"):
        _bundle_flags(("gpu-overlp",))


SUM_OF_SQUARES = """
import sys
from blobjax.compute import runtime
from blobjax.config import load
if sys.argv[1] == "run":
    runtime.configure(load("laptop", sys.argv[2:]).compute)
else:
    runtime.set_needed_flags()
from blobjax.compute.doctor import _arithmetic
print(_arithmetic())
"""


@pytest.mark.smoke
@pytest.mark.parametrize("how", ["run", "run compute.xla_flags=[]", "other commands"])
def test_a_run_computes_a_float32_sum_right(how):
    """jaxlib 0.10.2 does not without its flag: 1,065,369,600 (jax issue 39103)."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-c", SUM_OF_SQUARES, *how.split(" ", 1)]
    done = subprocess.run(command, env=environment | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    expected = (True, "a float32 sum of squares is 1,073,741,824, expected 1,073,741,824")
    assert done.stdout.strip() == str(expected), done.stderr


def test_flags_are_added_once_and_before_the_users_own(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--mine=1")
    runtime._add_flags(["--ours=2", "--mine=1"])
    runtime._add_flags(["--ours=2"])
    assert os.environ["XLA_FLAGS"] == "--ours=2 --mine=1"


def test_this_suite_runs_under_the_flags_that_this_jaxlib_needs():
    assert set(needed()) <= set(os.environ["XLA_FLAGS"].split())
