"""What does not fit into memory is one line, before anything is allocated where its size says so."""

import re
import subprocess
import sys

import jax
import pytest

from blobjax.compute.sharding import make_layout
from blobjax.config import BadInputError
from blobjax.config.sizes import in_words
from blobjax.processes.leaving import verdict
from blobjax.program.program import make_program
from blobjax.program.state import bytes_on_device
from blobjax.training import memory
from blobjax.training.trainer import train
from tests.tiny import tiny


def program_for(*overrides, devices=1):
    config = tiny(*overrides)
    return make_program(config, make_layout(config, jax.devices()[:devices]), tokens_per_epoch=10**6)


@pytest.fixture
def small_machine(monkeypatch):
    """A device with the memory that a test gives it."""

    def has(size: int) -> None:
        monkeypatch.setattr(memory, "capacity", lambda device: size)

    return has


def test_a_state_that_does_not_fit_is_refused_before_it_is_made(small_machine):
    program = program_for()
    needed = bytes_on_device(program.state)
    small_machine(needed)
    assert memory.state_problem(program) == ""
    small_machine(needed - 1)
    assert memory.state_problem(program).startswith(
        f"parameters and optimizer state take {in_words(needed)} of each device, and cpu"
    )


def test_a_step_that_does_not_fit_names_the_knob_that_makes_it_fit(small_machine):
    """The accumulation that is named does make it fit, by the compiler's own count."""
    overrides = ("duration.global_batch_size=256", "compute.mesh={data: 1}")
    program = program_for(*overrides)
    compiled = program.lower_train_step().compile()
    needed = memory.memory_bytes(compiled)
    small_machine(sum(needed.values()))
    assert memory.step_problem(program, 256, compiled) == ""
    has = needed["arguments"] + needed["temporaries"] // 3
    small_machine(has)
    line = memory.step_problem(program, 256, compiled)
    assert re.fullmatch(
        r"a step takes \d+\.\d MB of each device \(arguments \d+\.\d kB, temporaries \d+\.\d MB\), and cpu "
        r"has \d+\.\d MB; try compute\.gradient_accumulation=4 \(estimated\), compute\.remat=full or "
        r"compute\.loss_chunk_tokens=1024",
        line,
    ), line
    smaller = program_for(*overrides, "compute.gradient_accumulation=4").lower_train_step().compile()
    assert sum(memory.memory_bytes(smaller).values()) <= has


BATCH_WARMUP = "{length: 12 steps, global_batch_size: 32, batch_warmup: 5 steps, batch_start: 8, warmup: 2 steps}"


@pytest.mark.parametrize(
    ("duration", "batch_size", "share", "named"),
    [
        # 12 sequences over 4 devices are 3 on each, which 2 parts would not divide.
        ("{length: 12 steps, global_batch_size: 12, warmup: 2 steps}", 12, 1.5, 3),
        # 32 over 4 devices divide into 4 parts, but the 8 that the run starts with do not.
        (BATCH_WARMUP, 32, 1.5, 2),
        (BATCH_WARMUP, 32, 2.5, 0),
    ],
)
def test_the_accumulation_that_is_named_divides_every_batch_over_the_devices(duration, batch_size, share, named):
    program = program_for(f"duration={duration}", "compute.mesh={data: 4}", devices=4)
    needed = {"arguments": 1000, "temporaries": 3000}
    line = memory.knobs(program, batch_size, needed, has=1000 + int(3000 / share))
    found = re.search(r"compute\.gradient_accumulation=(\d+) \(estimated\)", line)
    assert (int(found[1]) if found else 0) == named, line
    if named:
        program_for(f"duration={duration}", "compute.mesh={data: 4}", line[4:].split()[0], devices=4)


@pytest.mark.parametrize("part", ["state", "step"])
def test_a_run_that_does_not_fit_leaves_nothing(part, small_machine, tmp_path, capsys):
    config = tiny(f"logging.run_dir={tmp_path}/run", "compute.mesh={data: 1}")
    state = bytes_on_device(program_for().state)
    small_machine(state - 1 if part == "state" else state + 1)
    with pytest.raises(BadInputError) as refused:
        train(config)
    assert len(refused.value.problems) == 1
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert not (tmp_path / "run" / "events.jsonl").exists()


def test_a_batch_of_a_hundred_thousand_is_one_line(tmp_path):
    command = [sys.executable, "-m", "blobjax.cli", "train", "laptop", "duration.global_batch_size=100000"]
    done = subprocess.run([*command, f"logging.run_dir={tmp_path}/run"], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "compute.gradient_accumulation=" in done.stderr


def test_memory_that_runs_out_under_way_is_one_line():
    program = program_for()
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")
    line = memory.ran_out(program, 16, {"arguments": 10**9, "temporaries": 2 * 10**9}, error)
    assert line.startswith("out of memory: a step takes 3.0 GB of each device (arguments 1.0 GB, temporaries 2.0 GB); ")
    assert memory.ran_out(program, 16, {}, ValueError("another")) == ""
    assert verdict(error) == (1, "blobjax: out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")
