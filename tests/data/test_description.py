import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from blobjax.data import describe, prepare, render


def test_describes_what_is_there(corpus):
    config, prepared = corpus
    described = {d.domain: d for d in describe(config, prepared, sequences=1000)}
    assert list(described) == list(config.data.mixture)
    plays = described["shakespeare"]
    assert (plays.documents, plays.bytes, plays.tokens) == (170, 994_486, 994_656)
    assert plays.weight == pytest.approx(0.6)
    tokens = prepared.domains["shakespeare"].manifest["shards"]["train"]["tokens"]
    assert plays.epochs == 600 / ((tokens - 1) // 64)
    assert 0.03 < plays.held_out < 0.07
    assert "\0" not in plays.sample
    assert plays.notes == []
    assert plays.overlap.documents == 9
    assert described["mathematics"].overlap.shared > 10 * plays.overlap.shared
    assert described["jargon"].weight == described["jargon"].epochs == 0
    assert describe(config, prepared)[0].epochs is None


def test_renders_a_line_a_domain(corpus):
    config, prepared = corpus
    console = Console(file=io.StringIO(), width=80)
    console.print(render(describe(config, prepared, sequences=1000)))
    text = " ".join(console.file.getvalue().split())
    for expected in (
        "B/token",
        "shakespeare ",
        "60.0%",
        "994,656",
        "0.04",
        "shakespeare (embedded): Romeo and Juliet.",
        "of the shingles are in training text too",
        "near-duplicates: 0 of 9 documents",
    ):
        assert expected in text
    assert "…" not in text


def test_a_long_name_is_whole_and_a_sample_shows_where_a_document_ends(make_config, write_jsonl):
    name = "a-domain-whose-name-is-longer-than-what-is-left-of-eighty-columns"
    path = write_jsonl("text.jsonl", [f"document {i}" for i in range(40)])
    config = make_config(
        mixture={name: 1}, sources={name: {"kind": "jsonl", "path": str(path)}}, held_out_fraction=0.5, seq_len=8
    )
    described = describe(config, prepare(config), sequences=10)
    first, second, *_ = described[0].sample.split(" | ")
    assert re.fullmatch(r"document \d+", first)
    assert re.fullmatch(r"document \d+", second)
    console = Console(file=io.StringIO(), width=80)
    console.print(render(described))
    table, _, _ = console.file.getvalue().partition(f"({described[0].kind} ")
    assert name in "".join(line.split(" ")[0] for line in table.splitlines() if line[:1].strip())


def test_preparing_tells_of_itself_where_there_is_no_terminal(tmp_path):
    program = (
        "import sys; from blobjax.config import Config; from blobjax.data import prepare, show_progress\n"
        "config = Config.model_validate({'data': {'prepared_dir': sys.argv[1]}})\n"
        "with show_progress() as progress: prepare(config, progress)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("prepared shakespeare: 1.0 MB in ")
    assert done.stderr.count("\n") == 1


def test_importing_the_room_imports_neither_jax_nor_grain():
    program = (
        "import sys, blobjax.data; print({'jax', 'grain', 'pyarrow', 'tokenizers', 'zstandard'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
