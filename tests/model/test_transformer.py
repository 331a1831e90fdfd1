"""The whole model: who sees whom (through gradients), and that layout choices change no number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blobjax.compute.flops import param_count
from blobjax.compute.sharding import LOGICAL_AXES
from blobjax.model import Transformer, logical_axes
from tests.tiny import tiny

T = 12
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, T)), jnp.int32)
ONE = (jnp.ones((1, T), jnp.int32), jnp.arange(T)[None])
TWO = (jnp.repeat(jnp.array([[1, 2]]), T // 2, axis=1), jnp.tile(jnp.arange(T // 2), 2)[None])


@functools.cache
def built(*overrides: str):
    """Module definition and parameters, built once for all tests."""
    config = tiny(*overrides)

    @jax.jit
    def params():
        return nnx.to_pure_dict(nnx.state(Transformer(config, nnx.Rngs(config.seed))))

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    return graphdef, params()


def influence(segments, positions, *overrides: str) -> np.ndarray:
    """[t, s]: how much the logits at t change with the input embedding at s."""
    graphdef, params = built(*overrides)
    weights = jax.random.normal(jax.random.key(1), (256,))

    @jax.jit
    def jacobian(x_BTD):
        def score(x_BTD):
            model = nnx.merge(graphdef, params)
            model._embed = lambda tokens: x_BTD
            return model(TOKENS, segments, positions)[0] @ weights

        return jnp.abs(jax.jacrev(score)(x_BTD)).sum((1, 3))

    return np.asarray(jacobian(params["embedding"][TOKENS]))


def test_no_position_sees_a_later_one_and_each_sees_all_before():
    seen = influence(*ONE)
    assert np.all(seen[np.triu_indices(T, 1)] == 0)
    assert np.all(seen[np.tril_indices(T)] > 0)


def test_documents_do_not_see_each_other():
    seen = influence(*TWO)
    same = np.asarray(TWO[0])[0][:, None] == np.asarray(TWO[0])[0][None]
    assert np.all((seen > 0) == (same & np.tri(T, dtype=bool)))


def test_a_window_reaches_its_length_a_layer():
    seen = influence(*ONE, "model.sliding_window=3")
    behind = np.arange(T)[:, None] - np.arange(T)[None]
    assert np.all((seen > 0) == ((behind >= 0) & (behind <= 2 * (3 - 1))))  # two layers, each two tokens back


def test_packed_documents_have_the_logits_they_have_alone():
    graphdef, params = built()
    run = jax.jit(lambda params, *args: nnx.merge(graphdef, params)(*args))
    packed = run(params, TOKENS, *TWO)
    half = T // 2
    alone = run(params, TOKENS.reshape(2, half), jnp.ones((2, half), jnp.int32), jnp.tile(jnp.arange(half), (2, 1)))
    np.testing.assert_allclose(packed.reshape(alone.shape), alone, atol=1e-5)


def value_and_grad(*overrides: str):
    graphdef, params = built(*overrides)

    def f(params):
        logits = nnx.merge(graphdef, params)(TOKENS, *TWO)
        return jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.sin(logits).mean(-1))

    return jax.jit(jax.value_and_grad(f))(params)


@pytest.fixture(scope="module")
def plain():
    return value_and_grad("compute.scan_layers=true")


@pytest.mark.parametrize("remat", ["none", "full", "dots", "attention", "offload"])
@pytest.mark.parametrize("scan", ["true", "false"])
def test_scan_and_remat_change_no_number(scan, remat, plain):
    other = value_and_grad(f"compute.scan_layers={scan}", f"compute.remat={remat}")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), other, plain)


def saved_shapes(remat: str) -> list[tuple[int, ...]]:
    """Shapes of what the forward pass keeps for the backward pass, per layer."""
    from jax._src.ad_checkpoint import saved_residuals

    graphdef, params = built("compute.scan_layers=false", f"compute.remat={remat}")
    kept = saved_residuals(lambda p: jnp.sum(nnx.merge(graphdef, p)(TOKENS, *ONE)), params)
    return [aval.shape for aval, source in kept if "argument" not in source]


def test_remat_keeps_less():
    sizes = {remat: sum(map(np.prod, saved_shapes(remat))) for remat in ("none", "attention", "dots", "full")}
    assert sizes["none"] > sizes["attention"] > sizes["full"]
    assert sizes["none"] > sizes["dots"] > sizes["full"]
    weights = (1, 4, 1, T, T)
    assert weights in saved_shapes("none")
    assert weights not in saved_shapes("attention")


def test_offload_moves_block_inputs_to_the_host():
    graphdef, params = built("compute.remat=offload", "compute.scan_layers=false")
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p)(TOKENS, *ONE))))(params)
    text = str(jaxpr)
    assert "block_input" in text
    assert "host" in text.lower()


@pytest.mark.parametrize("activation", ["swiglu", "geglu", "gelu", "relu2"])
@pytest.mark.parametrize(
    "others",
    [(), ("model.tie_embeddings=false", "model.n_kv_heads=2", "conditioning={norm: layernorm, qk_norm: true}")],
    ids=["plain", "untied, grouped, layernorm, qk-norm"],
)
def test_parameters_are_as_many_as_counted(activation, others):
    config = tiny(f"model.activation={activation}", *others)
    state = nnx.state(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    sizes = [np.prod(x.shape) for x in jax.tree.leaves(state)]
    assert sum(sizes) == param_count(config.model, config.conditioning, embeddings=True)


def test_every_parameter_names_its_axes():
    config = tiny("model.tie_embeddings=false", "conditioning.norm=layernorm", "conditioning.qk_norm=true")
    state = nnx.state(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    shapes = nnx.to_pure_dict(state)
    axes = logical_axes(state)
    pairs = jax.tree.leaves(jax.tree.map(lambda x, names: [(x.shape, names)], shapes, axes), is_leaf=_is_pair)
    assert len(pairs) == len(jax.tree.leaves(shapes))
    for shape, names in pairs:
        assert len(shape) == len(names)
        assert {name for name in names if name} <= set(LOGICAL_AXES)
    assert axes["blocks"]["attention"]["key"] == ("layers", "embed", "kv_heads", "head")


def _is_pair(x) -> bool:
    return isinstance(x, tuple)


def test_final_soft_cap_bounds_logits():
    graphdef, params = built("conditioning.final_soft_cap=0.05")
    logits = jax.jit(lambda params: nnx.merge(graphdef, params)(TOKENS, *ONE))(params)
    assert np.abs(logits).max() < 0.05


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_matmuls_compute_in_the_dtype_the_policy_says(precision):
    """Read from the jaxpr of forward and backward: operands, not intentions."""
    graphdef, params = built(f"conditioning.precision={precision}", "compute.scan_layers=false")

    def f(params):
        return jnp.sum(nnx.merge(graphdef, params)(TOKENS, *ONE))

    grad_jaxpr = jax.make_jaxpr(jax.grad(f))(params)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert {str(x.dtype) for x in grad_jaxpr.out_avals} == {"float32"}
    forward = list(equations(jax.make_jaxpr(f)(params).jaxpr))
    operands = {str(v.aval.dtype) for e in forward if e.primitive.name == "dot_general" for v in e.invars}
    assert operands == {precision}
    reductions = [e for e in forward if e.primitive.name in ("reduce_sum", "exp", "reduce_max", "rsqrt")]
    assert {str(v.aval.dtype) for e in reductions for v in e.invars} == {"float32"}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                yield from equations(inner.jaxpr)
            elif hasattr(inner, "eqns"):
                yield from equations(inner)
