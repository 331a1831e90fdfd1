import os
import re
import subprocess
import sys

import pytest

from blobjax.compute.runtime import _bundle_flags
from blobjax.compute.xla_flags import BUNDLES
from blobjax.config import BadInputError

COMPUTE = "import jax.numpy as j; print(float(j.ones((4, 4)).sum()))"


def run_with(flags: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", COMPUTE], env=environment, capture_output=True, text=True)


@pytest.mark.smoke
def test_this_jaxlib_knows_every_flag():
    """All bundles in one process: XLA parses the flags of every platform, and aborts on one that it does not know."""
    done = run_with(" ".join(flag for bundle in BUNDLES.values() for flag in bundle.flags))
    assert done.stdout.strip() == "16.0", done.stderr


def test_an_unknown_flag_would_have_been_noticed():
    assert run_with("--xla_no_such_flag=true").returncode != 0


def test_bundles_by_name():
    assert _bundle_flags(("gpu-deterministic", "cpu-ynn")) == [
        "--xla_gpu_exclude_nondeterministic_ops=true",
        "--xla_cpu_experimental_ynn_fusion_type=dot",
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
