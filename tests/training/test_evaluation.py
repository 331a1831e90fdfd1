"""Held-out figures against sums by hand, padding rows included."""

import math

import jax
import numpy as np
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.objectives.held_out import by_domain, by_position, position_ranges
from blobjax.program.batches import Position, global_batches
from blobjax.program.program import make_program
from blobjax.runs.directory import read_jsonl
from blobjax.training.context import RunContext
from blobjax.training.trainer import train
from tests.tiny import tiny


@pytest.fixture(scope="module")
def setting():
    config = tiny("compute.gradient_accumulation=2")
    stream = data.open_stream(config, data.prepare(config))
    program = make_program(config, make_layout(config, jax.devices()[:1]), stream.tokens_per_epoch)
    return program, stream, program.init()


def context_of(program, stream, windows):
    """The run's context, with these held-out rows of one domain."""
    context = RunContext(program, stream, Position(0, 0, program.clockwork.batches))
    context.held_out = {"bible": windows}
    return context


def log_likelihoods(program, params, windows):
    """Nats of each target, from plain logits in float64."""
    model = program.arch.merge(params)
    logits = np.asarray(model(windows["tokens"], windows["segments"], windows["positions"]), np.float64)
    log_z = np.log(np.sum(np.exp(logits), axis=-1))
    return log_z - np.take_along_axis(logits, windows["targets"][..., None], axis=-1)[..., 0]


def test_bits_per_byte_are_nats_over_bytes_and_padding_counts_nothing(setting):
    program, stream, state = setting
    # Eleven windows in batches of eight: the second is mostly padding.
    windows = {name: array[:11] for name, array in stream.held_out("bible", 11).items()}
    assert program.part_BT == (8, 32)
    found = by_domain(context_of(program, stream, windows), state.params)
    nats = log_likelihoods(program, state.params, windows) * windows["mask"]
    cross_entropy = nats.sum() / windows["mask"].sum()
    assert found["eval/bible/cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5)
    assert found["eval/bible/perplexity"] == pytest.approx(math.exp(cross_entropy), rel=1e-4)
    expected = nats.sum() / math.log(2) / windows["target_bytes"].sum()
    assert found["eval/bible/bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_loss_by_position_is_the_mean_over_each_range(setting):
    program, stream, state = setting
    windows = stream.held_out("bible", 11)
    found = by_position(context_of(program, stream, windows), state.params)
    assert position_ranges(32) == [(0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 32)]
    assert position_ranges(6) == [(0, 1), (1, 2), (2, 4), (4, 6)]
    nats = log_likelihoods(program, state.params, windows)
    assert list(found) == [f"eval/bible/cross_entropy_at/{first}" for first, _ in position_ranges(32)]
    for first, last in position_ranges(32):
        counts = (windows["mask"] > 0) & (windows["positions"] >= first) & (windows["positions"] < last)
        assert found[f"eval/bible/cross_entropy_at/{first}"] == pytest.approx(nats[counts].mean(), rel=1e-5)


def test_training_metrics_are_those_of_the_whole_batch(setting):
    program, stream, state = setting
    batch = next(global_batches(stream, 0, program.batch_sharding, program.shape_BT))
    host = jax.device_get(batch)
    nats = log_likelihoods(program, state.params, host) * host["mask"]
    _, metrics = program.lower_train_step().compile()(jax.tree.map(lambda leaf: leaf + 0, state), batch)
    assert float(metrics["cross_entropy"]) == pytest.approx(nats.mean(), rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(metrics["cross_entropy"] + metrics["z_loss"]), rel=1e-6)
    assert float(metrics["z_loss"]) > 0
    expected = nats.sum() / math.log(2) / host["target_bytes"].sum()
    assert float(metrics["bits_per_byte"]) == pytest.approx(expected, rel=1e-5)


def test_a_run_that_accumulates_gradients_evaluates_part_by_part(tmp_path):
    settings = tiny(
        f"logging.run_dir={tmp_path}",
        "compute.gradient_accumulation=2",
        "duration.length=2 steps",
        "evaluation.by_position=true",
    )
    assert train(settings) == 0
    evaluated = [line for line in read_jsonl(tmp_path / "metrics.jsonl") if "eval/bible/bits_per_byte" in line]
    assert [line["step"] for line in evaluated] == [2]
    assert evaluated[0]["eval/bible/cross_entropy_at/16"] > 0
