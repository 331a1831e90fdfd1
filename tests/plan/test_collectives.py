"""Collectives against real compilations for eight CPU devices, where every byte can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from blobjax.plan.collectives import Collective, _groups, collectives, mesh_axes
from blobjax.plan.compile import compile_step
from blobjax.plan.hardware import find_machine
from blobjax.plan.hlo import Instruction, parse
from tests.tiny import tiny

BY_2 = ((0, 1), (2, 3), (4, 5), (6, 7))
BY_4 = ((0, 4), (1, 5), (2, 6), (3, 7))


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("a", "b"), (AxisType.Auto,) * 2, devices=jax.devices()[:8])


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add", BY_2),
        ("replica_groups=[4,2]<=[8], to_apply=%add", BY_2),
        ("replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add", BY_4),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, use_global_device_ids=true", BY_4),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}, use_global_device_ids=true", BY_2),
        # The outer half of one axis, and the inner.
        ("replica_groups=mesh['a'=8] {'a':(1)2}, use_global_device_ids=true", BY_4),
        ("replica_groups=mesh['a'=8] {'a':(4)2}, use_global_device_ids=true", BY_2),
        ("source_target_pairs={{0,1},{1,0},{2,3},{3,2},{4,5},{5,4},{6,7},{7,6}}", BY_2),
        ("replica_groups={}, to_apply=%add", (tuple(range(8)),)),
    ],
)
def test_every_way_to_write_groups(text, groups):
    found = _groups(Instruction("x", "f32[]", "all-reduce", (), f", channel_id=1, {text}", False), 8)
    assert tuple(sorted(found)) == groups


def test_axes_of_groups(mesh):
    assert mesh_axes(BY_4, mesh) == ("a",)
    assert mesh_axes(((0, 1, 2, 3), (4, 5, 6, 7)), mesh) == ("b",)
    assert mesh_axes((tuple(range(8)),), mesh) == ("a", "b")


def compiled(mesh, function, *shapes) -> list[Collective]:
    return collectives(parse(jax.jit(function).lower(*shapes).compile().as_text()), mesh)


def only(found: list[Collective]) -> tuple:
    assert len(found) == 1, found
    return found[0].kind, found[0].axes, found[0].times, found[0].payload, found[0].sent


def test_an_all_gather_of_known_size_in_a_loop_of_known_length(mesh):
    def device(w_LID, x_D):
        def turn(x_D, w_ID):
            return jnp.sin(x_D + jax.lax.all_gather(w_ID, "b", tiled=True).sum(0)), None

        return jax.lax.scan(turn, x_D, w_LID)[0]

    function = jax.shard_map(device, mesh=mesh, in_specs=(P(None, "b"), P()), out_specs=P(), check_vma=False)
    found = compiled(
        mesh,
        function,
        jax.ShapeDtypeStruct((5, 16, 8), jnp.float32, sharding=NamedSharding(mesh, P(None, "b"))),
        jax.ShapeDtypeStruct((8,), jnp.float32, sharding=NamedSharding(mesh, P())),
    )
    # Five turns; 16 x 8 floats each, of which a device has a quarter and sends it to three others.
    assert only(found) == ("all-gather", ("b",), 5, 5 * 512, 5 * 512 * 3 / 4)


@pytest.mark.parametrize(
    ("kind", "collective", "payload", "sent"),
    [
        ("all-reduce", lambda x: jax.lax.psum(x, "a"), 512, 2 * 512 / 2),
        ("reduce-scatter", lambda x: jax.lax.psum_scatter(x, "a", tiled=True), 512, 512 / 2),
        ("all-to-all", lambda x: jax.lax.all_to_all(x, "a", 0, 1, tiled=True), 512, 512 / 2),
        ("collective-permute", lambda x: jax.lax.ppermute(x, "a", [(0, 1), (1, 0)]), 512, 512),
    ],
)
def test_bytes_of_each_kind(mesh, kind, collective, payload, sent):
    function = jax.shard_map(collective, mesh=mesh, in_specs=P("b"), out_specs=P(("a", "b")), check_vma=False)
    shape = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=NamedSharding(mesh, P("b")))  # 16 x 8 floats a device
    assert only(compiled(mesh, function, shape)) == (kind, ("a",), 1, payload, sent)


# Of the tiny config, float32: two layers of 4 x 32 x 32 weights in attention and 3 x 32 x 64 in the MLP; a table of
# 256 x 32, looked up and multiplied by; a batch of 16 sequences of 32 tokens.
ATTENTION, MLP, TABLE = 4 * 2 * 4 * 32 * 32, 4 * 2 * 3 * 32 * 64, 4 * 256 * 32
LAYERS = ATTENTION + MLP
UNROLLED = ("compute.scan_layers=false", "compute.remat=none")
LOOPED = ("compute.scan_layers=true", "compute.remat=full")


def bytes_of_step(kind: str, axes: tuple[str, ...], *overrides: str) -> float:
    step = compile_step(tiny(*overrides), find_machine("cpu:8"))
    return sum(each.payload for each in step.collectives if (each.kind, each.axes) == (kind, axes))


@pytest.mark.parametrize("how", [UNROLLED, LOOPED], ids=["unrolled", "looped"])
def test_data_parallelism_sums_every_gradient_once(how):
    """The table has two: of the look-up and of the product. The rest: five norms of 32, four of 8, and four scalars."""
    found = bytes_of_step("all-reduce", ("data",), "compute.mesh={data: 8}", *how)
    assert found == LAYERS + 2 * TABLE + 4 * (5 * 32 + 4 * 8 + 4)


@pytest.mark.parametrize("how", [UNROLLED, LOOPED], ids=["unrolled", "looped"])
def test_fsdp_gathers_every_layer_forward_and_backward(how):
    """The table twice as well, for the look-up and for the product; of another size than the attention's matrices."""
    found = bytes_of_step("all-gather", ("fsdp",), "compute.mesh={fsdp: 8}", "model.vocab_size=512", *how)
    # jaxlib 0.10 gathers the attention's matrices once where layers are unrolled, and keeps them for the backward pass.
    kept = ATTENTION if how == UNROLLED and jax.__version_info__ < (0, 11) else 0
    assert found == 2 * LAYERS - kept + 2 * (2 * TABLE)


@pytest.mark.parametrize(("how", "sums"), [(UNROLLED, 16), (LOOPED, 18)], ids=["unrolled", "looped"])
def test_tensor_parallelism_sums_activations(how, sums):
    """Forward after attention and MLP, backward before query, key, value, gate and up, in each of two layers; once at
    the embedding and once at the head; with remat once more a layer, after attention. Softmax sums are 1% on top."""
    activations = 4 * (16 // 2) * 32 * 32
    found = bytes_of_step("all-reduce", ("tensor",), "compute.mesh={data: 2, tensor: 4}", *how)
    assert sums * activations <= found <= 1.01 * sums * activations
