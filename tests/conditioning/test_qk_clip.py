"""QK-clip against a loop in float64 over layers and heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax.conditioning.qk_clip import qk_clip

L, D, H, K = 3, 5, 4, 2
THRESHOLD = 100.0
LOGITS = np.array([[50, 400, 100, 101], [0, 99, 250, 1e6], [np.nan, np.inf, -np.inf, 130]], np.float32)
CLIPPED = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]], bool)


def trees(kv_heads: int):
    rng = np.random.default_rng(0)

    def attention():
        shapes = {"query": (L, D, H, K), "key": (L, D, kv_heads, K), "value": (L, D, kv_heads, K)}
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    return [{"blocks": {"attention": attention()}, "embedding": np.ones((7, D), np.float32)} for _ in range(2)]


@pytest.mark.parametrize("kv_heads", [H, 2, 1])
def test_scores_of_the_heads_that_exceed_it_are_brought_back(kv_heads):
    params, updates = trees(kv_heads)
    clip = qk_clip(THRESHOLD)
    got, state = jax.jit(clip.update)(updates, clip.init(params), params, logits_LH=LOGITS)
    old, u, new = (tree["blocks"]["attention"] for tree in (params, updates, got))
    for layer in range(L):
        for h in range(H):
            g = h // (H // kv_heads)
            gamma = THRESHOLD / LOGITS[layer, h] if CLIPPED[layer, h] else 1.0
            of_query, of_key = (np.sqrt(gamma), np.sqrt(gamma)) if kv_heads == H else (gamma, 1.0)
            for name, head, scale in (("query", h, of_query), ("key", g, of_key)):
                p, before = old[name][layer, :, head], u[name][layer, :, head]
                after = np.asarray(new[name][layer, :, head])
                if scale == 1.0:
                    np.testing.assert_array_equal(after, before)
                else:
                    # p + (γ(p + u) - p) in float32: three roundings of numbers up to 3.
                    np.testing.assert_allclose(p + after, scale * (np.float64(p) + before), atol=6e-7)
    np.testing.assert_array_equal(new["value"], u["value"])
    np.testing.assert_array_equal(got["embedding"], updates["embedding"])
    assert state.clipped_heads == CLIPPED.sum()


def test_the_counter_goes_on():
    params, updates = trees(H)
    clip = qk_clip(THRESHOLD)
    state = clip.init(params)
    for _ in range(3):
        _, state = clip.update(updates, state, params, logits_LH=jnp.asarray(LOGITS))
    assert state.clipped_heads == 3 * CLIPPED.sum()
