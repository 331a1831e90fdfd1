"""A key that holds text gets what was written, in a file and in an override, with quotes and without."""

import pytest

from blobjax.config import BadInputError, load
from blobjax.config.load import dump

# Behind `key: ` in a file and behind `key=` on the command line, and what is meant.
PLAIN = {
    ("name", "20261130"): "20261130",
    ("name", "2026-11-30"): "2026-11-30",
    ("name", "no"): "no",
    ("name", "1e5"): "1e5",
    ("name", "010"): "010",
    ("name", "'quoted'"): "quoted",
    ("data.tokenizer", "007"): "007",
    ("logging.run_dir", "="): "=",
    ("evaluation.sample_prompt", "<<"): "<<",
    ("logging.run_dir", "2026"): "2026",
    ("evaluation.sample_prompt", "off"): "off",
    ("evaluation.sample_prompt", '"ROMEO:\\n"'): "ROMEO:\n",
}


def at(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def in_a_file(tmp_path, key, written):
    *sections, last = key.split(".")
    lines = [f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)]
    (tmp_path / "a.yaml").write_text("\n".join([*lines, f"{'  ' * len(sections)}{last}: {written}"]))
    return load(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(("key", "written"), PLAIN)
def test_text_is_what_was_written(key, written, tmp_path):
    meant = PLAIN[key, written]
    assert at(load("laptop", [f"{key}={written}"]), key) == meant
    config = in_a_file(tmp_path, key, written)
    assert at(config, key) == meant
    (tmp_path / "resolved.yaml").write_text(dump(config))
    assert load(str(tmp_path / "resolved.yaml")) == config


@pytest.mark.parametrize("prompt", ["User: ", "ROMEO:", "- a list?", "{braces", "# no comment", "a: b: c", "", "*star"])
def test_an_override_of_a_text_is_not_yaml(prompt):
    assert load("laptop", [f"evaluation.sample_prompt={prompt}"]).evaluation.sample_prompt == prompt


@pytest.mark.parametrize("written", ["null", "~", " null "])
@pytest.mark.parametrize("key", ["name", "compute.compilation_cache", "data.sources.web.path"])
def test_nothing_for_a_text_that_cannot_be_nothing_is_a_line(key, written):
    with pytest.raises(BadInputError) as refused:
        load("laptop", [f"{key}={written}"])
    quoted = f"{key}='{written.strip()}'"
    line = f'override: {key}: expected text, not nothing (null); for the word itself quote it: "{quoted}"'
    assert refused.value.problems == (line,)


def test_null_is_a_word_in_quotes_and_nothing_where_that_can_be(tmp_path):
    config = load("laptop", ["name='null'", "logging.wandb.project='~'", "logging.wandb.entity=null"])
    assert (config.name, config.logging.wandb.project, config.logging.wandb.entity) == ("null", "~", None)
    with pytest.raises(BadInputError, match=r"name: expected text, not nothing \(null\).* quote it: name: 'null'$"):
        in_a_file(tmp_path, "name", "null")
    assert in_a_file(tmp_path, "name", "'null'").name == "null"


def test_quotes_that_do_not_match_are_a_line():
    with pytest.raises(BadInputError) as refused:
        load("laptop", ["name='quo", "seed=-1"])
    assert refused.value.problems == (
        "override name: the quotes do not match in 'quo",
        "override: seed: expected at least 0, not -1",
    )


@pytest.mark.parametrize(
    ("line", "write"),
    [("sample_prompt: User: ", "'User:'"), ("sample_prompt: ROMEO: it's", "'ROMEO: it''s'")],
)
def test_a_value_in_a_file_that_needs_quotes_says_what_to_write(line, write, tmp_path):
    (tmp_path / "a.yaml").write_text(f"evaluation:\n  {line}\n")
    with pytest.raises(BadInputError) as refused:
        load(str(tmp_path / "a.yaml"))
    expected = f"a.yaml:2: not valid YAML: a value that holds ': ' needs quotes; write sample_prompt: {write}"
    assert refused.value.problems[0].endswith(expected)
    (tmp_path / "a.yaml").write_text(f"evaluation:\n  sample_prompt: {write}\n")
    assert load(str(tmp_path / "a.yaml")).evaluation.sample_prompt


@pytest.mark.parametrize(
    ("written", "write"),
    [
        ("{sample_prompt: User: }", "'User:'"),
        ("{sample_prompt: ROMEO:}", "'ROMEO:'"),
        ("{every: 10%, sample_prompt: a: b, tokens: 3}", "'a: b'"),
        ("{tokens: 3, sample_prompt: its: so}", "'its: so'"),
    ],
)
def test_nor_does_one_between_braces_go_without(written, write, tmp_path):
    says = f"not valid YAML: a value that holds ': ' needs quotes; write sample_prompt: {write}"
    with pytest.raises(BadInputError) as refused:
        load("laptop", [f"evaluation={written}"])
    assert refused.value.problems == (f"override evaluation:1: {says}",)
    (tmp_path / "a.yaml").write_text(f"name: a\nevaluation: {written}\n")
    with pytest.raises(BadInputError) as refused:
        load(str(tmp_path / "a.yaml"))
    assert refused.value.problems == (f"{tmp_path / 'a.yaml'}:2: {says}",)
    assert load("laptop", [f"evaluation={{sample_prompt: {write}}}"]).evaluation.sample_prompt


def test_signs_that_yaml_gives_a_meaning_are_text_and_no_numbers(tmp_path):
    with pytest.raises(BadInputError) as refused:
        load("laptop", ["seed==", "data.seq_len=<<"])
    assert refused.value.problems == (
        "override: seed: expected an integer, not '='",
        "override: data.seq_len: expected an integer, not '<<'",
    )
    with pytest.raises(BadInputError, match=r"merges \(<<\) are not read"):
        load("laptop", ["data.mixture={<<: {bible: 1}}"])


@pytest.mark.parametrize("value", ["!!bool secret", "!!timestamp x", "!!set [a]", "!!float "])
def test_a_tag_that_does_not_fit_is_a_line(value):
    with pytest.raises(BadInputError, match=r"^override seed: not valid YAML: a value does not fit its tag"):
        load("laptop", [f"seed={value}"])


def test_numbers_are_what_people_mean():
    config = load("laptop", ["seed=010", "optimizer.learning_rate=1e-3", "duration.global_batch_size=0x10"])
    assert (config.seed, config.optimizer.learning_rate, config.duration.global_batch_size) == (10, 1e-3, 16)
    with pytest.raises(BadInputError, match=r"not '1:30:00'; write '90 minutes'$"):
        load("laptop", ["duration.wall_clock_limit=1:30:00"])


def test_true_and_false_by_all_their_names():
    assert load("laptop", ["model.tie_embeddings=no"]).model.tie_embeddings is False
    assert load("laptop", ["compute.scan_layers=on"]).compute.scan_layers is True


def test_text_inside_sections_lists_and_free_names(tmp_path):
    config = load(
        "laptop",
        [
            "data.sources.2026={kind: text, path: 1e3}",
            "data.sources.no.path=2026-11-30",
            "data.sources.no.kind=text",
            "data.mixture={2026: 1, no: 2, bible: 1}",
            "compute.sharding_rules=[[embed, null], [heads, [data, no]]]",
            "logging.wandb={project: 7, entity: null}",
        ],
    )
    assert {name: source.path for name, source in config.data.sources.items()} == {"2026": "1e3", "no": "2026-11-30"}
    assert config.data.mixture == {"2026": 1, "no": 2, "bible": 1}
    assert config.compute.sharding_rules == (("embed", None), ("heads", ("data", "no")))
    assert (config.logging.wandb.project, config.logging.wandb.entity) == ("7", None)


def test_everything_wrong_is_reported_together(tmp_path):
    """A bad size, a bad override, a wrong type and what does not fit together."""
    with pytest.raises(BadInputError) as refused:
        load("laptop", ["nonsense", "seed=-1", "data.seq_len=2048"], size="huge")
    starts = ["override 'nonsense'", "size 'huge'", "override: seed:", "override, configs/laptop.yaml: data.seq_len"]
    assert [line.startswith(start) for line, start in zip(refused.value.problems, starts, strict=True)] == [True] * 4
