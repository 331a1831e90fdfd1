import os

import pytest

from blobjax.config import BadInputError, Config, load
from blobjax.config.load import find, shipped


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, text: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return name

    return write_file


def test_an_empty_file_is_all_defaults(write):
    assert load(write("empty.yaml", "")).model == Config().model


def test_the_name_is_the_files_unless_given(write):
    assert load(write("my run!.yaml", "")).name == "my-run-"
    assert load(write("a.yaml", "name: b")).name == "b"
    assert load("a.yaml").logging.run_dir == "runs/b"


@pytest.mark.parametrize("name", shipped())
def test_shipped_names_resolve_from_any_directory(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(name).name == name.rpartition("/")[2]


def test_a_file_goes_before_a_shipped_name(write):
    assert find(write("laptop", "seed: 5")).parent.as_posix() == "."
    assert load("laptop").seed == 5


def test_numbers_as_people_write_them(write):
    config = load(
        write("a.yaml", "optimizer: {learning_rate: 1e-3, epsilon: 1E-9}\nconditioning: {z_loss: 1}\nseed: 1_000")
    )
    assert (config.optimizer.learning_rate, config.optimizer.epsilon) == (1e-3, 1e-9)
    assert config.conditioning.z_loss == 1
    assert config.seed == 1000


def test_overrides_change_one_key_each(write):
    config = load("laptop", ["model.n_layers=12", "data.mixture.bible=0.7", "name=x", "logging.wandb.project=p"])
    assert config.model.n_layers == 12
    assert config.data.mixture == {"shakespeare": 0.6, "bible": 0.7, "mathematics": 0.2}
    assert config.logging.wandb is not None


def test_an_override_may_change_a_weight_of_the_default_mixture(write):
    config = load(write("a.yaml", ""), ["data.mixture.bible=3"])
    assert config.data.mixture == {**Config().data.mixture, "bible": 3}


def test_a_mixture_given_whole_replaces(write):
    assert load("laptop", ["data.mixture={bible: 1}"]).data.mixture == {"bible": 1}
    assert load(write("a.yaml", "include: laptop\ndata: {mixture: {bible: 1}}")).data.mixture == {"bible": 1}


def test_the_last_override_wins():
    assert load("laptop", ["seed=1", "seed=2"]).seed == 2


def test_an_override_may_hold_equal_signs_and_lists():
    config = load("laptop", ["evaluation.sample_prompt='a = b'", "compute.sharding_rules=[[embed, [fsdp, tensor]]]"])
    assert config.evaluation.sample_prompt == "a = b"
    assert config.compute.sharding_rules == (("embed", ("fsdp", "tensor")),)


def test_includes_go_under_the_including_file(write):
    write("deep/base.yaml", "model: {d_model: 128, n_layers: 2}\nseed: 1")
    write("deep/middle.yaml", "include: base.yaml\nmodel: {n_layers: 3}")
    write("other.yaml", "duration: {global_batch_size: 6}")
    config = load(write("top.yaml", "include: [deep/middle.yaml, other.yaml]\nseed: 2"))
    assert (config.model.d_model, config.model.n_layers, config.seed) == (128, 3, 2)
    assert config.duration.global_batch_size == 6


def test_derived_values_stand_in_the_resolved_config():
    model = load("laptop", ["model.n_heads=8", "model.d_ff=0", "model.n_kv_heads=2", "model.activation=swiglu"]).model
    assert (model.n_kv_heads, model.d_head, model.d_ff) == (2, 32, 704)
    assert load("laptop", ["model.d_ff=0", "model.activation=gelu"]).model.d_ff == 1024


def test_one_axis_on_the_rest_needs_no_word_about_data():
    assert load("laptop", ["compute.mesh.fsdp=-1"]).compute.mesh.data == 1
    assert load("laptop").compute.mesh.data == -1


BROKEN = {
    "list at the top": ("- a", "a.yaml: expected keys and values at the top, not list"),
    "not yaml": ("model: [1", "a.yaml:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    "key twice": ("seed: 1\nmodel: {}\nseed: 2", "a.yaml:3: not valid YAML: duplicate key 'seed'"),
    "not text": (b"\xff\xfe\x00", "a.yaml: is not UTF-8 text"),
    "python object": ("a: !!python/name:os.system", "a.yaml:1: not valid YAML: could not determine a constructor"),
    "control character": ("a: \x00", "a.yaml: not valid YAML: unacceptable character #x0000"),
    "endless number": ("seed: " + "9" * 5000, "a.yaml: seed: expected an integer, not '9999"),
    "no digits": ("seed: 0x_", "a.yaml: seed: expected an integer, not '0x_'"),
    "impossible date": ("seed: 2026-13-45", "a.yaml: seed: expected an integer, not '2026-13-45'"),
    "date": (
        "duration:\n  wall_clock_limit: 2026-11-30",
        "a.yaml: duration.wall_clock_limit: expected a duration such as '300 steps', '20M tokens', '2e15 flops', "
        "'20 tokens/param', '3 epochs', '5%' or '10 minutes', not '2026-11-30'",
    ),
    "no key": ("seed: 1\nnull: 2", "a.yaml:2: not valid YAML: a key is nothing (null or ~); write its name"),
    "no key in a mixture": ("data: {mixture: {~: 2}}", "a.yaml:1: not valid YAML: a key is nothing (null or ~)"),
    "truth as a key": ("on: 2", "a.yaml:1: not valid YAML: a key is true or false"),
    "no name": ("name: ~", "a.yaml: name: expected text, not nothing (null); for the word itself quote it"),
    "anchor": ("seed: &s 1", "a.yaml:1: not valid YAML: anchors (&name) are not read; write the keys out, or"),
    "alias": ("seed: *s", "a.yaml:1: not valid YAML: aliases (*name) are not read; write the keys out, or"),
    "merge": ("model:\n  <<: {d_ff: 2}", "a.yaml:2: not valid YAML: merges (<<) are not read; write the keys out, or"),
    "include of null": (
        "include: null",
        "a.yaml: include: expected the path or name of a config, not nothing (null); ",
    ),
    "include of nothing": (
        "include: laptpo",
        "a.yaml: include: config 'laptpo' is neither a file nor a shipped name; did",
    ),
    "include of a number": ("include: 3", "a.yaml: include: expected the path or name of a config, not 3"),
    "include of itself": ("include: a.yaml", "a.yaml: includes itself: a.yaml -> a.yaml"),
}


@pytest.mark.parametrize(("text", "line"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_clear_line(write, text, line):
    with pytest.raises(BadInputError) as caught:
        load(write("a.yaml", text))
    (problem,) = caught.value.problems
    assert problem.startswith(line)
    assert "\n" not in problem


def test_a_cycle_of_includes_is_told_with_its_way(write):
    write("b.yaml", "include: c.yaml")
    write("c.yaml", "include: b.yaml")
    with pytest.raises(BadInputError, match=r"b.yaml -> c.yaml -> b.yaml"):
        load("b.yaml")


def test_a_missing_config_suggests_a_shipped_one():
    with pytest.raises(
        BadInputError, match="config 'laptp' is neither a file nor a shipped name; did you mean 'laptop'"
    ):
        load("laptp")


def test_a_directory_is_no_config(tmp_path):
    with pytest.raises(BadInputError, match="is a directory; give a file in it"):
        load(str(tmp_path))


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_an_unreadable_file(write, tmp_path):
    (tmp_path / write("a.yaml", "")).chmod(0)
    with pytest.raises(BadInputError, match=r"a.yaml: cannot be read: Permission denied"):
        load("a.yaml")
