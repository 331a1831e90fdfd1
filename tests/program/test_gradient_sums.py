"""How gradients are summed: over tokens and chunks, and over devices, against float64 and against a float32 model."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from blobjax.compute.sharding import make_layout
from blobjax.conditioning.precision import POLICIES
from blobjax.conditioning.products import Product
from blobjax.objectives import loss, make_objective
from blobjax.program.program import make_program
from blobjax.program.state import architecture
from tests.tiny import tiny

ONE_LAYER = ("model.n_layers=1", "conditioning.z_loss=0")
V, D = 256, 32
# 32,768 tokens, as a step of a small run on a few accelerators has.
B, T = 512, 64


def settings(precision: str, *overrides: str):
    simulated = ("conditioning.simulate=true",) if POLICIES[precision].matmul and precision != "int8" else ()
    return tiny(*ONE_LAYER, f"conditioning.precision={precision}", *simulated, *overrides)


def make_batch(rows: int = B, length: int = T) -> dict[str, jax.Array]:
    # As frequent as the words of a text: the n-th in proportion to 1 / n (Zipf), so that the first is every sixth.
    frequency = 1 / np.arange(1, V + 1)
    tokens = np.random.default_rng(0).choice(V, (rows, length + 1), p=frequency / frequency.sum())
    return {
        "tokens": jnp.asarray(tokens[:, :-1], jnp.int32),
        "targets": jnp.asarray(tokens[:, 1:], jnp.int32),
        "segments": jnp.ones((rows, length), jnp.int32),
        "positions": jnp.tile(jnp.arange(length), (rows, 1)),
        "mask": jnp.ones((rows, length), jnp.float32),
    }


@functools.cache
def weights(tied: bool):
    """Numbers that bfloat16 holds as well; logits that are not all alike, and the same tied and untied."""
    shapes = architecture(settings("float32", "model.tie_embeddings=true")).shapes
    keys = iter(jax.random.split(jax.random.key(0), 100))

    def draw(path, shape):
        if "gain" in jax.tree_util.keystr(path):
            return jnp.ones(shape.shape)
        return (0.2 * jax.random.normal(next(keys), shape.shape)).astype(jnp.bfloat16).astype(jnp.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return params if tied else params | {"unembedding": params["embedding"].T}


def gradients(config, params, batch):
    """The gradient of every parameter, as float32 numbers.

    Of the sum of the tokens' losses: of their mean most would be too small for float16, which is what losses are scaled
    for.
    """
    arch = architecture(config)
    params = jax.tree.map(lambda p, like: p.astype(like.dtype), params, arch.shapes)
    found = jax.jit(jax.grad(lambda p: loss(make_objective(config), arch.merge(p), batch, config, 1.0)[0]))(params)
    return jax.tree.map(lambda g: np.asarray(g, np.float32), found)


@functools.cache
def of_many_tokens(precision: str, tied: bool):
    return gradients(settings(precision, f"model.tie_embeddings={str(tied).lower()}"), weights(tied), make_batch())


def error(got, wanted) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def without_sums(precision: str, batch):
    """The embedding's gradient of the untied model, summed in float64; and that of its output projection.

    With a row of the table for each token of the batch the look-up's gradient has no sum.
    """
    tokens = np.asarray(batch["tokens"]).ravel()
    params = weights(tied=False)
    rows = params | {"embedding": params["embedding"][tokens]}
    apart = batch | {"tokens": jnp.arange(tokens.size, dtype=jnp.int32).reshape(batch["tokens"].shape)}
    found = gradients(settings(precision, "model.tie_embeddings=false"), rows, apart)
    summed = np.zeros((V, D))
    np.add.at(summed, tokens, found["embedding"].astype(np.float64))
    return summed, found["unembedding"].astype(np.float64)


@pytest.mark.parametrize("precision", POLICIES)
def test_the_embedding_gradient_is_summed_in_float32(precision):
    batch = make_batch()
    look_up, head = without_sums(precision, batch)
    for tied, wanted in ((False, look_up), (True, look_up + head.T)):
        got = of_many_tokens(precision, tied)["embedding"]
        # Two programs, which may round an activation differently here and there; parameters in bfloat16 have gradients
        # in bfloat16, rounded once. Summed in bfloat16 the error is 0.27, and 0.18 tied.
        assert error(got, wanted) < 0.005, tied


# By how much of itself rounding to nearest moves a number at most: half of the last binary digit of its significand. Of
# formats with one for activations and another for gradients that of the coarser.
ROUNDING = {
    "float32": 2.0**-24,
    "bfloat16": 2.0**-8,
    "bfloat16_params": 2.0**-8,
    "float16": 2.0**-11,
    # Steps of 1/127 of the largest: a number a sixteenth as large, as most of a tensor is, has eight.
    "int8": 2.0**-4,
    "fp8": 2.0**-3,  # e5m2
    "mxfp8": 2.0**-4,  # e4m3
    "mxfp6": 2.0**-3,  # e3m2
    "mxfp4": 2.0**-2,  # e2m1
    "nvfp4": 2.0**-2,
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("precision", POLICIES)
def test_gradients_are_near_those_of_float32(precision, tied):
    """Of all parameters, the embedding among them.

    The eight products of a layer and the head round two operands each on the way forward, and as many backward: 32.
    Over all significands rounding moves a number by 0.42 of the most that it can (root mean square), and independent
    errors add up as squares: 0.42 sqrt(32) = 2.4 times the most of one. A gradient that is missing has an error of 1.
    """
    got, wanted = of_many_tokens(precision, tied), of_many_tokens("float32", tied)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        assert error(a, b) < 3 * ROUNDING[precision], (jax.tree_util.keystr(path), error(a, b))


REDUCTIONS = ("float32", "compute")


@pytest.mark.parametrize("n_in", [1, 2])
@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16_params", "float16"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_products_gradients_against_float64(reduction, precision, n_in):
    product = Product(settings(precision, f"compute.gradient_reduction={reduction}"), "blocks/attention/out")
    compute, inputs = product.policy.compute, (24,) if n_in == 1 else (4, 6)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((16, 100, *inputs)), compute)
    w = jnp.asarray(rng.standard_normal((*inputs, 10)), jnp.float32)
    g = jnp.asarray(rng.standard_normal((16, 100, 10)), compute)
    y, pull = jax.vjp(lambda x, w: product(x, w, n_in), x, w)
    dx, dw = pull(g)
    assert (y.dtype, dx.dtype, dw.dtype) == (compute, compute, jnp.float32)
    x, w, g = (np.asarray(each.astype(compute), np.float64) for each in (x, w, g))
    # float32: sums of 1,600 products. Otherwise what comes out is rounded once.
    rounded, exact = float(jnp.finfo(compute).eps) / 2, 1e-6
    np.testing.assert_allclose(y.astype(jnp.float32), np.tensordot(x, w, n_in), rtol=rounded, atol=1e-5)
    tolerances = {"rtol": rounded, "atol": 1e-5}
    np.testing.assert_allclose(dx.astype(jnp.float32), np.tensordot(g, w, (2, n_in)), **tolerances)
    wanted = np.tensordot(x, g, ((0, 1), (0, 1)))
    assert (error(dw, wanted) < exact) == (reduction == "float32")
    assert error(dw, wanted) < rounded


def lowered(*overrides: str, devices: int = 1):
    """The train step of a model in bfloat16."""
    config = settings("bfloat16", *overrides)
    return make_program(config, make_layout(config, jax.devices()[:devices]), 10_000).lower_train_step()


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_products_of_a_step_are_the_same_but_for_what_they_round_to(remat):
    """A product with weights remains one that `dots` keeps, and is multiplied as often."""

    def products(reduction: str) -> list[tuple[str, ...]]:
        text = lowered(f"compute.gradient_reduction={reduction}", f"compute.remat={remat}").as_text()
        shapes = r"tensor<[\dx]*x(\w+)>"
        return re.findall(rf"dot_general.*: \({shapes}, {shapes}\) -> {shapes}", text)

    wide, narrow = (products(reduction) for reduction in REDUCTIONS)
    assert len(wide) == len(narrow)
    # Gradients of the seven matrices of a block. That of the output projection is of float32 logits.
    widening = ("bf16", "bf16", "f32")
    assert wide.count(widening) - narrow.count(widening) == 4 + 3


@pytest.fixture
def compiled_anew():
    """What is taken out of the compilation cache is not dumped."""

    def use_cache(enabled: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()  # jax asks once whether there is one, at the first compilation of a process

    before = jax.config.jax_enable_compilation_cache
    use_cache(False)
    yield
    use_cache(before)


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("mesh", ["{data: 8}", "{data: 1, fsdp: 8}"])
def test_gradients_cross_devices_in_float32_or_as_asked(mesh, tmp_path):
    """In the program as it is split over devices. Later XLA's CPU backend widens what has 16 bits, sums included."""

    def reduced(reduction: str) -> list[str]:
        """The formats of all matrices that are summed over devices."""
        dump = {"xla_dump_to": str(tmp_path / reduction), "xla_dump_hlo_pass_re": "spmd-partitioning"}
        options = (f"compute.mesh={mesh}", f"compute.gradient_reduction={reduction}")
        lowered(*options, devices=8).compile(compiler_options={**dump, "xla_dump_hlo_as_text": True})
        (path,) = (tmp_path / reduction).glob("*train_step*after_spmd-partitioning*.txt")
        return re.findall(r" = (\w+)\[\d+,[\d,]*\]\S* all-reduce\(", path.read_text())

    # Of seven matrices of a block, and twice of the table: as embedding and as output projection, whose product is
    # float32.
    assert reduced("float32") == ["f32"] * 9
    assert sorted(reduced("compute")) == ["bf16"] * 7 + ["f32"] * 2


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_float32_head_keeps_its_gradient_in_chunks_too(reduction):
    params, batch = weights(tied=False), make_batch(rows=16)
    options = ("conditioning.float32_head=true", "model.tie_embeddings=false")
    config = settings("bfloat16", *options, f"compute.gradient_reduction={reduction}", "compute.loss_chunk_tokens=128")
    chunked = gradients(config, params, batch)["unembedding"]
    whole = gradients(settings("bfloat16", *options), params, batch)["unembedding"]
    # Sums of 1,024 tokens in another order; rounded to bfloat16 they would differ by 1e-3.
    assert error(chunked, whole) < 1e-5
