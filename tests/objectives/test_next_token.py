"""The next-token loss: against float64, in parts, in chunks, and over packed documents."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blobjax.model import Transformer
from blobjax.objectives import loss, make_objective
from blobjax.objectives.logprobs import n_chunks
from tests.tiny import tiny

B, T, V = 4, 24, 256


def make_batch(segments=None, positions=None):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (B, T + 1))
    mask = np.ones((B, T), np.float32)
    mask[1, -5:] = 0
    return {
        "tokens": jnp.asarray(tokens[:, :-1], jnp.int32),
        "targets": jnp.asarray(tokens[:, 1:], jnp.int32),
        "segments": jnp.ones((B, T), jnp.int32) if segments is None else segments,
        "positions": jnp.tile(jnp.arange(T), (B, 1)) if positions is None else positions,
        "mask": jnp.asarray(mask),
        "target_bytes": jnp.ones((B, T), jnp.int32),
    }


BATCH = make_batch()
TOTAL = float(BATCH["mask"].sum())


def assert_close(got, wanted, relative):
    """To float noise of sums taken in another order: relative to the largest element of each array."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * np.abs(b).max())


def make(*overrides: str):
    """Parameters, and the loss (and parts) as a function of them and a batch."""
    config = tiny("model.n_layers=1", *overrides)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    params = jax.jit(lambda: nnx.to_pure_dict(nnx.state(Transformer(config, nnx.Rngs(0)))))()

    def f(params, batch, total=TOTAL):
        return loss(make_objective(config), nnx.merge(graphdef, params), batch, config, total)

    return params, f, graphdef


def test_parts_against_float64():
    params, f, graphdef = make("conditioning.z_loss=0.01", "conditioning.final_soft_cap=20")
    whole, (parts, _) = jax.jit(f)(params, BATCH)
    run = jax.jit(lambda params, *args: nnx.merge(graphdef, params)(*args))
    logits = run(params, BATCH["tokens"], BATCH["segments"], BATCH["positions"])
    logits, mask = np.asarray(logits, np.float64), np.asarray(BATCH["mask"], np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    target = np.take_along_axis(logits, np.asarray(BATCH["targets"])[..., None], -1)[..., 0]
    assert parts["cross_entropy"] == pytest.approx((mask * (log_z - target)).sum() / mask.sum(), rel=1e-5)
    assert parts["z_loss"] == pytest.approx(0.01 * (mask * log_z**2).sum() / mask.sum(), rel=1e-5)
    assert whole == parts["cross_entropy"] + parts["z_loss"]
    assert {x.dtype for x in (whole, *parts.values())} == {jnp.dtype("float32")}


def test_parts_of_a_batch_add_up():
    params, f, _ = make("conditioning.z_loss=0.01")
    run = jax.jit(jax.value_and_grad(lambda p, b: f(p, b)[0]))
    halves = [run(params, {k: v[rows] for k, v in BATCH.items()}) for rows in (slice(0, 2), slice(2, 4))]
    whole = run(params, BATCH)
    added = jax.tree.map(jnp.add, *halves)
    assert_close(added, whole, 1e-5)


@pytest.mark.parametrize("tied", ["true", "false"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_chunks_change_nothing_but_rounding(tied, precision):
    options = (
        "conditioning={z_loss: 0.01, final_soft_cap: 20}",
        f"conditioning.precision={precision}",
        f"model.tie_embeddings={tied}",
    )
    results = []
    for chunk in (0, 20):
        params, f, _ = make(*options, f"compute.loss_chunk_tokens={chunk}")
        results.append(jax.jit(jax.value_and_grad(f, has_aux=True))(params, BATCH))
    # bfloat16 gradients of the logits are rounded before they are summed, chunk by chunk: 2^-8 of the largest.
    relative = 1e-5 if precision == "float32" else 2**-7
    assert_close(results[1], results[0], relative)


@pytest.mark.parametrize(
    ("rows", "length", "tokens", "chunks"),
    [(4, 24, 0, 1), (4, 24, 96, 1), (4, 24, 95, 2), (4, 24, 20, 6), (4, 24, 1, 24), (4, 7, 8, 7), (1, 1, 1, 1)],
)
def test_number_of_chunks(rows, length, tokens, chunks):
    assert n_chunks(rows, length, tokens) == chunks


@pytest.mark.parametrize("tied", ["true", "false"])
def test_full_logits_never_live(tied):
    """In no buffer of the compiled forward and backward program."""

    def compiled(chunk):
        # A vocabulary of 257 is no other size in this program.
        overrides = ("model.vocab_size=257", f"model.tie_embeddings={tied}", f"compute.loss_chunk_tokens={chunk}")
        params, f, _ = make(*overrides)
        return jax.jit(jax.grad(lambda p, b: f(p, b)[0])).lower(params, BATCH).compile()

    whole, chunked = compiled(0), compiled(16)
    shapes = re.compile(r"\[((?:\d+,)*)257((?:,\d+)*)\]")

    def largest(program):
        sizes = [
            np.prod([int(n) for n in (a + "1" + b).split(",")], dtype=int) for a, b in shapes.findall(program.as_text())
        ]
        return max(sizes)

    assert largest(whole) >= B * T
    # The table and its gradient are [257, 32]; a chunk's logits are [4, 4, 257].
    assert largest(chunked) == 32
    saved = whole.memory_analysis().temp_size_in_bytes - chunked.memory_analysis().temp_size_in_bytes
    assert saved > B * T * 257 * 4 / 2


def test_packed_documents_lose_what_they_lose_alone():
    half = T // 2
    packed = make_batch(
        jnp.tile(jnp.repeat(jnp.array([[1, 2]]), half, axis=1), (B, 1)), jnp.tile(jnp.arange(half), (B, 2))
    )
    alone = {k: v.reshape(2 * B, half) for k, v in packed.items()} | {"segments": jnp.ones((2 * B, half), jnp.int32)}
    params, f, _ = make()
    run = jax.jit(jax.value_and_grad(lambda p, b: f(p, b)[0]))
    assert_close(run(params, packed), run(params, alone), 1e-5)


def test_a_masked_batch_loses_nothing():
    params, f, _ = make("conditioning.z_loss=0.01")
    empty = BATCH | {"mask": jnp.zeros((B, T)), "segments": jnp.zeros((B, T), jnp.int32)}
    (lost, _), gradient = jax.jit(jax.value_and_grad(f, has_aux=True))(params, empty, 1.0)
    assert lost == 0
    assert all(np.all(g == 0) for g in jax.tree.leaves(gradient))
