"""Batch size warm-up: really smaller steps, every sequence used once and in order, and the same bits after a resume."""

import shutil

import jax
import numpy as np
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.config import BadInputError, Config, HaltedError
from blobjax.program.batches import to_global
from blobjax.program.program import make_clockwork, make_program
from blobjax.runs.directory import read_jsonl
from blobjax.training import memory, trainer
from blobjax.training.hooks import EvaluateHook
from blobjax.training.trainer import train
from tests.tiny import tiny
from tests.training.test_resume import assert_same_bits, trajectory

# Two stages of three steps each, rounded up from five.
WARMUP = (
    "duration={length: 9 steps, global_batch_size: 32, batch_warmup: 5 steps, batch_start: 8, warmup: 2 steps}",
    "checkpoint.every=2 steps",
)
SIZES = [8, 8, 8, 16, 16, 16, 32, 32, 32]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert train(tiny(*WARMUP, "compute.mesh={data: 1, fsdp: 8}", f"logging.run_dir={path}")) == 0
    return path


def test_steps_are_those_of_the_sizes_said_on_the_sequences_that_follow(run_dir):
    """On eight devices by the trainer, against one device given the sequences by number."""
    settings = tiny(*WARMUP)
    stream = data.open_stream(settings, data.prepare(settings))
    program = make_program(settings, make_layout(settings, jax.devices()[:1]), stream.tokens_per_epoch)
    state, compiled, first = program.init(), {}, 0
    lines = [line for line in read_jsonl(run_dir / "metrics.jsonl") if "loss" in line]
    for line, size in zip(lines, SIZES, strict=True):
        compiled[size] = compiled.get(size) or program.lower_train_step(size).compile()
        local = stream.sequences(list(range(first, first + size)))
        state, metrics = compiled[size](state, to_global(local, np.arange(size), program.batch_sharding, (size, 32)))
        first += size
        # Float32 sums in another order.
        np.testing.assert_allclose(line["loss"], metrics["loss"], rtol=1e-5)
        assert line["learning_rate"] == metrics["learning_rate"]
        assert line["batch_size"] == size
        assert line["tokens"] == first * 32
        assert line["tokens_per_second"] == pytest.approx(size * 32 / line["step_seconds"])
        epochs = {name: line[f"data/{name}/epochs"] for name in ("shakespeare", "bible", "mathematics")}
        assert epochs == stream.epochs(first)


def test_each_size_is_compiled_when_the_run_comes_to_it(run_dir):
    events = list(read_jsonl(run_dir / "events.jsonl"))
    assert [event["batch_size"] for event in events if event["event"] == "compile"] == [8, 16, 32]


def test_memory_that_runs_out_is_told_of_the_newest_step(tmp_path, monkeypatch):
    """Its batch size and its memory, not those of the first or of the last stage."""
    asked = []

    def out_of_memory(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")

    def ran_out(program, batch_size, needed, error):
        asked.append((batch_size, needed))
        return memory.ran_out(program, batch_size, needed, error)

    monkeypatch.setattr(trainer, "ran_out", ran_out)
    # At step 4, the first of the second stage.
    monkeypatch.setattr(EvaluateHook, "run", out_of_memory)
    with pytest.raises(HaltedError, match="out of memory: a step takes"):
        train(tiny(*WARMUP, "evaluation.every=4 steps", f"logging.run_dir={tmp_path / 'run'}"))
    compiled = [event for event in read_jsonl(tmp_path / "run" / "events.jsonl") if event["event"] == "compile"]
    assert [event["batch_size"] for event in compiled] == [8, 16]
    assert compiled[0]["memory_bytes"] != compiled[1]["memory_bytes"]
    assert asked == [(16, compiled[1]["memory_bytes"])]


@pytest.mark.parametrize("saved", [2, 4])
def test_a_run_that_stops_in_a_stage_goes_on_to_the_same_bits(run_dir, tmp_path, saved):
    again = tmp_path / "again"
    shutil.copytree(run_dir, again)
    for path in (again / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > saved:
            shutil.rmtree(path)
    assert train(tiny(*WARMUP, "compute.mesh={data: 1, fsdp: 8}", f"logging.run_dir={again}")) == 0
    assert trajectory(again) == trajectory(run_dir)
    assert_same_bits(again, run_dir)


@pytest.mark.parametrize("warmup", ["6 steps", "3k tokens", "0.4 epochs"])
@pytest.mark.parametrize("length", ["20k tokens", "0.1 tokens/param", "3.1 epochs"])
def test_a_length_in_anything_but_steps_sees_as_much_data(length, warmup):
    settings = f"duration={{length: {length}, global_batch_size: 16, batch_warmup: %s, batch_start: 2}}"
    tokens_per_epoch = 7_000
    plain = make_clockwork(tiny(settings % "0 steps", "optimizer.decay=0%"), tokens_per_epoch)
    clockwork = make_clockwork(tiny(settings % warmup), tokens_per_epoch)
    assert clockwork.length > plain.length
    seen, before = (clockwork.batches.sequences(steps) for steps in (clockwork.length, clockwork.length - 1))
    # As plain steps would, rounded up to the next step.
    assert before < plain.length * 16 <= seen


def test_a_length_in_steps_is_steps():
    settings = tiny("duration={length: 12 steps, global_batch_size: 16, batch_warmup: 6 steps, batch_start: 2}")
    clockwork = make_clockwork(settings, 10_000)
    assert clockwork.length == 12
    assert clockwork.batches.smaller == ((2, 2), (2, 4), (2, 8))


def test_a_warmup_in_tokens_is_linear_in_tokens():
    """A stage ends where the line from batch_start to global_batch_size reaches the next size."""
    length = "duration={length: 1M tokens, global_batch_size: 64, batch_warmup: 96k tokens, batch_start: 8}"
    batches = make_clockwork(tiny(length), 10_000).batches
    assert [size for _, size in batches.smaller] == [8, 16, 32]
    step = 0
    for steps, size in batches.smaller:
        step += steps
        line = 8 + (64 - 8) * batches.sequences(step) * 32 / 96_000
        # Each stage has 3000 / (8 + 16 + 32) = 53.6 steps, rounded up to 54.
        assert line == pytest.approx(2 * size, rel=0.01)


def test_one_longer_than_the_run_is_refused():
    settings = tiny("duration={length: 5 steps, global_batch_size: 16, batch_warmup: 4 steps, batch_start: 2}")
    with pytest.raises(BadInputError, match=r"duration.batch_warmup '4 steps' is 6 steps, more than the 5 of"):
        make_program(settings, make_layout(settings, jax.devices()[:1]), 10_000)


def test_more_steps_than_can_be_counted_are_refused():
    with pytest.raises(BadInputError, match=r"duration.length '1e\+?300 flops' is .* steps; give fewer than 2\^31"):
        make_clockwork(Config(duration={"length": "1e300 flops"}), 1000)
