"""Attention against a float64 reference, and the choice of implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax.config import BadInputError
from blobjax.model import attention
from blobjax.model.attention import attend, choose
from tests.tiny import tiny

H, K = 4, 16


def reference(q, k, v, segments, window=0, cap=0.0):
    """Float64, one query at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    repeats = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(q.shape[:3]):
        first = max(t - window + 1, 0) if window else 0
        seen = [s for s in range(first, t + 1) if segments[b, s] == segments[b, t]]
        scores = k[b, seen, h // repeats] @ q[b, t, h] / np.sqrt(q.shape[-1])
        scores = cap * np.tanh(scores / cap) if cap else scores
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights / weights.sum() @ v[b, seen, h // repeats]
    return out


def inputs(rows=2, length=24, kv_heads=H, dtype=jnp.float32, d_head=K):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(rows, length, heads, d_head) for heads in (H, kv_heads, kv_heads)]
    q, k, v = (2 * jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))
    starts = np.array([length // 3, length // 2])[:rows, None]
    segments = jnp.asarray(1 + (np.arange(length)[None] >= starts), jnp.int32)
    return q, k, v, segments


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("options", [{}, {"window": 5}, {"cap": 1.5}, {"window": 1}])
def test_xla_against_float64(kv_heads, options):
    q, k, v, segments = inputs(kv_heads=kv_heads)
    got = attend(q, k, v, segments, segments, **options)
    np.testing.assert_allclose(got, reference(q, k, v, np.asarray(segments), **options), atol=1e-5)


@pytest.mark.parametrize("window", [0, 40, 100])
def test_query_blocks_change_nothing(window, monkeypatch):
    """From 256 tokens on, queries are taken in blocks; forward and gradients are those of one block."""
    q, k, v, segments = inputs(rows=1, length=256, kv_heads=2)

    def run():
        def f(q, k, v):
            out = attend(q, k, v, segments, segments, window=window)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    assert attention._query_blocks(256, 256) == 4
    blocked = run()
    monkeypatch.setattr(attention, "_query_blocks", lambda T, S: 1)
    # Sums of 256 float32 terms, taken in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), blocked, run())


def test_grouped_queries_are_repeated_heads():
    q, k, v, segments = inputs(kv_heads=2)
    repeated = [jnp.repeat(x, 2, axis=2) for x in (k, v)]
    np.testing.assert_allclose(attend(q, k, v, segments, segments), attend(q, *repeated, segments, segments), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_scores_and_softmax_of_16_bit_operands_are_float32(dtype):
    q, k, v, segments = inputs(dtype=dtype)
    text = str(jax.make_jaxpr(lambda q, k, v: attend(q, k, v, segments, segments))(q, k, v))
    assert "preferred_element_type=float32" in text
    exponentials = [line for line in text.splitlines() if " exp " in line]
    assert exponentials
    assert all(":f32[" in line for line in exponentials)
    got = attend(q, k, v, segments, segments)
    assert got.dtype == dtype
    # Weights and outputs are rounded to 8 bits each (float16: 11), on values up to about 5.
    np.testing.assert_allclose(np.asarray(got, np.float64), reference(q, k, v, np.asarray(segments)), atol=0.05)


@pytest.mark.parametrize("options", [{}, {"window": 50}, {"cap": 1.5}])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_splash_in_interpret_mode_equals_xla(options, kv_heads):
    q, k, v, segments = inputs(rows=1, length=128, kv_heads=kv_heads, d_head=128)
    options = {"window": 0, "cap": 0.0, **options}
    got = attention._splash(q, k, v, segments, segments, 128**-0.5, *options.values(), interpret=True)
    np.testing.assert_allclose(got, attend(q, k, v, segments, segments, **options), atol=2e-4)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN attention needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("window", [0, 50])
def test_cudnn_equals_xla(window, dtype):
    q, k, v, segments = inputs(length=256, kv_heads=2, dtype=dtype, d_head=64)
    got = attend(q, k, v, segments, segments, window=window, implementation="cudnn")
    wanted = attend(q, k, v, segments, segments, window=window)
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(wanted, np.float32), atol=0.05)


def test_auto_takes_what_the_platform_has_and_the_config_allows():
    bf16 = "conditioning.precision=bfloat16"
    assert choose(tiny(), "cpu") == "xla"
    assert choose(tiny(bf16), "gpu") == "cudnn"
    assert choose(tiny("conditioning.precision=float16"), "gpu") == "cudnn"
    assert choose(tiny(), "gpu") == "xla"
    assert choose(tiny(bf16, "conditioning.attention_soft_cap=50"), "gpu") == "xla"
    long = ("data.seq_len=128", "model.d_head=128")
    assert choose(tiny(*long), "tpu") == "splash"
    assert choose(tiny(), "tpu") == "xla"
    assert choose(tiny(*long, "compute.mesh.context=2"), "tpu") == "xla"
    assert choose(tiny(*long, "conditioning.precision=float16"), "tpu") == "xla"


@pytest.mark.parametrize(
    ("asked", "platform", "overrides", "reason"),
    [
        ("cudnn", "cpu", (), "needs an NVIDIA GPU"),
        ("cudnn", "gpu", (), "16-bit"),
        ("cudnn", "gpu", ("conditioning.precision=bfloat16", "conditioning.attention_soft_cap=50"), "soft cap"),
        ("splash", "gpu", (), "needs a TPU"),
        ("splash", "tpu", (), "128 tokens"),
    ],
)
def test_an_explicit_choice_that_cannot_be_is_one_clear_line(asked, platform, overrides, reason):
    with pytest.raises(BadInputError, match=reason) as error:
        choose(tiny(f"compute.attention={asked}", *overrides), platform)
    assert len(error.value.problems) == 1
