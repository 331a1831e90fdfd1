"""What a precision policy promises of the formats, read off a run and its compiled step."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.program.batches import global_batches
from blobjax.program.program import make_program
from tests.tiny import tiny


def train(*overrides: str, steps: int = 8):
    settings = tiny(*overrides)
    stream = data.open_stream(settings, data.prepare(settings))
    program = make_program(settings, make_layout(settings, jax.devices()[:1]), stream.tokens_per_epoch)
    lowered = program.lower_train_step()
    step, state = lowered.compile(), program.init()
    batches = global_batches(stream, 0, program.batch_sharding, program.shape_BT)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics["loss"]))
    return np.array(losses), state, lowered.as_text()


def dtypes(tree) -> set[str]:
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if leaf.ndim}


@pytest.fixture(scope="module")
def float32():
    return train("conditioning.precision=float32")


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan"])
def test_16_bit_parameters_train_with_32_bit_moments(rounding, float32):
    losses, state, _ = train("conditioning.precision=bfloat16_params", f"conditioning.parameter_rounding={rounding}")
    assert dtypes(state.params) == {"bfloat16"}
    assert dtypes(state.opt_state) == ({"float32", "bfloat16"} if rounding == "kahan" else {"float32"})
    # Eight bits of significand through a few layers.
    np.testing.assert_allclose(losses, float32[0], rtol=0.02)
    assert losses[-1] < losses[0] - 0.3


def test_16_bit_parameters_start_as_the_others_rounded():
    wide = make_program(tiny(), make_layout(tiny(), jax.devices()[:1]), 10_000).init().params
    settings = tiny("conditioning.precision=bfloat16_params")
    narrow = make_program(settings, make_layout(settings, jax.devices()[:1]), 10_000).init().params
    jax.tree.map(lambda w, n: np.testing.assert_array_equal(w.astype(jnp.bfloat16), n), wide, narrow)


@pytest.mark.parametrize(
    ("precision", "operands"),
    [("float32", "f32"), ("bfloat16", "bf16"), ("bfloat16_params", "bf16"), ("float16", "f16")],
)
def test_forward_matmuls_are_in_the_compute_format(precision, operands):
    """Of the program as it is lowered: XLA's CPU backend widens 16-bit products for want of an instruction."""
    settings = tiny(f"conditioning.precision={precision}")
    program = make_program(settings, make_layout(settings, jax.devices()[:1]), 10_000)
    text = program.lower_eval_step().as_text()
    found = re.findall(r"stablehlo\.dot_general.*: \(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\)", text)
    assert len(found) >= 7 + 2 + 1  # of one block, its weights and attention; and the output projection
    assert {dtype for pair in found for dtype in pair} == {operands}
