"""What the model makes devices send each other, read from compiled programs."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from blobjax.compute.sharding import make_layout, use
from blobjax.model import Transformer, logical_axes
from tests.tiny import tiny

B, T = 8, 64
SHAPE = "model={vocab_size: 256, n_layers: 2, d_model: 32, n_heads: 4, d_ff: 96, activation: gelu}"


def gathered(mesh: str) -> list[tuple[int, ...]]:
    """Shapes of the float tensors that a gradient step all-gathers."""
    config = tiny(SHAPE, f"compute.mesh={mesh}", "compute.scan_layers=true", f"data.seq_len={T}")
    layout = make_layout(config)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))

    def laid_out(x, axes):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.sharding(axes, x.shape))

    params = jax.tree.map(laid_out, nnx.to_pure_dict(state), logical_axes(state))
    tokens = laid_out(jax.ShapeDtypeStruct((B, T), jnp.int32), ("batch", "time"))

    def gradient(params, tokens):
        with use(layout):
            return jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p)(tokens, tokens, tokens) ** 2))(params)

    outputs = jax.tree.map(lambda x: x.sharding, params)
    text = jax.jit(gradient, out_shardings=outputs).lower(params, tokens).compile().as_text()
    return [tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]\S* all-gather\(", text)]


@pytest.mark.parametrize(
    "mesh",
    [
        "{data: 1, fsdp: 4, tensor: 2}",
        "{data: 1, context: 2, fsdp: 4}",
        "{data: 1, context: 2, fsdp: 2, tensor: 2}",
    ],
)
def test_only_weights_are_gathered_and_keys_and_values_of_a_split_sequence(mesh):
    shapes = gathered(mesh)
    assert shapes
    # Of all sizes only the sequence's is 64, so a gathered activation shows.
    activations = [shape for shape in shapes if T in shape]
    assert all(len(shape) == 4 and shape[-1] == 8 for shape in activations)  # [B, G, T, K]
    assert bool(activations) == ("context" in mesh)
