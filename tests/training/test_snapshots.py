"""Snapshots are copies to the bit, split as the state is, and the ring keeps the newest good ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax.compute.sharding import make_layout
from blobjax.program.program import make_program
from blobjax.training.snapshots import Snapshot, SnapshotRing
from tests.tiny import tiny


def bits(tree) -> list[bytes]:
    return [np.array(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("mesh", ["{data: 1}", "{data: 2, fsdp: 4}"])
def test_a_snapshot_outlives_its_state_and_what_is_made_of_it(mesh):
    settings = tiny(f"compute.mesh={mesh}", "conditioning.precision=bfloat16_params")
    program = make_program(settings, make_layout(settings, jax.devices()[: 1 if mesh == "{data: 1}" else 8]), 10_000)
    state = program.init()
    before = bits(state)
    snapshot = Snapshot.take(7, state)
    # What a step does to the state it is given: it writes into its memory.
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x + jnp.ones_like(x), tree), donate_argnums=0)
    jax.block_until_ready(overwrite(state))
    for _ in range(2):
        restored = snapshot.restore(program.state)
        assert bits(restored) == before
        assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda s: s.sharding, program.state)
        jax.block_until_ready(overwrite(restored))
    held = sum(part.nbytes for leaf in snapshot.leaves for part in leaf.values())
    assert held == sum(len(each) for each in before), "each number is held once, however many devices hold it"


class Mood:
    calm = True


def test_the_ring_keeps_the_newest_that_were_taken_in_calm():
    mood = Mood()
    ring = SnapshotRing(2, 5, mood)
    for step in range(1, 31):
        mood.calm = step < 16 or step > 24
        if ring.due(step):
            assert not ring.run(step, {"x": jnp.float32(step)})
    kept = lambda step: (snapshot := ring.newest(step)) and snapshot.step  # noqa: E731
    assert [kept(step) for step in (40, 30, 29, 25, 24)] == [30, 30, 25, 25, None]
    ring.undo(29)
    assert kept(40) == 25


def test_a_ring_of_none_takes_none():
    assert not any(SnapshotRing(0, 5, Mood()).due(step) for step in range(20))
