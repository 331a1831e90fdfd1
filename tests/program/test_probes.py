"""Flow probes in a run: the same on every mesh and however layers are compiled, and no part of the maths."""

import jax
import numpy as np
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.program.batches import global_batches
from blobjax.program.program import make_program
from blobjax.runs.directory import RunDirectory, read_jsonl
from blobjax.training.recorder import named
from blobjax.training.trainer import train as train_run
from tests.tiny import tiny

PROBED = ("conditioning.probe_every=3", "conditioning.probe_format=mxfp8")
BLOCK = {
    "attention_entropy",
    "attention_logit_max",
    "dead_fraction",
    "grad_flush_fraction",
    "grad_rms",
    "grad_saturate_fraction",
    "grad_zero_fraction",
    "moved_fraction",
    "param_rms",
    "residual_rms",
    "update_lost_fraction",
    "update_ratio",
    "weight_sqnr_db",
}


def train(*overrides: str, devices: int = 1, steps: int = 6):
    """Losses, the metrics of the last step, and the state."""
    settings = tiny(*overrides)
    stream = data.open_stream(settings, data.prepare(settings))
    program = make_program(settings, make_layout(settings, jax.devices()[:devices]), stream.tokens_per_epoch)
    step, state = program.lower_train_step().compile(), program.init()
    batches = global_batches(stream, 0, program.batch_sharding, program.shape_BT)
    seen = []
    for _ in range(steps):
        state, metrics = step(state, next(batches))
        seen.append(jax.device_get(metrics))
    return seen, jax.device_get(state)


@pytest.fixture(scope="module")
def alone():
    return train(*PROBED)


def test_every_block_is_probed_when_due_and_not_otherwise(alone):
    seen, _ = alone
    blocks = seen[5]["flow"]["blocks"]
    assert set(blocks) == BLOCK
    assert all(values.shape[0] == 2 for values in blocks.values())
    assert all(np.all(np.isfinite(values)) for values in blocks.values())
    assert np.all(blocks["residual_rms"] > 0)
    assert not np.any(seen[4]["flow"]["blocks"]["residual_rms"])
    named_probes = named(seen[5]["flow"])
    assert {f"flow/block_01/{name}" for name in BLOCK} <= set(named_probes)
    assert {"flow/embedding/residual_rms", "flow/output/log_z_mean", "flow/output/grad_rms"} <= set(named_probes)


def test_probes_are_no_part_of_the_maths(alone):
    seen, state = train()
    probed, probed_state = alone
    assert [m["loss"] for m in seen] == [m["loss"] for m in probed]
    jax.tree.map(np.testing.assert_array_equal, state.params, probed_state.params)


@pytest.mark.parametrize(
    ("devices", "overrides"),
    [
        (8, ("compute.mesh={data: 1, fsdp: 8}",)),
        (8, ("compute.mesh={data: 1, fsdp: 2, tensor: 2, context: 2}",)),
        (1, ("compute.scan_layers=true", "compute.remat=full")),
        (1, ("compute.gradient_accumulation=2",)),
        (1, ("compute.loss_chunk_tokens=64",)),
    ],
    ids=["fsdp", "tensor-context", "scan-remat", "accumulated", "chunked"],
)
def test_probes_do_not_depend_on_how_it_is_computed(alone, devices, overrides):
    there = named(train(*PROBED, *overrides, devices=devices)[0][5]["flow"])
    here = named(alone[0][5]["flow"])
    assert there.keys() == here.keys()
    for name, value in here.items():
        # Float32 noise of five steps; what counts or compares with a threshold moves by whole elements, and so does a
        # mean of root mean squares of parts.
        loose = name.endswith(("fraction", "sqnr_db")) or "accumulation" in "".join(overrides)
        np.testing.assert_allclose(there[name], value, rtol=2e-2 if loose else 1e-3, atol=2e-3 if loose else 0)


@pytest.mark.parametrize("devices", [1, 8])
def test_no_collective_is_inside_a_condition_on_a_cpu(devices):
    """Where devices are threads, two all-reduces that nothing orders can wait for each other for ever."""
    settings = tiny(*PROBED, "compute.mesh={data: 1, fsdp: -1}")
    program = make_program(settings, make_layout(settings, jax.devices()[:devices]), 10_000)
    assert ("stablehlo.case" in program.lower_train_step().as_text()) == (devices == 1)


def test_a_run_writes_them_under_their_names(tmp_path):
    settings = tiny(*PROBED, f"logging.run_dir={tmp_path}/run", "logging.every=5 steps", "duration.length=7 steps")
    assert train_run(settings) == 0
    lines = {line["step"]: line for line in read_jsonl(RunDirectory(f"{tmp_path}/run").metrics) if "loss" in line}
    assert [step for step, line in lines.items() if "flow/block_00/residual_rms" in line] == [3, 6]
    assert {5, 7} <= set(lines)
