"""Adaptive clipping against loops in float64 that follow the papers' algorithms line by line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax.conditioning.clipping import adagc, agc, scale_by_stable_adam, zclip
from blobjax.config import schema

AXES = {"w": ("layers", "embed", "mlp"), "table": ("vocab", "embed")}
SHAPES = {"w": (3, 4, 5), "table": (6, 4)}
STEPS = 60


def gradients(seed: int = 0, spikes: tuple[int, ...] = (31, 40, 41)):
    """Gradients of drifting size, a few of them far out."""
    rng = np.random.default_rng(seed)
    for step in range(STEPS):
        size = (1 + 0.3 * rng.random()) * (50 if step in spikes else 1)
        yield {name: (size * rng.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


def run(transformation, grads):
    state = transformation.init({name: jnp.zeros(shape) for name, shape in SHAPES.items()})
    update = jax.jit(transformation.update)
    for g in grads:
        clipped, state = update(g, state)
        yield jax.device_get(clipped)


def norm(tree) -> float:
    return float(np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in tree.values())))


def test_zclip_is_the_papers_algorithm():
    settings = schema.ZClip(warmup=10)
    seen, mean, variance, clipped_steps = [], 0.0, 0.0, []
    for step, (g, got) in enumerate(zip(gradients(), run(zclip(settings), gradients()), strict=True)):
        length = norm(g)
        if step < settings.warmup:
            seen.append(length)
            mean, variance = np.mean(seen), np.var(seen)
            wanted = length
        else:
            z = (length - mean) / np.sqrt(variance)
            wanted = mean + settings.z_score**2 / z * np.sqrt(variance) if z > settings.z_score else length
            if wanted != length:
                clipped_steps.append(step)
            mean = settings.decay * mean + (1 - settings.decay) * wanted
            variance = settings.decay * variance + (1 - settings.decay) * (wanted - mean) ** 2
        for name in SHAPES:
            np.testing.assert_allclose(got[name], g[name] * (wanted / length), rtol=2e-4)
    assert {31, 40, 41} <= set(clipped_steps)


def test_adagc_is_the_papers_algorithm_with_each_layer_a_tensor():
    settings = schema.AdaGC(warmup=10)
    tensors = [("table", ...), *(("w", layer) for layer in range(3))]
    history = dict.fromkeys(tensors, np.inf)
    for step, (g, got) in enumerate(zip(gradients(), run(adagc(settings, 1.0, AXES), gradients()), strict=True)):
        for name, part in tensors:
            length = np.sqrt(np.sum(np.float64(g[name][part]) ** 2))
            if step < settings.warmup:
                scale = min(1.0, 1.0 / norm(g))
                history[name, part] = min(history[name, part], length * scale)
            else:
                scale = min(1.0, settings.ratio * history[name, part] / length)
                history[name, part] *= settings.decay
                history[name, part] += (1 - settings.decay) * length * scale
            np.testing.assert_allclose(got[name][part], g[name][part] * scale, rtol=1e-4)


@pytest.mark.parametrize("transformation", [zclip(schema.ZClip(warmup=5)), adagc(schema.AdaGC(warmup=5), 1.0, AXES)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("when", [0, 3, 20])
def test_what_is_not_finite_enters_no_statistic(transformation, bad, when):
    grads = list(gradients())
    poisoned = {**grads[when], "table": np.full(SHAPES["table"], bad, np.float32)}
    with_it = list(run(transformation, [*grads[:when], poisoned, *grads[when:]]))
    assert not np.isfinite(with_it[when]["table"]).all()
    del with_it[when]
    jax.tree.map(np.testing.assert_array_equal, with_it, list(run(transformation, grads)))


def test_adagc_of_a_tensor_without_gradients_lets_its_first_one_through():
    grads = [{"w": np.zeros(SHAPES["w"], np.float32), "table": np.ones(SHAPES["table"], np.float32)}] * 20
    last = {**grads[0], "w": np.ones(SHAPES["w"], np.float32)}
    got = list(run(adagc(schema.AdaGC(warmup=10), 0.0, AXES), [*grads, last]))
    np.testing.assert_array_equal(got[-1]["w"], last["w"])


def test_stable_adam_is_the_papers_algorithm():
    beta1, beta2, epsilon = 0.9, 0.99, 1e-6
    stable = scale_by_stable_adam(beta1, beta2, epsilon, AXES)
    m = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    v = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    smallest = 1.0
    for step, (g, got) in enumerate(zip(gradients(), run(stable, gradients()), strict=True), start=1):
        for name in SHAPES:
            x = np.float64(g[name])
            m[name] = beta1 * m[name] + (1 - beta1) * x
            v[name] = beta2 * v[name] + (1 - beta2) * x**2
            m_hat, v_hat = m[name] / (1 - beta1**step), v[name] / (1 - beta2**step)
            dims = (1, 2) if name == "w" else (0, 1)
            rms = np.sqrt(np.mean(x**2 / np.maximum(v_hat, epsilon**2), axis=dims, keepdims=True))
            smallest = min(smallest, 1 / rms.max())
            wanted = m_hat / (np.sqrt(v_hat) + epsilon) / np.maximum(1, rms)
            np.testing.assert_allclose(got[name], wanted, rtol=2e-4, atol=1e-6)
    assert smallest < 0.5  # a spike did shorten a step


AGC_AXES = {
    "query": ("layers", "embed", "heads", "head"),
    "out": ("layers", "heads", "head", "embed"),
    "down": ("layers", "mlp", "embed"),
    "gain": ("layers", None),
    "slope": ("layers",),
    "final": (None,),
    "table": ("vocab", "embed"),
    "head": ("embed", "vocab"),
}
AGC_SHAPES = {
    "query": (2, 4, 3, 2),
    "out": (2, 3, 2, 4),
    "down": (2, 5, 4),
    "gain": (2, 4),
    "slope": (2,),
    "final": (4,),
    "table": (6, 4),
    "head": (4, 6),
}


def units(name: str) -> list[tuple]:
    """Indices of all units of a parameter, each the weights that one output sums over."""
    every = slice(None)
    layers, heads = range(2), [(h, k) for h in range(3) for k in range(2)]
    return {
        "query": [(layer, every, h, k) for layer in layers for h, k in heads],
        "out": [(layer, every, every, d) for layer in layers for d in range(4)],
        "down": [(layer, every, d) for layer in layers for d in range(4)],
        "gain": [(layer,) for layer in layers],
        "slope": [(layer,) for layer in layers],
        "final": [(every,)],
        "table": [],
        "head": [],
    }[name]


def test_agc_bounds_each_output_unit_by_its_weights():
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in AGC_SHAPES.items()}
    params["gain"][0] = 0.0  # can grow: its norm counts as epsilon
    scales = {name: np.exp(rng.uniform(-3, 0, shape)) for name, shape in AGC_SHAPES.items()}
    grads = {name: (0.3 * scales[name] * rng.standard_normal(s)).astype(np.float32) for name, s in AGC_SHAPES.items()}
    grads["final"] *= 1e-3
    settings = schema.AGC(ratio=0.1)
    transformation = agc(settings, AGC_AXES)
    got, _ = jax.jit(transformation.update)(grads, transformation.init(params), params)
    clipped = 0
    for name in AGC_SHAPES:
        wanted = np.float64(grads[name])
        for unit in units(name):
            norm = np.sqrt(np.sum(np.square(wanted[unit])))
            most = settings.ratio * max(np.sqrt(np.sum(np.float64(params[name][unit]) ** 2)), settings.epsilon)
            wanted[unit] *= min(1, most / norm)
            clipped += norm > most
        np.testing.assert_allclose(got[name], wanted, rtol=1e-6)
    assert 0 < clipped < sum(len(units(name)) for name in AGC_SHAPES)
    for name in ("final", "table", "head"):
        np.testing.assert_array_equal(got[name], grads[name])


def test_agc_lets_what_is_not_finite_through():
    params = {"w": np.ones((3, 4, 5), np.float32)}
    grads = {"w": np.ones((3, 4, 5), np.float32)}
    grads["w"][1, 2, 3] = np.nan
    transformation = agc(schema.AGC(), {"w": ("layers", "embed", "mlp")})
    got, _ = transformation.update(grads, transformation.init(params), params)
    assert np.isnan(got["w"][1, :, 3]).all()
    assert np.isfinite(got["w"]).sum() == 3 * 4 * 5 - 4
