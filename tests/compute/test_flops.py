"""The closed forms against the model itself: its parameters, its matrix products one by one, and XLA's own count."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from blobjax.compute.flops import flops_per_token, forward_flops_per_token, param_count
from blobjax.config import Config, load
from blobjax.config.load import shipped
from blobjax.model import Transformer
from blobjax.objectives import loss as loss_of
from blobjax.objectives import make_objective

ROWS = 2
SMALL = ("compute.scan_layers=false", "compute.remat=none", "data.seq_len=128", "model.n_layers=2", "model.d_model=512")
VARIANTS = {
    "gated, tied": ("model.activation=swiglu", "model.d_ff=2048", "model.vocab_size=1024"),
    "plain, untied, layer norms": (
        "model.activation=gelu",
        "model.d_ff=1024",
        "model.tie_embeddings=false",
        "conditioning.norm=layernorm",
        "conditioning.qk_norm=false",
    ),
    "grouped queries, narrow heads": ("model.n_heads=8", "model.n_kv_heads=2", "model.d_head=32"),
}
# Differ from the others in parameters only.
NORMS = {
    "sandwich of layer norms": ("conditioning={norm: layernorm, norm_placement: sandwich}",),
    "peri of dyt": ("conditioning={norm: dyt, norm_placement: peri}",),
    "post": ("conditioning.norm_placement=post",),
    "none, but the embeddings": ("conditioning={norm_placement: none, embedding_norm: true}",),
}


def abstract_model(config: Config) -> tuple:
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))


def loss_and_arguments(config: Config) -> tuple:
    graphdef, params = abstract_model(config)

    objective, total = make_objective(config), ROWS * config.data.seq_len

    def loss(params, batch):
        return loss_of(objective, nnx.merge(graphdef, params), batch, config, total)[0]

    whole = jax.ShapeDtypeStruct((ROWS, config.data.seq_len), jnp.int32)
    batch = dict.fromkeys(("tokens", "targets", "segments", "positions", "target_bytes"), whole)
    return loss, params, {**batch, "mask": jax.ShapeDtypeStruct(whole.shape, jnp.float32)}


def matmul_flops(jaxpr) -> int:
    """FLOPs of every dot_general in a jaxpr, those inside called jaxprs included."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            shared = math.prod(equation.invars[0].aval.shape[dim] for dim in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * shared
        # A scan's body stands once in the jaxpr, unrolled or not, and runs once for every layer.
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(matmul_flops(inner) for inner in jaxprs_in_params(equation.params))
    return total


def masked_flops_per_token(config: Config) -> float:
    """Forward FLOPs that attention over all T keys spends on those the causal mask hides."""
    model, length = config.model, config.data.seq_len
    return model.n_layers * 4 * model.n_heads * model.d_head * (length - (length + 1) / 2)


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_every_matrix_product_is_counted(overrides):
    """Equal to the last FLOP: below 256 tokens attention multiplies the whole square, of which we count the causal
    part; the embedding lookup is no product, forward or backward."""
    config = load("laptop", [*SMALL, *overrides])
    loss, params, batch = loss_and_arguments(config)
    tokens = ROWS * config.data.seq_len
    forward = forward_flops_per_token(config.model, config.data.seq_len) + masked_flops_per_token(config)
    assert matmul_flops(jax.make_jaxpr(loss)(params, batch).jaxpr) == forward * tokens
    assert matmul_flops(jax.make_jaxpr(jax.grad(loss))(params, batch).jaxpr) == 3 * forward * tokens


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_xla_counts_the_same_and_a_little_more(overrides):
    """XLA also counts norms, softmax, rotary embeddings and activations: 0.3 to 2 percent at this width."""
    config = load("laptop", [*SMALL, *overrides])
    loss, params, batch = loss_and_arguments(config)
    counted = jax.jit(jax.value_and_grad(loss)).lower(params, batch).cost_analysis()["flops"]
    tokens = ROWS * config.data.seq_len
    training = flops_per_token(config.model, config.data.seq_len) + 3 * masked_flops_per_token(config)
    assert 1 <= counted / tokens / training < 1.03


def test_attention_is_counted_causally():
    """One token more per sequence costs one key more, averaged over its positions, in both attention products."""
    model = load("laptop").model
    step = forward_flops_per_token(model, 1001) - forward_flops_per_token(model, 1000)
    assert step == pytest.approx(model.n_layers * 4 * model.n_heads * model.d_head / 2)
    first = forward_flops_per_token(model, 1)
    weights = param_count(model, load("laptop").conditioning, embeddings=True)  # tied: the table is the output's
    assert first == pytest.approx(2 * weights, rel=0.01)


def test_a_window_bounds_the_keys():
    model = load("laptop", ["model.sliding_window=4"]).model
    full = load("laptop").model
    keys = (1 + 2 + 3 + 4 * 7) / 10  # ten positions with a window of four
    per_key = model.n_layers * 4 * model.n_heads * model.d_head
    difference = forward_flops_per_token(full, 10) - forward_flops_per_token(model, 10)
    assert difference == pytest.approx(per_key * (11 / 2 - keys))
    assert forward_flops_per_token(model, 3) == forward_flops_per_token(full, 3)


def test_about_six_flops_a_parameter_and_token():
    """Kaplan et al. 2020: C ~ 6 N D where attention is small against the rest, here at 8B and 8192 tokens."""
    config = load("models/llama3-8b")
    params = param_count(config.model, config.conditioning, embeddings=True)
    assert 1 < flops_per_token(config.model, 8192) / (6 * params) < 1.1


@pytest.mark.parametrize("name", shipped())
def test_the_model_has_the_parameters_we_count(name):
    config = load(name)
    _, params = abstract_model(config)
    assert param_count(config.model, config.conditioning, True) == sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize("overrides", [*VARIANTS.values(), *NORMS.values()], ids=[*VARIANTS, *NORMS])
def test_variants_have_the_parameters_we_count(overrides):
    config = load("laptop", [*SMALL, *overrides])
    _, params = abstract_model(config)
    assert param_count(config.model, config.conditioning, True) == sum(x.size for x in jax.tree.leaves(params))


# As published: GPT-3 Small's and Pythia 160M's weights without embeddings (12 * 12 * 768^2); Meta's model cards.
PUBLISHED = {
    "models/1b": 1_235_814_400,
    "models/llama3-8b": 8_030_261_248,
    "models/llama3-70b": 70_553_706_496,
    "models/llama3-405b": 405_853_388_800,
}


@pytest.mark.smoke
@pytest.mark.parametrize(("name", "count"), PUBLISHED.items(), ids=PUBLISHED)
def test_published_parameter_counts(name, count):
    config = load(name)
    assert param_count(config.model, config.conditioning, embeddings=True) == count


@pytest.mark.smoke
def test_125m_is_gpt3_small_without_biases_and_learned_positions():
    """Radford et al.'s and Brown et al.'s small model: 124,439,808 with a table of 50257 rows."""
    config = load("models/125m")
    d, layers = 768, 12
    positions, projection_biases = 1024 * d, layers * (3 * d + d + 4 * d + d)
    smaller_table = (50304 - 50257) * d
    ours = param_count(config.model, config.conditioning, embeddings=True)
    assert ours - smaller_table + positions + projection_biases == 124_439_808
