"""Schedules at their landmarks, decay as documented, and each optimizer's first step against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blobjax.config import BadInputError, Config
from blobjax.config.schema import Optimizer
from blobjax.program.optimizer import is_matrix, make_optimizer, schedule
from tests.tiny import tiny

AXES = {
    "embedding": ("vocab", "embed"),
    "wq": ("layers", "embed", "heads", "head"),
    "wo": ("layers", "heads", "head", "embed"),
    "gain": ("layers", "embed"),
}
SHAPES = {"embedding": (16, 8), "wq": (2, 8, 2, 4), "wo": (2, 2, 4, 8), "gain": (2, 8)}


def params_and_grads():
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    params = {name: jax.random.normal(key, SHAPES[name]) for name, key in zip(SHAPES, keys, strict=True)}
    return params, jax.tree.map(lambda p: 0.1 * jnp.cos(3 * p), params)


def config(**optimizer) -> Config:
    return Config(optimizer=Optimizer(learning_rate=0.01, **optimizer), conditioning={"clip_norm": 0})


def first_update(settings: Config):
    params, grads = params_and_grads()
    optimizer = make_optimizer(settings, optax.constant_schedule(settings.optimizer.learning_rate), AXES)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return params, grads, updates


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_schedule_rises_to_the_peak_and_ends_where_it_says(kind):
    settings = Optimizer(schedule=kind, learning_rate=1e-2, final_learning_rate_fraction=0.1)
    rate = schedule(settings, length=100, warmup=10, decay=20)
    rates = np.array([rate(step) for step in range(100)])
    np.testing.assert_allclose(rates[:10], 1e-2 * np.arange(1, 11) / 10, rtol=1e-6)
    assert rates[10] == pytest.approx(1e-2, rel=1e-6)
    assert rates[-1] == pytest.approx(1e-2 if kind == "constant" else 1e-3, rel=1e-6)
    if kind == "wsd":
        np.testing.assert_allclose(rates[10:80], 1e-2, rtol=1e-6)
        assert rates[89] == pytest.approx(1e-2 - 9e-3 * 10 / 20, rel=1e-5)
    if kind == "linear":
        np.testing.assert_allclose(np.diff(rates[10:]), -9e-3 / 89, rtol=1e-3)


def test_schedule_without_warmup_starts_at_the_peak():
    assert schedule(Optimizer(learning_rate=0.5), length=10, warmup=0, decay=0)(0) == pytest.approx(0.5)


def test_a_stacked_norm_gain_is_a_vector():
    assert not is_matrix(("layers", "embed"))
    assert is_matrix(("embed", "mlp"))


def test_adamw_first_step_is_the_sign_of_the_gradient():
    _, grads, updates = first_update(config(name="adamw", weight_decay=0, epsilon=1e-12))
    for name in SHAPES:
        np.testing.assert_allclose(updates[name], -0.01 * np.sign(grads[name]), rtol=1e-4)


def test_lion_first_step_is_the_sign_of_the_gradient():
    _, grads, updates = first_update(config(name="lion", weight_decay=0))
    np.testing.assert_allclose(updates["wq"], -0.01 * np.sign(grads["wq"]), rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
@pytest.mark.parametrize(("mode", "shrinks_by"), [("coupled", 0.01 * 0.1), ("independent", 0.1)])
def test_decay_shrinks_matrices_only_and_by_what_the_mode_says(name, mode, shrinks_by):
    params, _, without = first_update(config(name=name, weight_decay=0))
    _, _, updates = first_update(config(name=name, weight_decay=0.1, weight_decay_mode=mode))
    for key in ("embedding", "wq", "wo"):
        np.testing.assert_allclose(updates[key] - without[key], -shrinks_by * params[key], rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(updates["gain"], without["gain"])


def test_muon_orthogonalises_each_layer_of_hidden_matrices_and_leaves_the_rest_to_adam():
    _, grads, updates = first_update(config(name="muon", weight_decay=0, epsilon=1e-12))
    for name, rows in (("wq", 8), ("wo", 8)):
        for layer in range(2):
            matrix = np.asarray(updates[name][layer], np.float64).reshape(rows, -1)
            singular = np.linalg.svd(matrix / (0.01 * 0.2 * np.sqrt(8)), compute_uv=False)
            # Five Newton-Schulz steps bring singular values near one, by design not onto it (Jordan et al. 2024).
            assert singular.min() > 0.5
            assert singular.max() < 1.5
    for name in ("embedding", "gain"):
        np.testing.assert_allclose(updates[name], -0.01 * np.sign(grads[name]), rtol=1e-4)


def newton_schulz(g: np.ndarray) -> np.ndarray:
    """The quintic iteration of Jordan et al. 2024, five steps, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (np.linalg.norm(g) + 1e-7)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(5):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x.T if tall else x


@pytest.mark.parametrize("corrected", [False, True])
def test_muons_first_steps_are_the_published_ones_or_bias_corrected(corrected):
    """Momentum of 0.95 in Nesterov's form, as published and in PyTorch: m <- m + 0.05 (g - m), u = g + 0.95 (m - g)."""
    beta, rng = 0.95, np.random.default_rng(0)
    settings = config(name="muon", weight_decay=0, muon_bias_correction=corrected)
    optimizer = make_optimizer(settings, optax.constant_schedule(0.01), AXES)
    params, _ = params_and_grads()
    state = optimizer.init(params)
    momentum = {name: np.zeros(SHAPES[name]) for name in ("wq", "wo")}
    for t in range(1, 6):
        grads = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.float32, grads), state, params)
        for name, m in momentum.items():
            m += (1 - beta) * (grads[name] - m)
            direction = grads[name] + beta * (m - grads[name])
            if corrected:
                direction = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * grads[name] / (1 - beta**t)
            rows, columns = 8, 8
            for layer in range(2):
                wanted = newton_schulz(direction[layer].reshape(rows, columns))
                wanted *= -0.01 * 0.2 * max(rows, columns) ** 0.5
                # Five steps in float32, each of which more than triples what is small.
                np.testing.assert_allclose(updates[name][layer].reshape(rows, columns), wanted, atol=2e-6)


def test_muons_momentum_is_muons():
    with pytest.raises(BadInputError, match="muon_bias_correction is for optimizer"):
        tiny("optimizer.muon_bias_correction=false")


def test_clipping_scales_the_whole_gradient_to_the_norm():
    settings = config(name="adamw", weight_decay=0, beta1=0.0, beta2=0.0, epsilon=1e6)
    clipped = settings.model_copy(update={"conditioning": settings.conditioning.model_copy(update={"clip_norm": 1e-3})})
    _, grads, _ = first_update(settings)
    # With a huge epsilon Adam is linear in the gradient, so that the update shows the clipping.
    ratio = first_update(clipped)[2]["wq"] / first_update(settings)[2]["wq"]
    np.testing.assert_allclose(ratio, 1e-3 / optax.tree.norm(grads), rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_update_clipping_shortens_a_step_after_small_gradients(name):
    """What AdamW updates; Muon's matrices have a length of their own."""
    params, grads = params_and_grads()
    lengths = {}
    for stable in (False, True):
        settings = config(name=name, weight_decay=0, update_clipping=stable)
        optimizer = make_optimizer(settings, optax.constant_schedule(0.01), AXES)
        state = optimizer.init(params)
        for scale in (*[1e-3] * 20, 1.0):
            updates, state = optimizer.update(jax.tree.map(lambda g, s=scale: g * s, grads), state, params)
        lengths[stable] = {key: float(optax.tree.norm(update)) for key, update in updates.items()}
    touched = {key for key in SHAPES if lengths[True][key] != lengths[False][key]}
    assert touched == ({*SHAPES} if name == "adamw" else {"embedding", "gain"})
    assert all(lengths[True][key] < 0.5 * lengths[False][key] for key in touched)
