"""Sequence length warm-up: pieces are sequences of their own, they grow as said, and the shapes stay what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.conditioning.sequence_warmup import in_pieces
from blobjax.config import BadInputError
from blobjax.program.batches import global_batches
from blobjax.program.program import make_program
from tests.tiny import tiny

# 8 tokens at the first step, 32 from the seventh on.
WARMUP = ("duration.seq_len_warmup=6 steps", "duration.seq_len_start=8")
LENGTHS = [8, 12, 16, 20, 24, 28, 32, 32]


def test_places_share_a_segment_where_they_share_a_document_and_a_piece():
    rng = np.random.default_rng(0)
    segments_BT = np.cumsum(rng.random((3, 50)) < 0.1, axis=1).astype(np.int32)
    for length in (1, 7, 10, 49, 50, 60):
        found_BT = np.asarray(in_pieces(jnp.asarray(segments_BT), length))
        for row in range(3):
            for i in range(50):
                for j in range(50):
                    same = segments_BT[row, i] == segments_BT[row, j] and i // length == j // length
                    assert (found_BT[row, i] == found_BT[row, j]) == same


def run(*overrides: str, devices: int = 1):
    settings = tiny(*WARMUP, *overrides)
    layout = make_layout(settings, jax.devices()[:devices])
    stream = data.open_stream(settings, data.prepare(settings))
    program = make_program(settings, layout, stream.tokens_per_epoch)
    step, state = program.lower_train_step().compile(), program.init()
    batches = global_batches(stream, 0, program.batch_sharding, program.shape_BT)
    seen = []
    for _ in LENGTHS:
        batch = next(batches)
        params = jax.device_get(state.params)
        state, metrics = step(state, batch)
        seen.append((params, jax.device_get(batch), jax.device_get(metrics)))
    return program, seen


@pytest.fixture(scope="module")
def alone():
    return run()


def test_the_loss_is_that_of_shorter_sequences(alone):
    """Each piece alone, its positions counted from its own beginning."""
    program, seen = alone

    @jax.jit
    def nats(params, piece):
        model = program.arch.merge(params)
        logits = model(piece["tokens"], piece["segments"], piece["positions"])
        return jnp.take_along_axis(jax.nn.log_softmax(logits), piece["targets"][..., None], -1)

    for step in (0, 1):  # pieces of 8; and of 12, the last of which is shorter
        params, batch, metrics = seen[step]
        found = []
        for first in range(0, 32, LENGTHS[step]):
            piece = {name: array[:, first : first + LENGTHS[step]] for name, array in batch.items()}
            opened = piece["segments"] != piece["segments"][:, :1]
            piece["positions"] = np.where(opened, piece["positions"], np.arange(opened.shape[1], dtype=np.int32))
            found.append(np.float64(nats(params, piece)))
        # Rotations by other angles, which float32 rounds otherwise.
        assert metrics["cross_entropy"] == pytest.approx(-np.concatenate(found, axis=1).mean(), rel=1e-5)


def test_pieces_grow_linearly_to_the_whole_sequence(alone):
    assert [metrics["seq_len"] for *_, metrics in alone[1]] == LENGTHS


def test_it_is_the_same_on_a_mesh_that_splits_the_sequence(alone):
    _, seen = run("compute.mesh={data: 1, fsdp: 4, context: 2}", devices=8)
    # Float32 sums in another order.
    losses = [[metrics["loss"] for *_, metrics in each] for each in (seen, alone[1])]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_the_metric_is_there_only_with_the_warmup():
    program = make_program(tiny(), make_layout(tiny(), jax.devices()[:1]), 10_000)
    assert "seq_len" not in program.lower_train_step().out_info[1]


def test_one_longer_than_the_run_is_refused():
    settings = tiny("duration.seq_len_warmup=13 steps", "duration.seq_len_start=8")
    with pytest.raises(BadInputError, match=r"duration.seq_len_warmup '13 steps' is 13 steps, more than the 12 of"):
        make_program(settings, make_layout(settings, jax.devices()[:1]), 10_000)
