import hashlib
import json
import random

import numpy as np
import pytest

from blobjax.data import embedded, prepare
from blobjax.data.split import held_out_position, normal_form

pytestmark = pytest.mark.smoke

VARIANTS = {
    "trailing spaces": lambda text: text.replace("\n", "  \n") + " ",
    "carriage returns": lambda text: text.replace("\n", "\r\n"),
    "old line ends": lambda text: text.replace("\n", "\r"),
    "no last line end": lambda text: text.rstrip("\n"),
    "blank lines around": lambda text: f"\n \n{text}\n\n\n",
    "a byte order mark": lambda text: f"\ufeff{text}",
    "decomposed letters": lambda text: text.replace("é", "e\u0301"),
    "a NUL": lambda text: f"\0{text}\0",
}


def texts(count: int) -> list[str]:
    return [f"Document {i}\n  indented, café\n\nend of {i}.\n" for i in range(count)]


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_copies_that_differ_in_what_no_reader_sees_fall_together(change):
    for text in texts(20):
        assert change(text) != text
        assert held_out_position(change(text)) == held_out_position(text)


def test_texts_that_differ_fall_apart():
    base = "one two\n  three\n"
    for other in ("one  two\n  three\n", "one two\nthree\n", "One two\n  three\n", "one two\n\n  three\n", base * 2):
        assert held_out_position(other) != held_out_position(base)


def test_white_space_goes_from_the_ends_of_lines_and_nowhere_else():
    draw = random.Random(0)
    for _ in range(5000):
        text = "".join(draw.choices("ab \t\f\x1f\n\n\u00a0"[: draw.choice((3, 6, 8, 9))], k=draw.randrange(9)))
        assert normal_form(text) == "\n".join(line.rstrip() for line in text.split("\n")).strip("\n") + "\n", repr(text)


def test_a_normal_text_falls_where_its_own_hash_says():
    """Hence the embedded corpus, all of it normal, is split as it was before there was a normal form."""
    for domain in embedded.domains():
        for text in embedded.documents(domain):
            assert normal_form(text) == text
            assert held_out_position(text) == int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def test_no_variant_of_a_held_out_document_is_trained_on(make_config, tmp_path):
    changes = [lambda text: text, *VARIANTS.values()]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": change(text)}) + "\n" for change in changes for text in texts(200)))
    config = make_config(mixture={"mine": 1}, sources={"mine": {"kind": "jsonl", "path": str(path)}})
    prepared = prepare(config)
    split = {}
    for name in ("train", "held_out"):
        tokens = prepared.domains["mine"].tokens(name)
        parts = np.split(tokens, np.flatnonzero(tokens == 0))[1:]
        split[name] = {normal_form(prepared.tokenizer.decode(part)) for part in parts}
    assert split["held_out"]
    assert split["train"] | split["held_out"] == set(texts(200))
    assert not split["train"] & split["held_out"]
