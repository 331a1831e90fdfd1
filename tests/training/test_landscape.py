"""Noise scale and curvature of a run: the same on any mesh, measured when due, carried over a resume."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.conditioning.curvature import noise_estimate
from blobjax.config import BadInputError
from blobjax.data.mixture import Mixture
from blobjax.objectives import loss as loss_of
from blobjax.program.batches import global_batches
from blobjax.program.program import make_program
from blobjax.runs.directory import RunDirectory, read_jsonl
from blobjax.training.landscape import draw, make_curvature, make_noise, noise_parts
from blobjax.training.trainer import train as train_run
from tests.tiny import tiny


def measure(devices: int, *overrides: str):
    mesh = "{data: 1, fsdp: 8}" if devices == 8 else "{data: 1}"
    settings = tiny(f"compute.mesh={mesh}", "conditioning.curvature_iterations=4", *overrides)
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
        def loss(p):
            return loss_of(program.objective, program.arch.merge(p), batch, program.config, jnp.sum(batch["mask"]))[0]

        return jax.grad(loss)(params)

    halves = [{name: x[first::2] for name, x in batch.items()} for first in (0, 1)]
    grads = [gradient(state.params, half) for half in halves]
    small = np.mean([float(optax.tree.norm(g, squared=True)) for g in grads])
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    big = float(optax.tree.norm(mean, squared=True))
    # 16 sequences, halves of 8.
    assert float(noise.squared_gradient) == pytest.approx(2 * big - small, rel=1e-3)
    assert float(noise.noise) == pytest.approx((small - big) / (1 / 8 - 1 / 16), rel=1e-3)


def with_error(estimates):
    """The noise scale from NoiseEstimates, and its standard error: how the parts of the ratio scatter around it."""
    squared, traces = np.array(estimates, np.float64).T
    scale = traces.mean() / squared.mean()
    return scale, np.std(traces - scale * squared, ddof=1) / squared.mean() / np.sqrt(len(squared))


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [({"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}, 104), ({"a": 0.5, "b": 0.5}, 42), ({"a": 0.6, "b": 0.4}, 42)],
    ids=["four", "two", "uneven"],
)
def test_noise_scale_of_a_mixture_is_that_of_its_examples(weights, wanted):
    """Examples of a domain have its mean gradient and noise of their own; both kinds of variance are the scale's."""
    rng = np.random.default_rng(3)
    mixture = Mixture(weights)
    shares = np.array(mixture.weights) / sum(mixture.weights)
    features, batch_size, parts = 64, 32, 8
    means = rng.standard_normal((len(shares), features))
    mean = shares @ means
    between = shares @ np.sum((means - mean) ** 2, axis=1)
    # The mean gradient is made as large as gives the wanted scale with noise as large as the domains' differences.
    means += (np.sqrt(2 * between / wanted) - np.linalg.norm(mean)) * mean / np.linalg.norm(mean)
    deviation = np.sqrt(between / features)

    def estimate(numbers):
        domains = [mixture.locate(number)[0] for number in numbers]
        grads = means[domains] + deviation * rng.standard_normal((batch_size, features))
        small = np.mean([np.sum(grads[part::parts].mean(axis=0) ** 2) for part in range(parts)])
        return noise_estimate(small, np.sum(grads.mean(axis=0) ** 2), batch_size / parts, batch_size)

    steps = range(4000)
    scale, error = with_error([estimate(draw(batch_size * step, batch_size, 0, step)) for step in steps])
    assert error < 0.1 * wanted
    assert scale == pytest.approx(wanted, abs=4 * error)
    if len(set(mixture.weights)) == 1:
        # The rows as they come: at equal distances they are of one domain.
        periodic, _ = with_error([estimate(range(batch_size * step, batch_size * (step + 1))) for step in steps])
        assert not 0.5 * wanted < periodic < 2 * wanted


def test_noise_scale_of_a_model_is_that_of_its_examples():
    """Four domains, against the gradients of 1,024 single sequences, to within the errors of both."""
    n, batch_size = 1024, 32
    settings = tiny(
        "model.n_layers=1",
        "data.mixture={bible: 0.25, jargon: 0.25, mathematics: 0.25, shakespeare: 0.25}",
        f"duration.global_batch_size={batch_size}",
        "optimizer.learning_rate=1e-2",
    )
    program = make_program(settings, make_layout(settings, jax.devices()[:1]), 100_000)
    stream = data.open_stream(settings, data.prepare(settings))
    step, state = program.lower_train_step().compile(), program.init()
    for _, batch in zip(range(30), global_batches(stream, 0, program.batch_sharding, program.shape_BT), strict=False):
        state, _ = step(state, batch)

    @jax.jit
    def sums(batch):
        """The sum of single sequences' gradients, and that of their squares."""

        def one(row):
            whole = jax.tree.map(lambda x: x[None], row)
            model = lambda p: program.arch.merge(p)  # noqa: E731
            grads = jax.grad(lambda p: loss_of(program.objective, model(p), whole, settings, jnp.sum(row["mask"]))[0])(
                state.params
            )
            return jnp.concatenate([g.ravel() for g in jax.tree.leaves(grads)])

        grads = jax.vmap(one)(batch)
        return jnp.sum(grads, axis=0), jnp.sum(jnp.square(grads))

    found = [jax.device_get(sums(stream.sequences(list(range(i, i + 64))))) for i in range(0, n, 64)]
    mean = np.sum([each[0] for each in found], axis=0, dtype=np.float64) / n
    variance = (sum(float(each[1]) for each in found) - n * mean @ mean) / (n - 1)
    wanted = variance / (mean @ mean - variance / n)

    noise = jax.jit(make_noise(program, noise_parts(program)))

    def estimate(numbers_of):
        batches = (stream.sequences(numbers_of(step)) for step in range(64))
        return with_error([jax.device_get(noise(state.params, batch)) for batch in batches])

    scale, error = estimate(lambda step: draw(batch_size * step, batch_size, settings.seed, step))
    assert error < 0.1 * wanted
    assert scale == pytest.approx(wanted, abs=4 * error)
    # The rows as they come: each part has four rows of one domain.
    assert estimate(lambda step: range(batch_size * step, batch_size * (step + 1)))[0] > wanted + 4 * error


def test_what_is_drawn_depends_on_seed_and_step_alone():
    drawn = draw(1000, 16, 0, 50)
    assert drawn == draw(1000, 16, 0, 50)
    assert len(set(drawn)) == 16
    assert all(1000 <= number < 1000 + 64 * 16 for number in drawn)
    assert drawn != draw(1000, 16, 0, 100)
    assert drawn != draw(1000, 16, 1, 50)
    assert draw(0, 16, 0, 50) == [number - 1000 for number in drawn]


def test_the_same_on_a_mesh(alone):
    *_, noise, curvature = alone
    *_, split_noise, split_curvature = measure(8)
    np.testing.assert_allclose(split_noise, noise, rtol=1e-3)
    # Four products amplify float32 noise in the start of the iteration.
    assert float(split_curvature["hessian_top"]) == pytest.approx(float(curvature["hessian_top"]), rel=1e-2)


def test_a_loss_in_chunks_has_the_same_noise_and_curvature(alone):
    *_, noise, curvature = alone
    *_, chunked_noise, chunked_curvature = measure(1, "compute.loss_chunk_tokens=128")
    # As on a mesh: sums in another order.
    np.testing.assert_allclose(chunked_noise, noise, rtol=1e-3)
    assert float(chunked_curvature["hessian_top"]) == pytest.approx(float(curvature["hessian_top"]), rel=1e-2)


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


def test_edge_of_stability_under_mup_is_that_of_each_parameters_own_rate():
    """An overshooting run, against all eigenvalues of a model of 2,800 parameters.

    Its hidden matrices have a quarter of the rate, and all of it a quarter of the epsilon.
    """
    rate, width_ratio = 0.01, 4
    settings = tiny(
        "model={vocab_size: 256, n_layers: 1, d_model: 8, n_heads: 2, d_ff: 16, activation: swiglu, max_seq_len: 16}",
        "data.seq_len=16",
        "conditioning.parametrisation={kind: mup, base_width: 2}",
        f"optimizer={{name: adamw, learning_rate: {rate}, schedule: constant, epsilon: 1.0e-6}}",
        "duration={length: 200 steps, warmup: 5 steps, global_batch_size: 8}",
        "conditioning.curvature_iterations=100",
    )
    program = make_program(settings, make_layout(settings, jax.devices()[:1]), 100_000)
    stream = data.open_stream(settings, data.prepare(settings))
    step, state = program.lower_train_step().compile(), program.init()
    batch = next(global_batches(stream, 0, program.batch_sharding, program.shape_BT))
    for _ in range(160):  # always the same batch, so that nothing but its curvature limits the steps
        state, _ = step(state, batch)
    found = float(jax.jit(make_curvature(program))(state, batch)["edge_of_stability"])

    flat, unravel = jax.flatten_util.ravel_pytree(state.params)

    def loss(x):
        return loss_of(program.objective, program.arch.merge(unravel(x)), batch, settings, jnp.sum(batch["mask"]))[0]

    rows = jax.jit(lambda eye: jax.lax.map(lambda v: jax.jvp(jax.grad(loss), (flat,), (v,))[1], eye, batch_size=64))
    hessian = np.asarray(rows(jnp.eye(flat.size)), np.float64)
    adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "nu")) if hasattr(s, "nu"))
    beta1, beta2 = settings.optimizer.beta1, settings.optimizer.beta2

    def edge(own_rate, own_epsilon):
        """In float64, by the table of µP; Adam's moments are of gradients over the multiplier of epsilon."""

        def preconditioner(path, nu):
            hidden = path[0].key == "blocks" and nu.ndim > 2  # [layers, in, out], or heads in a dim of their own
            v = np.asarray(nu, np.float64) / (1 - beta2 ** int(adam.count))
            return own_epsilon * (np.sqrt(v) + 1e-6) / (own_rate if hidden else 1.0)

        tree = jax.tree_util.tree_map_with_path(preconditioner, adam.nu)
        p = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        scaled = hessian / np.sqrt(np.outer(p, p))
        values = np.linalg.eigvalsh((scaled + scaled.T) / 2)
        return max(values, key=abs) * rate * (1 - beta1) / (2 + 2 * beta1)

    # A hundred products leave less than a thousandth.
    assert found == pytest.approx(edge(1 / width_ratio, 1 / width_ratio), rel=1e-3)
    assert found > 1
    # With one rate and one epsilon for all the same state reads as calm.
    assert edge(1.0, 1.0) < 1
