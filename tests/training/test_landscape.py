"""Noise scale and curvature of a run: the same on any mesh, measured when due, carried over a resume."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.config import BadInputError
from blobjax.objectives import next_token
from blobjax.reliability.run_directory import RunDirectory, read_jsonl
from blobjax.training.batches import global_batches
from blobjax.training.landscape import make_curvature, make_noise, noise_parts
from blobjax.training.program import make_program
from blobjax.training.trainer import train as train_run
from tests.tiny import tiny


def measure(devices: int):
    mesh = "{data: 1, fsdp: 8}" if devices == 8 else "{data: 1}"
    settings = tiny(f"compute.mesh={mesh}", "conditioning.curvature_iterations=4")
    program = make_program(settings, make_layout(settings, jax.devices()[:devices]), 100_000)
    stream = data.open_stream(settings, data.prepare(settings))
    batch = next(global_batches(stream, 0, program.batch_sharding, program.shape_BT))
    state = program.init()
    noise = jax.jit(make_noise(program, 2))(state.params, batch)
    return program, state, batch, jax.device_get(noise), jax.device_get(jax.jit(make_curvature(program))(state, batch))


@pytest.fixture(scope="module")
def alone():
    return measure(1)


def test_noise_is_what_two_halves_of_the_batch_say(alone):
    program, state, batch, noise, _ = alone

    @jax.jit
    def gradient(params, batch):
        loss = lambda p: next_token.loss(program.arch.merge(p), batch, program.config, jnp.sum(batch["mask"]))[0]  # noqa: E731
        return jax.grad(loss)(params)

    halves = [{name: x[first::2] for name, x in batch.items()} for first in (0, 1)]
    grads = [gradient(state.params, half) for half in halves]
    small = np.mean([float(optax.tree.norm(g, squared=True)) for g in grads])
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    big = float(optax.tree.norm(mean, squared=True))
    # 16 sequences, halves of 8.
    assert float(noise.squared_gradient) == pytest.approx(2 * big - small, rel=1e-3)
    assert float(noise.noise) == pytest.approx((small - big) / (1 / 8 - 1 / 16), rel=1e-3)


def test_the_same_on_a_mesh(alone):
    *_, noise, curvature = alone
    *_, split_noise, split_curvature = measure(8)
    np.testing.assert_allclose(split_noise, noise, rtol=1e-3)
    # Four products amplify float32 noise in the start of the iteration.
    assert float(split_curvature["hessian_top"]) == pytest.approx(float(curvature["hessian_top"]), rel=1e-2)


def test_parts_of_a_batch():
    def parts(batch: int, devices: int) -> int:
        settings = tiny(f"duration.global_batch_size={batch}", f"compute.mesh={{data: {devices}}}")
        return noise_parts(make_program(settings, make_layout(settings, jax.devices()[:devices]), 100_000))

    assert [parts(16, 1), parts(16, 8), parts(12, 1), parts(11, 1)] == [8, 2, 6, 11]


def test_a_batch_without_parts_is_refused():
    settings = tiny("duration.global_batch_size=8", "compute.mesh={data: 8}", "conditioning.noise_scale_every=5")
    with pytest.raises(BadInputError, match=r"give duration.global_batch_size 16"):
        make_layout(settings)


def test_a_run_measures_when_due_and_a_resumed_one_goes_on(tmp_path):
    def run(length: int, name: str) -> list[dict]:
        settings = tiny(
            "conditioning.noise_scale_every=2",
            "conditioning.curvature_every=4",
            "conditioning.curvature_iterations=2",
            "optimizer.schedule=constant",
            f"duration.length={length} steps",
            f"logging.run_dir={tmp_path}/{name}",
        )
        assert train_run(settings, allow_config_change=True) == 0
        return [line for line in read_jsonl(RunDirectory(f"{tmp_path}/{name}").metrics) if "loss" not in line]

    whole = [line for line in run(8, "whole") if "flow/run/gradient_noise" in line]
    assert [line["step"] for line in whole] == [2, 4, 6, 8]
    assert all(("flow/run/hessian_top" in line) == (line["step"] % 4 == 0) for line in whole)
    assert 0 < whole[-1]["flow/run/edge_of_stability"] < 100
    run(4, "halved")
    resumed = [line for line in run(8, "halved") if "flow/run/gradient_noise" in line]
    assert resumed == whole
