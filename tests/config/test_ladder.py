"""One dial: what follows from a size, against the papers' own figures, and what wins over it."""

import pytest
import yaml

from blobjax.config import BadInputError, dump, load
from blobjax.config.ladder import batch_tokens, dial, parse, shape, weight_decay


@pytest.mark.parametrize(
    ("text", "value"), [("5M", 5e6), ("100k", 1e5), ("1.3B", 1.3e9), (" 70b ", 7e10), (125000000, 1.25e8)]
)
def test_sizes_are_read(text, value):
    assert parse(text) == value


@pytest.mark.parametrize("text", ["", "big", "5 apples", "-5M", "0", "100", "1e20", None, True, "5MM"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(BadInputError, match="expected parameters such as 100k"):
        parse(text)


@pytest.mark.parametrize("size", [14e3, 1e5, 5e6, 1.25e8, 1.3e9, 7e10])
def test_a_shape_has_about_the_parameters_that_were_asked_for(size):
    found = shape(size)
    assert found.params == pytest.approx(size, rel=0.25)
    assert found.d_model % found.n_heads == 0
    assert (found.d_model // found.n_heads) % 2 == 0


def test_gpt3_small_comes_out_as_it_was():
    """85 million parameters without embeddings: 12 layers of 768 (Brown et al. 2020, table 2.1)."""
    assert (shape(85e6).n_layers, shape(85e6).d_model) == (12, 768)


def test_batch_and_decay_by_hand():
    # 1e10 parameters, 1e11 tokens: C = 6e21, and 0.2920 × (6e21)^0.3271.
    assert batch_tokens(1e10, 1e11) == pytest.approx(0.2920 * 10 ** (0.3271 * 21.7781513), rel=1e-6)
    # tau is 1.084 × 20^-0.527 = 0.2236; at a rate of 8e-3 and 1000 steps the decay is 1 / (0.2236 × 8).
    assert weight_decay(1000) == pytest.approx(0.559, rel=1e-3)


def test_the_dial_sets_all_of_it_in_a_config_that_was_of_another_size():
    config = load("laptop", size="5M")
    assert (config.model.n_layers, config.model.d_model, config.model.n_heads, config.model.d_ff) == (5, 320, 5, 1280)
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adamw", 8e-3)
    assert config.conditioning.parametrisation.kind == "completep"
    assert (config.duration.length.amount, config.duration.length.unit) == (20, "tokens/param")
    # 3.3e15 FLOPs are batches of 36,000 tokens: 128 of laptop's sequences of 256.
    assert config.duration.global_batch_size == 128
    # What has nothing to do with the size stays.
    assert config.data.mixture == load("laptop").data.mixture
    assert config.conditioning.qk_norm is True


def test_what_is_given_beside_it_wins():
    given = ["optimizer.learning_rate=1e-3", "model={n_layers: 3, d_model: 96}", "data.seq_len=64"]
    config = load("laptop", given, "100k")
    assert (config.optimizer.learning_rate, config.model.n_layers, config.model.d_model) == (1e-3, 3, 96)
    assert config.duration.global_batch_size * 64 == pytest.approx(batch_tokens(98304, 20 * 98304), rel=0.42)


def test_the_resolved_config_is_an_ordinary_one(tmp_path):
    config = load("laptop", size="5M")
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(str(tmp_path / "config.yaml")) == config
    assert "size" not in yaml.safe_load(dump(config))


def test_bad_input_is_one_line():
    with pytest.raises(BadInputError) as caught:
        load("laptop", ["data.seq_len=many"], "5M")
    assert len(caught.value.problems) == 1
    assert "data.seq_len" in caught.value.problems[0]
    with pytest.raises(BadInputError, match="size: unknown key"):
        load("laptop", ["size=5M"])
    assert dial("5M", 256)["duration.global_batch_size"] == 2 * dial("5M", 512)["duration.global_batch_size"]
