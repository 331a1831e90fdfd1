"""Flow probes against slow float64 loops, and what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax.conditioning import flow
from blobjax.conditioning.formats import FORMATS
from blobjax.config.schema import Conditioning

B, T, H, G, K = 2, 12, 4, 2, 8


def queries_and_keys(seed: int = 0):
    rng = np.random.default_rng(seed)
    q, k = (rng.standard_normal((B, T, heads, K)).astype(np.float32) for heads in (H, G))
    segments = np.sort(rng.integers(1, 4, (B, T)), axis=1).astype(np.int32)
    return q, k, segments


def slow_attention(q, k, segments, scale, window):
    """The largest absolute logit of each head, and the mean entropy, one pair of positions after the other."""
    q, k = q.astype(np.float64), k.astype(np.float64)
    largest, entropies = np.zeros(H), []
    for b in range(B):
        for h in range(H):
            for t in range(T):
                seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t] and (not window or t - s < window)]
                logits = np.array([scale * q[b, t, h] @ k[b, s, h // (H // G)] for s in seen])
                largest[h] = max(largest[h], np.abs(logits).max())
                p = np.exp(logits - logits.max())
                p /= p.sum()
                entropies.append(-(p * np.log(p)).sum())
    return largest, np.mean(entropies)


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("block", [128, 4])
def test_attention_statistics(window, block, monkeypatch):
    monkeypatch.setattr(flow, "_QUERY_BLOCK", block)
    q, k, segments = queries_and_keys()
    largest, entropy = slow_attention(q, k, segments, 0.7, window)
    found = flow.attention_statistics(q, k, segments, 0.7, window)
    # Float32 sums of eight products.
    np.testing.assert_allclose(np.max(found["attention_logit_max"]), largest.max(), rtol=1e-5)
    np.testing.assert_allclose(found["attention_entropy"], entropy, rtol=1e-5)


def test_dead_units_are_those_no_token_wakes():
    hidden = np.random.default_rng(1).standard_normal((2, 5, 8)).astype(np.float32)
    hidden[..., 3] = 0
    hidden[..., 6] *= 1e-4
    assert float(flow.dead_fraction(hidden)) == 2 / 8


def test_parameter_statistics():
    rng = np.random.default_rng(2)
    trees = [{"w": rng.standard_normal((6, 4)) * s, "gain": rng.standard_normal(4) * s} for s in (1.0, 1e-5, 1e-3)]
    trees[1]["w"][0, 0] = 0.0
    trees[1]["w"][1, 1] = 1e6
    params, grads, updates = (jax.tree.map(np.float32, tree) for tree in trees)
    found = flow.parameter_statistics(params, grads, updates, FORMATS["float16"])

    flat = [
        np.concatenate([np.ravel(x) for x in tree.values()]).astype(np.float64) for tree in (params, grads, updates)
    ]
    rms = [np.sqrt(np.mean(x**2)) for x in flat]
    np.testing.assert_allclose(found["param_rms"], rms[0], rtol=1e-6)
    np.testing.assert_allclose(found["grad_rms"], rms[1], rtol=1e-6)
    # What float32 leaves of an update of a thousandth is rounded by 6e-8 of the parameter.
    np.testing.assert_allclose(found["update_ratio"], rms[2] / rms[0], rtol=1e-4)
    assert found["moved_fraction"] == 1
    assert found["update_lost_fraction"] == 0
    np.testing.assert_allclose(found["grad_zero_fraction"], 1 / flat[1].size, rtol=1e-6)
    g = flat[1].astype(np.float32)
    with np.errstate(over="ignore"):
        flushed = np.sum((g != 0) & (g.astype(np.float16) == 0)) / np.sum(g != 0)
    np.testing.assert_allclose(found["grad_flush_fraction"], flushed, rtol=1e-6)
    np.testing.assert_allclose(found["grad_saturate_fraction"], 1 / np.sum(g != 0), rtol=1e-6)
    w = params["w"].astype(np.float64)
    noise = np.sum((w - params["w"].astype(np.float16).astype(np.float64)) ** 2)
    np.testing.assert_allclose(found["weight_sqnr_db"], 10 * np.log10(np.sum(w**2) / noise), rtol=1e-4)


def test_gradients_flush_in_a_format_too_narrow_for_them():
    tree = {"w": jnp.full((4, 4), 1e-9)}
    assert flow.parameter_statistics(tree, tree, tree, FORMATS["float16"])["grad_flush_fraction"] == 1
    assert flow.parameter_statistics(tree, tree, tree, FORMATS["bfloat16"])["grad_flush_fraction"] == 0
    # A scale for the whole tensor brings any equal values into range.
    assert flow.parameter_statistics(tree, tree, tree, FORMATS["fp8_e4m3"])["grad_flush_fraction"] == 0


def test_gradients_that_a_product_flushed_count_as_flushed():
    """A raw float16 run can have no gradient at all: that is everything lost, not nothing."""
    w, zeros = {"w": jnp.ones((4, 4))}, {"w": jnp.zeros((4, 4))}
    half = {"w": jnp.zeros((4, 4)).at[:2].set(1e-3)}
    mixed = {"w": jnp.array([[1e-3, 0, 0, 1e-3]] * 2 + [[0, 1e-3, 1e-3, 0]] * 2)}
    found = lambda grads, **how: flow.parameter_statistics(w, grads, zeros, FORMATS["float16"], **how)  # noqa: E731
    assert found(zeros, flushes=True)["grad_flush_fraction"] == 1
    assert found(zeros, flushes=True)["grad_zero_fraction"] == 1
    assert found(mixed, flushes=True)["grad_flush_fraction"] == 0.5
    # Where no product flushes, zeros are dead units: neither lost nor kept.
    assert found(half)["grad_flush_fraction"] == 0
    assert found(half)["grad_zero_fraction"] == 0.5
    # Tokens that are not in the batch have no gradient to lose, unless none has.
    assert found(half, flushes=True, by_row=True)["grad_flush_fraction"] == 0
    assert found(half, flushes=True, by_row=True)["grad_zero_fraction"] == 0
    assert found(zeros, flushes=True, by_row=True)["grad_flush_fraction"] == 1


def test_dead_units_have_no_gradient_to_flush():
    """Two of eight units: a column of what leads to them, a row of what leads from them, slices of heads likewise."""
    rng = np.random.default_rng(6)
    grads = {"up": rng.random((4, 8)), "down": rng.random((8, 4)), "heads": rng.random((4, 8, 3))}
    grads["up"][:, 2:4] = grads["down"][2:4] = grads["heads"][:, 2:4] = 0
    grads["up"][0, 0] = 0
    grads = jax.tree.map(jnp.float32, grads)
    found = flow.parameter_statistics(grads, grads, grads, FORMATS["float16"], flushes=True)
    alive = 4 * 6 + 6 * 4 + 4 * 6 * 3
    np.testing.assert_allclose(found["grad_flush_fraction"], 1 / alive, rtol=1e-6)
    # Zero they are nevertheless.
    np.testing.assert_allclose(found["grad_zero_fraction"], 1 - (alive - 1) / (alive * 8 / 6), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "flushes"),
    [
        ({"precision": "float32"}, False),
        ({"precision": "bfloat16"}, False),
        ({"precision": "float16"}, True),
        ({"precision": "mxfp4", "simulate": True}, True),
    ],
)
def test_which_formats_flush(settings, flushes):
    assert flow.flushes_gradients(Conditioning(**settings)) == flushes


def test_an_update_is_what_is_left_of_it_in_the_parameters_format():
    """Against numpy's rounding of p + u to bfloat16, where p is about 1 and u mostly below half of its spacing."""
    rng = np.random.default_rng(4)
    p = np.asarray(1 + 0.1 * rng.random((64, 64)), jnp.bfloat16)
    u = (1e-3 * rng.standard_normal((64, 64))).astype(np.float32)
    old = p.astype(np.float64)
    moved = (old + u).astype(np.float32).astype(jnp.bfloat16).astype(np.float64) - old
    found = jax.jit(lambda p, u: flow.parameter_statistics(p, u, u, None))(p, u)
    rms = lambda x: np.sqrt(np.mean(x**2))  # noqa: E731
    np.testing.assert_allclose(found["update_ratio"], rms(moved) / rms(old), rtol=1e-5)
    np.testing.assert_allclose(found["moved_fraction"], np.mean(moved != 0), rtol=1e-6)
    np.testing.assert_allclose(found["update_lost_fraction"], np.mean(moved == 0), rtol=1e-6)
    assert np.mean(moved != 0) < 0.05


@pytest.mark.parametrize("probing", [True, False])
def test_measure_pays_only_where_it_probes(probing):
    x = jnp.arange(4.0)
    statistics = lambda x: {"sum": jnp.sum(x)}  # noqa: E731
    found = jax.jit(lambda p, x: flow.measure(p, statistics, x))(jnp.bool(probing), x)
    assert float(found["sum"]) == (6.0 if probing else 0.0)
    gradient = jax.grad(lambda x: jnp.sum(x) + flow.measure(jnp.bool(probing), statistics, x)["sum"])(x)
    np.testing.assert_array_equal(gradient, np.ones(4))


def test_measure_of_no_probe_is_nothing():
    assert flow.measure(None, lambda x: {"sum": jnp.sum(x)}, jnp.ones(3)) == {}


def test_parts_of_a_batch_become_the_whole():
    parts = {name: jnp.array([1.0, 3.0]) for name in ("attention_logit_max", "log_z_mean", "residual_rms")}
    whole = {name: float(value) for name, value in flow.over_parts(parts).items()}
    assert whole == {"attention_logit_max": 3.0, "log_z_mean": 4.0, "residual_rms": 2.0}


@pytest.mark.parametrize(
    ("precision", "asked", "wanted"),
    [
        ("float32", "compute", None),
        ("bfloat16", "compute", FORMATS["bfloat16"]),
        ("float32", "mxfp4", FORMATS["mxfp4"]),
    ],
)
def test_the_format_that_is_asked_about(precision, asked, wanted):
    assert flow.probe_format(Conditioning(precision=precision, probe_format=asked)) == wanted


PRODUCTS = ("blocks/attention/query", "blocks/mlp/up", "blocks/mlp/down", "output")


@pytest.mark.parametrize(
    ("precision", "overrides", "formats", "flushing"),
    [
        ("bfloat16", {"blocks/mlp/*": "mxfp4"}, ("bfloat16", "mxfp4", "bfloat16"), {"blocks"}),
        ("float32", {"blocks/mlp/down": "nvfp4"}, (None, "nvfp4", None), {"blocks"}),
        ("mxfp8", {"output": "bfloat16"}, ("mxfp8", "mxfp8", "bfloat16"), {"embedding", "blocks"}),
        ("mxfp4", {"blocks/*": "float32"}, ("mxfp4", None, "mxfp4"), {"embedding", "output"}),
        ("bfloat16", {"blocks/mlp/*": "mxfp6", "blocks/attention/*": "mxfp8"}, None, {"blocks"}),
        # Between layers gradients are float16's whatever their products are.
        ("float16", {"*": "float32"}, ("float16", None, None), {"embedding", "blocks", "output"}),
    ],
)
def test_each_group_is_asked_about_its_own_products(precision, overrides, formats, flushing):
    conditioning = Conditioning(precision=precision, precision_overrides=overrides, simulate=True)
    paths = {group: flow.products_of(group, PRODUCTS) for group in ("embedding", "blocks", "output")}
    asked = [flow.probe_format(conditioning, of) for of in paths.values()]
    wanted = formats or ("bfloat16", "mxfp6_e2m3", "bfloat16")
    assert asked == [None if name is None else FORMATS[name] for name in wanted]
    assert {group for group, of in paths.items() if flow.flushes_gradients(conditioning, of)} == flushing


def test_an_update_is_asked_about_the_overridden_format():
    """The same weights lose more to mxfp4 than to bfloat16, and a zero in the blocks counts as flushed there alone."""
    rng = np.random.default_rng(7)
    w = jnp.float32(rng.standard_normal((1, 32, 32)))
    grads = w.at[0, 0, 0].set(0)
    tree = lambda x: {"blocks": {"mlp": {"up": x}}, "unembedding": x[0]}  # noqa: E731
    conditioning = Conditioning(precision="bfloat16", precision_overrides={"blocks/mlp/*": "mxfp4"}, simulate=True)
    found = flow.of_update(jnp.bool(True), tree(w), tree(grads), tree(w), conditioning, PRODUCTS)
    assert found["blocks"]["weight_sqnr_db"][0] < 25
    assert found["output"]["weight_sqnr_db"] > 40
    assert found["blocks"]["grad_flush_fraction"][0] >= 1 / 32**2
    assert found["output"]["grad_flush_fraction"] == 0


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_embedding_is_asked_about_the_output_too(tied):
    w = jnp.float32(np.random.default_rng(8).standard_normal((32, 32)))
    tree = {"embedding": w} if tied else {"embedding": w, "unembedding": w}
    conditioning = Conditioning(precision="bfloat16", precision_overrides={"output": "mxfp4"}, simulate=True)
    found = flow.of_update(jnp.bool(True), tree, tree, tree, conditioning, PRODUCTS)
    assert (found["embedding"]["weight_sqnr_db"] < 25) == tied
