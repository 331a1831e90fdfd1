"""Input far too large, or a file that is no config: one short line each, which shows no content of such a file."""

import subprocess
import sys

import pytest

from blobjax.config import BadInputError, load
from blobjax.config.errors import brief

pytestmark = pytest.mark.smoke

HUGE = "0x" + "f" * 5000
LONG = "x" * 2_000_000


def problems(*overrides: str, name: str = "laptop") -> tuple[str, ...]:
    with pytest.raises(BadInputError) as caught:
        load(name, overrides)
    return caught.value.problems


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (f"seed={HUGE}", "override: seed: expected less than 4294967296, not a number of thousands of digits"),
        (f"model.n_layers={HUGE}", "override: model.n_layers: expected at most 2147483647, not a number of thousands"),
        (f"optimizer.learning_rate={HUGE}", "override: optimizer.learning_rate: expected a"),
        (f"data.mixture.bible={HUGE}", "override: data.mixture.bible: expected a"),
        (f"duration.length={HUGE}", "override: duration.length: expected a duration such as '300 steps'"),
        (f"data={{tokenizer: [{HUGE}]}}", "override: data.tokenizer: expected text, not a list"),
        (f"compute.mesh={HUGE}", "override: compute.mesh: expected keys and values, not a number of thousands"),
        (f"seed={'9' * 5000}", "override: seed: expected an integer, not '999"),
        (f"duration.length={'9' * 100_000} steps", "override: duration.length: expected a duration such as"),
        (f"duration.length={LONG[:1_000_000]}", "override: duration.length: expected a duration such as"),
        (f"seed={LONG[:1_000_000]}", "override: seed: expected an integer, not 'xxxxx"),
        (f"name={LONG}", "override name: the value has 2.0 MB; at most 1 MB is read"),
        (LONG, "override 'xxxxx"),
        (f"{LONG}=1", "override: xxxxx"),
        (f"data.mixture={{{LONG[:1000]}: 1}}", "data.mixture: a domain's name has at most 100 letters"),
        ("data.mixture={'$\\frac{$': 1}", "data.mixture: a domain's name has at most 100 letters"),
        ("data.mixture={'../up': 1}", "data.mixture: a domain's name has at most 100 letters"),
        ('data.mixture={"\\ud800": 1}', "override: data.mixture.\\ud800"),
    ],
    ids=lambda value: value[:40],
)
def test_a_value_beyond_all_measure_is_one_short_line(override, says):
    (line,) = problems(override)
    assert says in line
    assert "\n" not in line
    assert len(line) <= 4000
    line.encode()  # can be printed


NOT_UTF8 = "expected text, not bytes or half a character that UTF-8 cannot hold; write it in UTF-8"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("evaluation.sample_prompt=a\udcff", "evaluation.sample_prompt"),
        ('evaluation={sample_prompt: "a\\ud800"}', "evaluation.sample_prompt"),
        ("name=\udcff", "name"),
        ("logging.wandb.project=\udcff", "logging.wandb.project"),
        ("data.sources.web.path=\udcff/x", "data.sources.web.path"),
        ("logging.run_dir=gs://\udcff", "logging.run_dir"),
        ('duration={length: "\\ud800"}', "duration.length"),
        ('duration.start_from="\\ud800@5%"', "duration.start_from"),
        ('compute.xla_flags=["\\ud800"]', "compute.xla_flags.0"),
        ('conditioning.precision_overrides={"\\ud800": int8}', "conditioning.precision_overrides.\\ud800"),
        ("data.sources.\udcff.path=x", "data.sources.\\udcff"),
        ("\udcff=1", "\\udcff"),
    ],
)
def test_a_text_that_is_not_utf8_is_one_line_with_its_key(override, key):
    (line,) = problems(override)
    assert line == f"override: {key}: {NOT_UTF8}"


def test_a_text_that_is_not_utf8_in_a_file(tmp_path):
    (tmp_path / "a.yaml").write_text('evaluation: {sample_prompt: "a\\ud800"}\nseed: -1\n"\\ud800": 1\n')
    lines = problems(name=str(tmp_path / "a.yaml"))
    assert f"{tmp_path / 'a.yaml'}: evaluation.sample_prompt: {NOT_UTF8}" in lines
    assert f"{tmp_path / 'a.yaml'}: seed: expected at least 0, not -1" in lines
    assert all(line.isprintable() and line.encode() for line in lines)


@pytest.mark.parametrize(
    "override", [b"evaluation.sample_prompt=a\xff", b"\xff=1", b"data.sources.\xff.path=x", b"seed=\xff", b"\xff"]
)
def test_bytes_on_the_command_line_end_with_one_line(override):
    command = [sys.executable, "-m", "blobjax.cli", "config", "show", "laptop", override]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.decode().splitlines()) == 1


def test_a_file_of_20_megabytes_is_not_parsed(tmp_path):
    (tmp_path / "big.yaml").write_text(f"name: '{'x' * 20_000_000}'\n")
    (line,) = problems(name=str(tmp_path / "big.yaml"))
    assert line == f"{tmp_path / 'big.yaml'}: has 20.0 MB; a config has at most 1 MB"


# What lies in files that a config must not be able to show.
FOREIGN = {
    "shadow": "root:$6$secret$hash:19700:0:99999:7:::\ndaemon:*:19700:0:99999:7:::\n",
    "passwd": "root:x:0:0:secret:/root:/bin/bash\nnobody:x:1:1:secret:/:/bin/false\n",
    "environment": "TOKEN=secret\nPASSWORD=secret\n",
    "credentials": "github.com:\n  oauth_token: secret\n",
    "json": '{"auths": {"secret": {"auth": "secret"}}}',
    "a name among them": "name: web\nservices: secret\nsecret: {image: secret}\n",
    "half a config": "name: 'secret value'\ndata: secret\nmodel: secret\n",
    "a config's texts": "name: web\ndata: {tokenizer: 'gs://secret'}\n",
    "an origin": "name: web\nduration: {start_from: ' gs://secret@5%'}\n",
    "a metric": "name: web\ncheckpoint: {keep_best: {metric: 'sec''secret'}}\n",
    "a duration": "name: web\nduration: {length: 'secret, not secret'}\n",
    "a duration in a list": "name: web\ncheckpoint: {every: [1 steps, 'not secret, not secret']}\n",
    "an origin without a point": "duration: {start_from: secret}\n",
    "a choice": "conditioning: {precision: secret}\n",
    "includes": "include: [secret]\n",
    "includes a map": "include: {secret: secret}\n",
    "includes quotes": "include: a'secret'\n",
    "a URL in a source": "data: {sources: {my-web: {kind: text, path: 'gs://secret'}}}\n",
    "an apostrophe": "name: a\na'secret1: b\na'secret1: c\n",
    "a long tag": f"name: !<{'secret' * 1000}> a\n",
    "twice": "name: web\nsecret: 1\nsecret: 2\n",
    "a tag": "name: !secret x\n",
    "a number that is none": "seed: 0b\nname: 0x_\n'secret': 1\nsecret : 0b",
    "colons": "user: secret: more\n",
    "colons in a list": "- user: 'secret: more secret: x\n",
    "broken": "secret: {\nsecret: ]\n",
    "binary": "\x00secret",
    "a list": "- secret\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_an_error_shows_nothing_of_a_file_that_is_included_and_is_no_config(tmp_path, content):
    foreign = tmp_path / "foreign"
    foreign.write_text(content)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.yaml").write_text("include: ../foreign\n")
    for line in problems(name=str(tmp_path / "deep" / "a.yaml")):
        assert "foreign" in line
        assert "secret" not in line
        assert "\n" not in line


def test_a_wrong_value_of_an_included_file_is_not_shown_and_that_of_an_override_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("include: laptop\nname: web\ndata: secret\nduration: {length: secret}\n")
    (tmp_path / "a.yaml").write_text("include: base.yaml\nseed: -1\n")
    assert problems("model.n_layers=two", name="a.yaml") == (
        "a.yaml: seed: expected at least 0, not -1",
        "override: model.n_layers: expected an integer, not 'two'",
        "base.yaml: data: expected keys and values",
        "base.yaml: duration.length: expected a duration such as '300 steps', '20M tokens', '2e15 flops', "
        "'20 tokens/param', '3 epochs', '5%' or '10 minutes'",
    )


def test_a_slip_in_an_included_config_is_still_shown(tmp_path):
    (tmp_path / "base.yaml").write_text("include: laptop\nmodle: {n_layers: 3}\nduration: {lenght: 3 steps}\n")
    (tmp_path / "a.yaml").write_text("include: base.yaml\n")
    lines = problems(name=str(tmp_path / "a.yaml"))
    assert "modle: unknown key; did you mean 'model'?" in lines[0] + lines[1]
    assert "did you mean 'duration.length'?" in lines[0] + lines[1]


def test_values_are_cut_where_they_are_shown():
    assert brief("short") == "'short'"
    assert brief(12) == "12"
    for value in ("x" * 10**6, list(range(10**5)), 10**5000, "\n" * 100):
        assert len(brief(value)) <= 60
