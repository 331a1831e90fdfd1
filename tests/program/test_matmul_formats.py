"""Runs whose products with weights are in narrow formats: what is multiplied, and that they train."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.conditioning import products
from blobjax.conditioning.flow import probe_format
from blobjax.conditioning.formats import FORMATS
from blobjax.program.batches import global_batches
from blobjax.program.program import make_program
from tests.tiny import tiny

ONE_LAYER = ("model.n_layers=1", "optimizer.learning_rate=1.0e-2")
SIMULATED = "conditioning.simulate=true"


def program_of(*overrides: str, devices: int = 1):
    mesh = "{data: 1, fsdp: 8}" if devices == 8 else "{data: 1}"
    settings = tiny(*ONE_LAYER, f"compute.mesh={mesh}", *overrides)
    stream = data.open_stream(settings, data.prepare(settings))
    program = make_program(settings, make_layout(settings, jax.devices()[:devices]), stream.tokens_per_epoch)
    return program, global_batches(stream, 0, program.batch_sharding, program.shape_BT)


def train(*overrides: str, devices: int = 1, steps: int = 8):
    """Losses, and the states after each step."""
    program, batches = program_of(*overrides, devices=devices)
    step, states = program.lower_train_step().compile(), [program.init()]
    losses = []
    for _ in range(steps):
        # Copied, because the step takes its state's memory.
        state, metrics = step(jax.tree.map(jnp.copy, states[-1]), next(batches))
        states.append(state)
        losses.append(float(metrics["loss"]))
    return np.array(losses), states


@pytest.fixture(scope="module")
def float32():
    return train()[0]


@pytest.mark.parametrize(
    ("overrides", "gap"),
    [
        (("conditioning.precision=int8",), 0.5),
        (("conditioning.precision=fp8", SIMULATED), 0.03),
        (("conditioning.precision=mxfp8", SIMULATED), 0.03),
        (("conditioning.precision=mxfp6", SIMULATED), 0.03),
        (("conditioning.precision=mxfp4", SIMULATED), 0.2),
        (("conditioning.precision=nvfp4", SIMULATED), 0.2),
    ],
    ids=["int8", "fp8", "mxfp8", "mxfp6", "mxfp4", "nvfp4"],
)
def test_each_format_trains_about_as_float32_does(overrides, gap, float32):
    losses, states = train(*overrides)
    assert losses[-1] < losses[0] - 0.5
    # Of 1.6 nats learnt. Seen: 0.32 with int8, whose equal steps suit no gradients; 0.1 or less with the others.
    assert abs(losses[-1] - float32[-1]) < gap
    assert not np.array_equal(losses, float32)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((states[-1].params, states[-1].opt_state)) if leaf.ndim} == {
        "float32"
    }


@pytest.mark.parametrize(
    "overrides",
    [
        ("conditioning.precision=int8",),
        ("conditioning.precision=fp8", SIMULATED),
        ("conditioning.precision=nvfp4", SIMULATED),
    ],
    ids=["int8", "fp8", "nvfp4"],
)
def test_eight_devices_train_as_one(overrides):
    one, eight = train(*overrides, steps=4)[0], train(*overrides, steps=4, devices=8)[0]
    # Sums in another order differ in their last bit, which brings a number that lies halfway to its other neighbour:
    # a few of thousands, each by a step of its format, of which 4 bits have the largest. Seen: 0.012.
    np.testing.assert_allclose(one, eight, atol=0.03)


def multiplied(*overrides: str, lower: str = "lower_eval_step") -> Counter:
    """How many products there are of each pair of dtypes in the program as lowered."""
    settings = tiny(*ONE_LAYER, *overrides)
    program = make_program(settings, make_layout(settings, jax.devices()[:1]), 10_000)
    text = getattr(program, lower)().as_text()
    return Counter(re.findall(r"dot_general.*: \(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\)", text))


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_the_step_multiplies_by_weights_in_eight_bits_and_the_rest_in_16(name, monkeypatch):
    monkeypatch.setattr(products, "has_fp8", lambda device: True)
    found = multiplied(f"conditioning.precision={name}", lower="lower_train_step")
    weights = 4 + 3 + 1
    forward, gradient = ("i8", "i8") if name == "int8" else ("f8E4M3FN", "f8E5M2")
    wanted: Counter = Counter()
    for pair in ((forward, forward), (gradient, forward), (forward, gradient)):
        wanted[pair] += weights
    narrow = Counter({pair: count for pair, count in found.items() if {"i8", "f8E4M3FN", "f8E5M2"} & set(pair)})
    assert narrow == wanted
    # Attention's two products and the four of their gradients, two of which are of float32 scores.
    assert found - narrow == {("bf16", "bf16"): 4, ("f32", "f32"): 2}


def test_int8_stays_int8_when_compiled():
    settings = tiny(*ONE_LAYER, "conditioning.precision=int8")
    program = make_program(settings, make_layout(settings, jax.devices()[:1]), 10_000)
    text = program.lower_eval_step().compile().as_text()
    assert len(re.findall(r"= s32\[[\d,]*\]\S* dot\(", text)) == 4 + 3 + 1


@pytest.mark.parametrize(
    ("overrides", "eight_bits"),
    [
        ("{output: bfloat16}", 7),
        ("{blocks/attention/*: bfloat16}", 4),
        ("{blocks/mlp/up: float32, blocks/mlp/*: bfloat16}", 5),
        ("{blocks/attention/query: int8, '*': bfloat16}", 1),
    ],
)
def test_overrides_change_what_they_name(overrides, eight_bits):
    found = multiplied("conditioning.precision=int8", f"conditioning.precision_overrides={overrides}")
    assert found["i8", "i8"] == eight_bits
    assert found["f32", "f32"] == overrides.count("float32")
    assert found["bf16", "bf16"] == 8 - eight_bits - found["f32", "f32"] + 2


def test_a_float32_head_stays_one():
    found = multiplied("conditioning.precision=int8", "conditioning.float32_head=true")
    assert (found["i8", "i8"], found["f32", "f32"]) == (7, 1)


def test_probes_ask_about_the_matmul_format():
    def asked(*overrides):
        return probe_format(tiny(*overrides).conditioning)

    assert asked("conditioning.precision=fp8") == FORMATS["fp8_e4m3"]
    assert asked("conditioning.precision=nvfp4", SIMULATED) == FORMATS["nvfp4"]
    assert asked("conditioning.precision=bfloat16") == FORMATS["bfloat16"]
    assert asked() is None
    assert asked("conditioning.precision=fp8", "conditioning.matmul_scaling=blocks").block == 128
