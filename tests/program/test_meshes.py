"""The same run on every mesh: same initial weights, batches and losses, and the collectives each mesh should have."""

import jax
import numpy as np
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.program.batches import global_batches, local_rows, to_global
from blobjax.program.program import make_program
from tests.program.collectives import collectives
from tests.tiny import tiny

STEPS = 8

# What each way of splitting the work costs at least: how many collectives of a kind over which axes. Two layers have
# fourteen matrices; a tensor axis sums after attention and after the MLP, forward and backward; a context axis gathers
# keys and values. XLA's CPU backend writes a reduce-scatter as an all-reduce and a slice; accelerators fuse the two.
MESHES = {
    "{data: 8}": {("all-reduce", "data"): 1},
    "{data: 1, fsdp: 8}": {("all-gather", "fsdp"): 14, ("all-reduce", "fsdp"): 1},
    "{data: 1, fsdp: 4, tensor: 2}": {
        ("all-gather", "fsdp"): 14,
        ("all-reduce", "fsdp"): 1,
        ("all-reduce", "tensor"): 8,
    },
    "{data: 2, fsdp: 2, tensor: 2}": {
        ("all-gather", "fsdp"): 14,
        ("all-reduce", "fsdp"): 1,
        ("all-reduce", "data"): 1,
        ("all-reduce", "tensor"): 8,
    },
    "{data: 1, context: 2, fsdp: 4}": {
        ("all-gather", "fsdp"): 14,
        ("all-gather", "context"): 4,
        ("all-reduce", "fsdp"): 1,
    },
}


def train(mesh: str, *overrides: str):
    """Losses, initial weights and compiled text of a few steps on a mesh."""
    settings = tiny(f"compute.mesh={mesh}", *overrides)
    layout = make_layout(settings, jax.devices()[: 1 if mesh == "{data: 1}" else 8])
    stream = data.open_stream(settings, data.prepare(settings))
    program = make_program(settings, layout, stream.tokens_per_epoch)
    step = program.lower_train_step().compile()
    state = program.init()
    weights = jax.device_get(state.params)
    batches = global_batches(stream, 0, program.batch_sharding, program.shape_BT)
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics["loss"]))
    return np.array(losses), weights, collectives(step.as_text(), layout.mesh), state


@pytest.fixture(scope="module")
def alone():
    return train("{data: 1}")


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_changes_nothing_but_the_order_of_sums(mesh, alone):
    losses, weights, found, state = train(mesh)
    jax.tree.map(np.testing.assert_array_equal, weights, alone[1])
    # Float32 sums in another order: 2^-24 relative an addition, some hundreds of them in a row, eight steps.
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    for (kind, axis), least in MESHES[mesh].items():
        assert sum(n for (k, axes), n in found.items() if k == kind and axis in axes) >= least, (kind, axis, found)
    if mesh == "{data: 8}":
        assert not any(kind == "all-gather" for kind, _ in found), "data parallelism gathers no parameter"
    if "fsdp" in mesh:
        ways = 8 if "fsdp: 8" in mesh else 2
        largest = max(jax.tree.leaves(state.params), key=lambda leaf: leaf.size)
        assert largest.addressable_shards[0].data.size <= largest.size // ways
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.size > 1]
    params = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(state.params)}
    assert all(leaf.sharding == params[leaf.shape] for leaf in moments), "moments are sharded as their parameters"


def test_gradient_accumulation_is_the_same_update(alone):
    losses, _, _, _ = train("{data: 1}", "compute.gradient_accumulation=4")
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)


def test_gradient_accumulation_on_a_mesh(alone):
    losses, _, _, _ = train("{data: 2, fsdp: 2, tensor: 2}", "compute.gradient_accumulation=2")
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)


def test_rows_reach_the_devices_that_hold_them():
    settings = tiny("compute.mesh={data: 2, fsdp: 2, context: 2}")
    layout = make_layout(settings)
    sharding = layout.sharding(("batch", "time"))
    rows = local_rows(sharding, (16, 32))
    np.testing.assert_array_equal(rows, np.arange(16))
    array = np.arange(16 * 32, dtype=np.int32).reshape(16, 32)
    placed = to_global({"tokens": array}, rows, sharding, (16, 32))["tokens"]
    np.testing.assert_array_equal(placed, array)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(4, 16)}


# Everything that looks at whole tensors or whole rows: norms, the norms of gradients, and their histories.
CONDITIONED = (
    "conditioning.norm=dyt",
    "conditioning.norm_placement=peri",
    "conditioning.clip=adagc",
    "conditioning.adagc.warmup=3",
    "optimizer.update_clipping=true",
)


CLIPPED = [("conditioning.clip=zclip", "conditioning.zclip.warmup=3"), ("conditioning.clip=agc",)]
PARAMETRISED = ("conditioning.parametrisation={kind: completep, base_width: 8, base_depth: 1, base_d_head: 2}",)


@pytest.mark.parametrize("overrides", [CONDITIONED, *CLIPPED, PARAMETRISED])
def test_conditioning_decides_the_same_when_split(overrides):
    alone, *_ = train("{data: 1}", *overrides)
    split, *_ = train("{data: 1, fsdp: 8}", *overrides)
    np.testing.assert_allclose(split, alone, rtol=1e-5)
