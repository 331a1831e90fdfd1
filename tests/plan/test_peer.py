"""Llama 3 8B on 256 v5e, held against what another trainer's compile of the same step was seen to take."""

from importlib.util import find_spec

import pytest

from blobjax.config import load
from blobjax.plan.compile import compile_step
from blobjax.plan.hardware import find_machine

pytestmark = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="needs libtpu: pip install 'blobjax[plan-tpu]', or make test-engines"
)


def test_llama3_8b_needs_no_more_memory_than_the_peer():
    """Sequences of 8192, one a chip, full remat: 0.38 GB of arguments and 8.68 GB of temporaries (docs/plan.md).

    Gradients are summed in bfloat16, as they were then: in float32 the temporaries are 8.79 GB. It compiles for one to
    two minutes of a core.
    """
    config = load("models/llama3-8b", ["duration.global_batch_size=256", "compute.gradient_reduction=compute"])
    machine = find_machine("v5e:16x16")
    assert (config.data.seq_len, config.compute.remat, machine.chips) == (8192, "full", 256)
    memory = compile_step(config, machine).memory
    # The peer's figures are rounded to 0.01 GB.
    assert memory.arguments < 0.385e9
    assert memory.temporaries < 8.685e9
