"""The published shapes fit the meshes they ask for, and leave no large parameter whole."""

import jax
import pytest
from flax import nnx

from blobjax.compute.sharding import check_batch, make_layout, unsharded
from blobjax.config import load
from blobjax.config.load import shipped
from blobjax.model import Transformer, logical_axes

MODELS = [name for name in shipped() if name.startswith("models/")]
MESHES = ([], ["compute.mesh={fsdp: 4, tensor: 2}"], ["compute.mesh={replica: 2, fsdp: 2, context: 2}"])


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: mesh[0] if mesh else "its own")
@pytest.mark.parametrize("name", MODELS)
def test_fits_and_is_split(name, mesh):
    config = load(name, mesh)
    layout = make_layout(config)
    check_batch(config, layout)
    params = nnx.state(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    axes = jax.tree.leaves(logical_axes(params), is_leaf=lambda leaf: isinstance(leaf, tuple))
    leaves = jax.tree.leaves_with_path(params)
    named = {jax.tree_util.keystr(path): (leaf.shape, each) for (path, leaf), each in zip(leaves, axes, strict=True)}
    assert unsharded(layout, named) == []
