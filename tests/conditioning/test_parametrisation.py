"""Multipliers worked out by hand from the papers' tables, what they do to a model and its optimizer, and the coordinate
check: what a few steps of training do to a model's activations, at several widths and depths."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.conditioning import parametrisation
from blobjax.config import BadInputError
from blobjax.program.batches import global_batches
from blobjax.program.optimizer import make_optimizer
from blobjax.program.program import make_program
from blobjax.program.state import architecture
from blobjax.training.announcements import warnings
from tests.tiny import tiny

# Four times as wide and as deep as the base of 32 features and 2 layers.
SHAPE = "model={n_layers: 8, d_model: 128, n_heads: 8, n_kv_heads: 8, d_head: 16, d_ff: 512, tie_embeddings: false}"
MUP = "conditioning.parametrisation={kind: mup, base_width: 32}"
COMPLETEP = "conditioning.parametrisation={kind: completep, base_width: 32, base_depth: 2}"

AXES = {
    "embedding": ("vocab", "embed"),
    "query": ("layers", "embed", "heads", "head"),
    "key": ("layers", "embed", "kv_heads", "head"),
    "out": ("layers", "heads", "head", "embed"),
    "up": ("layers", "embed", "mlp"),
    "down": ("layers", "mlp", "embed"),
    "gain": ("layers", None),
    "final_gain": (None,),
    "unembedding": ("embed", "vocab"),
}
HIDDEN = {"query", "key", "out", "up", "down"}
IN_BLOCKS = {*HIDDEN, "gain"}


def by_name(value, names, otherwise):
    return {name: value if name in names else otherwise for name in AXES}


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
def test_standard_multiplies_by_one(optimizer):
    config = tiny(SHAPE, f"optimizer.name={optimizer}")
    assert parametrisation.learning_rates(config, AXES) == by_name(1, (), 1)
    assert parametrisation.epsilons(config, AXES) == by_name(1, (), 1)
    assert parametrisation.attention_scale(config) == 16**-0.5
    assert parametrisation.into_stream(config) == 16**-0.5
    assert parametrisation.output_deviation(config) == parametrisation.readout(config) == 1
    assert parametrisation.residual(config) == 1


def test_mup_table_8():
    config = tiny(SHAPE, MUP)
    assert parametrisation.learning_rates(config, AXES) == by_name(1 / 4, HIDDEN, 1)
    assert parametrisation.epsilons(config, AXES) == by_name(1, (), 1 / 4)
    assert parametrisation.readout(config) == 1 / 4
    assert parametrisation.output_deviation(config) == 2
    assert parametrisation.residual(config) == 1
    assert parametrisation.into_stream(config) == 1 / 4  # depth is none of its business: 1 / sqrt(2 · 8)
    assert parametrisation.attention_scale(config) == 1 / 4  # width came as more heads of the same 16 features


def test_mup_each_matrix_by_its_own_fan_in():
    config = tiny(SHAPE, MUP, "conditioning.parametrisation.base_d_ff=64")
    wanted = by_name(1 / 4, HIDDEN, 1) | {"down": 1 / 8}
    assert parametrisation.learning_rates(config, AXES) == wanted


def test_mup_attention_scale_falls_as_the_head_grows():
    """sqrt(4) / 16: the 1 / d_head of Yang et al. 2022, section 4, which at a head of 4 is 1 / sqrt(4)."""
    assert parametrisation.attention_scale(tiny(SHAPE, MUP, "conditioning.parametrisation.base_d_head=4")) == 1 / 8


def test_completep_table_1():
    config = tiny(SHAPE, COMPLETEP)
    assert parametrisation.learning_rates(config, AXES) == by_name(1 / 4, HIDDEN, 1)
    assert parametrisation.epsilons(config, AXES) == by_name(1 / 16, IN_BLOCKS, 1 / 4)
    assert parametrisation.residual(config) == 1 / 4
    assert parametrisation.into_stream(config) == 1 / 2  # the base's: 1 / sqrt(2 · 2)
    assert parametrisation.readout(config) == 1 / 4


def test_the_depth_scaled_start_can_be_turned_off():
    for kind in (MUP, COMPLETEP):
        config = tiny(SHAPE, kind, "conditioning.parametrisation.depth_scaled_init=false")
        assert parametrisation.into_stream(config) == 1


def test_muon_keeps_the_spectral_norm_that_moves_features():
    """sqrt(fan_out / fan_in), of a step whose spectral norm is sqrt(max(fan_in, fan_out)).

    down, with base_d_ff 64: sqrt(128 / 512) / sqrt(512) here, sqrt(32 / 64) / sqrt(64) in the base; a quarter.
    """
    config = tiny(SHAPE, MUP, "optimizer.name=muon")
    assert parametrisation.learning_rates(config, AXES) == pytest.approx(by_name(1 / 2, HIDDEN, 1))
    own = tiny(SHAPE, MUP, "optimizer.name=muon", "conditioning.parametrisation.base_d_ff=64")
    assert parametrisation.learning_rates(own, AXES) == pytest.approx(by_name(1 / 2, HIDDEN, 1) | {"down": 1 / 4})


def test_muons_rate_has_no_factor_of_depth_and_the_run_says_that_this_is_not_all():
    deep = tiny(SHAPE, COMPLETEP, "optimizer.name=muon")
    assert parametrisation.learning_rates(deep, AXES) == pytest.approx(by_name(1 / 2, HIDDEN, 1))
    line = "completep was made for AdamW"

    def warned(*overrides: str) -> bool:
        config = tiny(SHAPE, *overrides)
        return line in "".join(warnings(make_program(config, make_layout(config, jax.devices()[:1]), 10_000)))

    assert warned(COMPLETEP, "optimizer.name=muon")
    assert not warned(COMPLETEP)
    assert not warned(COMPLETEP, "optimizer.name=muon", "conditioning.parametrisation.base_depth=8")
    assert not warned(MUP, "optimizer.name=muon")


def test_every_parameter_has_a_place_in_the_table():
    config = tiny(SHAPE, "conditioning={qk_norm: true, norm: dyt, norm_placement: peri}", COMPLETEP)
    axes = architecture(config).axes
    rates = parametrisation.learning_rates(config, axes)
    assert {**rates["blocks"]["attention"]} | {**rates["blocks"]["mlp"]} == {
        **{name: 1 / 4 for name in ("query", "key", "value", "out", "gate", "up", "down")},
        **{name: {"gain": 1.0} for name in ("query_norm", "key_norm")},
    }
    assert rates["embedding"] == rates["unembedding"] == 1
    epsilons = parametrisation.epsilons(config, axes)
    assert set(jax.tree.leaves(epsilons.pop("blocks"))) == {1 / 16}
    assert set(jax.tree.leaves(epsilons)) == {1 / 4}


def test_initial_deviations():
    overrides = ("model={n_layers: 4, d_model: 128, n_heads: 8, d_ff: 512, tie_embeddings: false}", COMPLETEP)
    params = make_program(tiny(*overrides), make_layout(tiny(), jax.devices()[:1]), 10_000).init().params
    attention, mlp = params["blocks"]["attention"], params["blocks"]["mlp"]
    # Four standard errors of a standard deviation over the fewest weights, 256 · 128: 4 / sqrt(2 · 32,768).
    for array, variance in (
        (params["embedding"], 0.02**2),
        (params["unembedding"], 1 / 32),
        (attention["query"], 1 / 128),
        (attention["out"], 1 / 128 / 4),
        (mlp["down"], 1 / 512 / 4),
    ):
        assert np.std(array) == pytest.approx(variance**0.5, rel=0.016)


@pytest.mark.parametrize("mode", ["coupled", "independent"])
def test_steps_are_adamw_with_the_tables_rates_epsilons_and_decays(mode):
    """Against a float64 loop with a learning rate, an epsilon and a decay for each parameter."""
    learning_rate, epsilon, decay, beta1, beta2 = 0.01, 0.05, 0.1, 0.9, 0.95
    config = tiny(
        SHAPE,
        COMPLETEP,
        f"optimizer={{learning_rate: {learning_rate}, epsilon: {epsilon}, weight_decay: {decay}, "
        f"weight_decay_mode: {mode}, beta1: {beta1}, beta2: {beta2}}}",
        "conditioning.clip_norm=0",
    )
    optimizer = make_optimizer(config, optax.constant_schedule(learning_rate), AXES)
    rng = np.random.default_rng(0)
    shapes = {name: tuple(rng.integers(2, 5, len(axes))) for name, axes in AXES.items()}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    state = optimizer.init(params)
    slow = {name: np.asarray(p, np.float64) for name, p in params.items()}
    first, second = ({name: np.zeros(shape) for name, shape in shapes.items()} for _ in range(2))
    for t in range(1, 4):
        grads = {name: jnp.asarray(0.1 * rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
        updates, state = optimizer.update(grads, state, params, loss=jnp.float32(0))
        params = optax.apply_updates(params, updates)
        for name in AXES:
            rate = learning_rate / 4 if name in HIDDEN else learning_rate
            weight_decay = 0 if "gain" in name else decay * (4 if name in HIDDEN else 1)
            shrinks = rate * weight_decay if mode == "coupled" else decay * (weight_decay > 0)
            g = np.asarray(grads[name], np.float64)
            first[name] = beta1 * first[name] + (1 - beta1) * g
            second[name] = beta2 * second[name] + (1 - beta2) * g**2
            m, v = first[name] / (1 - beta1**t), second[name] / (1 - beta2**t)
            step = m / (np.sqrt(v) + epsilon / (16 if name in IN_BLOCKS else 4))
            slow[name] = slow[name] - rate * step - shrinks * slow[name]
    for name in AXES:
        # Float32: three steps of some ten roundings each.
        np.testing.assert_allclose(params[name], slow[name], rtol=2e-6, atol=2e-7, err_msg=name)


def test_the_forward_multipliers_are_those_of_weights_multiplied():
    """Of query, of what writes to the stream, and of the output projection, by hand: sqrt(2 / 8), 1 / 2 and 1 / 4."""
    shape = (
        "model={n_layers: 2, d_model: 32, n_heads: 4, d_head: 8, d_ff: 64, tie_embeddings: false}",
        "conditioning.qk_norm=false",
    )
    scaled = "conditioning.parametrisation={kind: completep, base_width: 8, base_depth: 1, base_d_head: 2}"
    arch, plain = architecture(tiny(*shape, scaled)), architecture(tiny(*shape))
    keys = iter(jax.random.split(jax.random.key(0), 100))
    params = jax.tree.map(lambda s: 0.3 * jax.random.normal(next(keys), s.shape), arch.shapes)
    factors = jax.tree.map(lambda s: 1.0, arch.shapes)
    factors["blocks"]["attention"] |= {"query": 0.5, "out": 0.5}
    factors["blocks"]["mlp"] |= {"down": 0.5}
    factors["unembedding"] = 0.25
    tokens = jnp.arange(16)[None] * 7 % 256
    places = jnp.ones_like(tokens), jnp.arange(16)[None]

    def logits(arch, params):
        return jax.jit(lambda params: arch.merge(params)(tokens, *places))(params)

    # All factors are powers of two: only the order of sums may differ.
    wanted = logits(plain, jax.tree.map(lambda p, f: f * p, params, factors))
    np.testing.assert_allclose(logits(arch, params), wanted, rtol=1e-5, atol=1e-6)


def train(*overrides: str, steps: int):
    """Metrics of each step, and the state after the last; the parts of a program that a run has too."""
    config = tiny(*overrides)
    stream = data.open_stream(config, data.prepare(config))
    program = make_program(config, make_layout(config, jax.devices()[:1]), stream.tokens_per_epoch)
    step, state = program.lower_train_step().compile(), program.init()
    batches = global_batches(stream, 0, program.batch_sharding, program.shape_BT)
    metrics = []
    for _ in range(steps):
        state, measured = step(state, next(batches))
        metrics.append(jax.device_get(measured))
    return metrics, state


def test_at_the_base_all_of_it_is_standard_to_the_bit():
    untied = "model.tie_embeddings=false"
    itself = "{kind: completep, base_width: 32, base_depth: 2, base_d_head: 8, base_d_ff: 64}"
    standard, scaled = train(untied, steps=3), train(untied, f"conditioning.parametrisation={itself}", steps=3)
    jax.tree.map(np.testing.assert_array_equal, standard, scaled)


COORDINATES = (
    "optimizer={learning_rate: 0.01, schedule: constant, weight_decay: 0}",
    "duration={length: 5 steps, warmup: 0 steps}",
    "conditioning={probe_every: 1, z_loss: 0, qk_norm: false}",
    "compute.scan_layers=true",
)


def coordinates(width: int, depth: int, kind: str) -> np.ndarray:
    """RMS of the residual stream after the last block, seen by the fifth step, so after four of Adam."""
    heads, d_ff = width // 16, 4 * width
    shape = f"model={{n_layers: {depth}, d_model: {width}, n_heads: {heads}, d_ff: {d_ff}, activation: gelu}}"
    metrics, _ = train(shape, *COORDINATES, f"conditioning.parametrisation={kind}", steps=5)
    return metrics[-1]["flow"]["blocks"]["residual_rms"][-1]


def spread(values) -> float:
    return (max(values) - min(values)) / np.mean(values)


@pytest.fixture(scope="module")
def base():
    return coordinates(64, 2, "{kind: standard}")


def test_coordinate_check_across_widths(base):
    """Seen at 64, 128, 256, 512: µP 7.3, 7.5, 7.3, 7.2; standard 7.3, 18, 48, 199."""
    assert spread([base, *(coordinates(width, 2, "{kind: mup, base_width: 64}") for width in (128, 256))]) < 0.15
    assert coordinates(256, 2, "{kind: standard}") > 2 * base


def test_coordinate_check_across_depths(base):
    """Seen over 2, 4, 8, 16 layers: CompleteP 7.3, 7.8, 6.7, 6.4; standard 7.3, 14, 24, 47."""
    # Two layers are a coarse sum for what is an integral in the limit of many: hence not the 15% of widths.
    assert spread([base, coordinates(64, 8, "{kind: completep, base_width: 64, base_depth: 2}")]) < 0.25
    assert coordinates(64, 8, "{kind: standard}") > 2 * base


@pytest.mark.parametrize(
    ("parametrisation", "line"),
    [
        ("{base_width: 64}", "base_width says what to scale from, and .* standard scales nothing"),
        ("{base_width: 64, base_depth: 2}", "base_width and .*base_depth say what to scale from"),
        ("{kind: mup}", "kind mup needs conditioning.parametrisation.base_width, .* 32 itself if it was this one"),
        ("{kind: completep, base_width: 64}", "kind completep needs conditioning.parametrisation.base_depth"),
        ("{kind: mup, base_width: 64, base_depth: 2}", "kind mup knows no depth; set .*kind=completep"),
        ("{kind: unit}", "expected 'standard', 'mup' or 'completep', not 'unit'"),
        ("{kind: mup, base_width: -1}", "base_width: expected at least 0, not -1"),
    ],
)
def test_refusals(parametrisation, line):
    with pytest.raises(BadInputError, match=line) as caught:
        tiny(f"conditioning.parametrisation={parametrisation}")
    assert len(caught.value.problems) == 1


def test_completep_wants_a_stream_that_is_left_alone():
    with pytest.raises(BadInputError, match="norm_placement post does so after each sum"):
        tiny(COMPLETEP, "conditioning.norm_placement=post")
