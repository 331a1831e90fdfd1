"""Sampling with a cache against the full forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blobjax.config import BadInputError
from blobjax.model import Transformer, sampling
from tests.tiny import tiny

PROMPT = [0, 5, 9, 7, 200]
N = 12


@pytest.fixture(
    scope="module",
    params=[
        (),
        (
            "model.n_kv_heads=2",
            "model.sliding_window=4",
            "model.tie_embeddings=false",
            "compute.scan_layers=true",
        ),
    ],
    ids=["plain", "grouped, windowed, untied, scanned"],
)
def model(request):
    return Transformer(tiny(*request.param), nnx.Rngs(0))


@pytest.fixture(scope="module")
def full(model):
    """Logits [t, V] of the full forward pass over a token list, always padded to one length."""
    graphdef, state = nnx.split(model)
    length = len(PROMPT) + N
    run = jax.jit(lambda state, *args: nnx.merge(graphdef, state)(*args))

    def logits(tokens):
        padded = np.pad(np.asarray([tokens]), ((0, 0), (0, length - len(tokens))))
        segments = (np.arange(length) < len(tokens)).astype(np.int32)[None]
        return run(state, padded, segments, np.arange(length)[None])[0, : len(tokens)]

    return logits


def test_greedy_is_the_full_forward_pass_taken_greedily(model, full):
    drawn = sampling.generate(model, PROMPT, N, jax.random.key(0), temperature=0)
    tokens = list(PROMPT)
    for _ in range(N):
        tokens.append(int(jnp.argmax(full(tokens)[-1])))
    assert drawn.tolist() == tokens[len(PROMPT) :]


def test_cached_logits_at_each_step_are_those_of_the_full_pass(model, full):
    tokens = [*PROMPT, *range(40, 40 + N)]
    wanted = full(tokens)
    decode = nnx.jit(lambda model, *args: model.decode(*args))

    def step(tokens, first, cache):
        row = jnp.asarray([tokens], jnp.int32)
        x, cache = decode(model, row, jnp.ones_like(row), first + jnp.arange(row.shape[1])[None], cache)
        return model.logits(x)[0], cache

    logits, cache = step(PROMPT, 0, model.empty_cache(1, 32))
    np.testing.assert_allclose(logits, wanted[: len(PROMPT)], atol=1e-5)
    for i in range(len(PROMPT), len(tokens)):
        logits, cache = step(tokens[i : i + 1], i, cache)
        np.testing.assert_allclose(logits[0], wanted[i], atol=1e-5)


def test_the_key_decides(model):
    def drawn(seed):
        return sampling.generate(model, PROMPT, N, jax.random.key(seed), temperature=1.0, top_p=0.9).tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_lengths_share_compiled_programs(model):
    sampling.generate(model, PROMPT, N, jax.random.key(0))
    compiled = sampling._generate._cache_size()
    for length in (1, 2, 31, 32):
        assert len(sampling.generate(model, [7] * length, length, jax.random.key(0))) == length
    assert sampling._generate._cache_size() == compiled


def test_longer_continuations_begin_alike(model):
    short = sampling.generate(model, PROMPT, 3, jax.random.key(3))
    long = sampling.generate(model, PROMPT, N, jax.random.key(3))
    assert short.tolist() == long[:3].tolist()


def test_top_p_and_temperature_shape_the_distribution():
    probability = np.array([0.4, 0.3, 0.2, 0.1])
    logits = jnp.tile(jnp.log(probability), (20_000, 1))

    def frequencies(temperature, top_p):
        drawn = sampling.draw(jax.random.key(0), logits, jnp.float32(temperature), jnp.float32(top_p))
        return np.bincount(drawn, minlength=4) / len(drawn)

    # Four standard deviations of a frequency over 20,000 draws: 4 · sqrt(1/4 / 20,000) < 0.015.
    np.testing.assert_allclose(frequencies(1, 1), probability, atol=0.015)
    np.testing.assert_allclose(frequencies(1, 0.65), [4 / 7, 3 / 7, 0, 0], atol=0.015)
    np.testing.assert_allclose(frequencies(0.5, 1), probability**2 / np.sum(probability**2), atol=0.015)
    assert frequencies(1, 1e-6).tolist() == [1, 0, 0, 0]
    assert frequencies(0, 1).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("prompt", "n", "options", "says"),
    [
        ([], 1, {}, "no tokens"),
        ([256], 1, {}, "vocab_size"),
        ([0] * 120, 9, {}, "make 129, beyond the 128"),
        ([0], 0, {}, "at least one"),
        ([0], 1, {"temperature": -1.0}, "temperature"),
        ([0], 1, {"top_p": 0.0}, "top_p"),
    ],
)
def test_bad_input(model, prompt, n, options, says):
    with pytest.raises(BadInputError, match=says):
        sampling.generate(model, prompt, n, jax.random.key(0), **options)
