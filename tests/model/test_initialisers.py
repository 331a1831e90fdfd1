"""Initial weights: their spread, and that only the seed decides them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blobjax.compute.sharding import make_layout
from blobjax.model import Transformer, logical_axes
from tests.tiny import tiny

CONFIG = tiny("model={n_layers: 3, d_model: 128, n_heads: 8, d_ff: 512, tie_embeddings: false}")


def init():
    return nnx.to_pure_dict(nnx.state(Transformer(CONFIG, nnx.Rngs(CONFIG.seed))))


@pytest.fixture(scope="module")
def params():
    return jax.device_get(jax.jit(init)())


def test_spread(params):
    into = 1 / np.sqrt(128)
    wanted = {
        ("attention", "query"): into,
        ("attention", "key"): into,
        ("attention", "value"): into,
        ("attention", "out"): into / np.sqrt(6),
        ("mlp", "gate"): into,
        ("mlp", "up"): into,
        ("mlp", "down"): 1 / np.sqrt(512) / np.sqrt(6),
    }
    for (part, name), std in wanted.items():
        weights = params["blocks"][part][name]
        # Four standard errors of a standard deviation over the fewest weights, 3 · 128 · 128: 4 / sqrt(2 · 49,152).
        assert np.std(weights) == pytest.approx(std, rel=0.013)
        assert np.abs(weights).max() < 2.3 * std
    assert np.std(params["embedding"]) == pytest.approx(0.02, rel=0.016)
    assert np.std(params["unembedding"]) == pytest.approx(into, rel=0.016)
    assert np.all(params["final_norm"]["gain"] == 1)


def test_layers_differ(params):
    query = params["blocks"]["attention"]["query"]
    assert np.abs(np.corrcoef(query.reshape(3, -1)) - np.eye(3)).max() < 0.05


@pytest.mark.parametrize("mesh", ["{data: 8}", "{data: 1, fsdp: 4, tensor: 2}"])
def test_the_mesh_does_not_matter(params, mesh):
    layout = make_layout(tiny(f"compute.mesh={mesh}"))
    state = nnx.eval_shape(lambda: nnx.state(Transformer(CONFIG, nnx.Rngs(0))))
    shapes = nnx.to_pure_dict(state)
    shardings = jax.tree.map(lambda x, axes: layout.sharding(axes, x.shape), shapes, logical_axes(state))
    sharded = jax.jit(init, out_shardings=shardings)()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(sharded), params)


def test_the_loss_starts_at_the_logarithm_of_the_vocabulary():
    config = tiny()
    model = Transformer(config, nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (4, 32), 0, 256)
    logits = nnx.jit(lambda m, *args: m(*args))(model, tokens, jnp.ones_like(tokens), jnp.tile(jnp.arange(32), (4, 1)))
    targets = jax.random.randint(jax.random.key(1), (4, 32), 0, 256)
    loss = -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1))
    assert loss == pytest.approx(np.log(256), abs=0.05)
