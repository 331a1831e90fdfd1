import random

import numpy as np
import pytest

from blobjax.data import overlap, prepare
from blobjax.data.bpe import train_bpe
from blobjax.data.overlap import Overlap, overlaps
from blobjax.data.split import held_out_position

pytestmark = pytest.mark.smoke
WORDS = 100


def words(seed: int, count: int = WORDS) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh", k=6)) for _ in range(count)]


def documents(held_out: bool, count: int, change) -> list[str]:
    """Documents made from random words, all of which fall into one part of the split."""
    found: list[str] = []
    for seed in range(100_000):
        text = change(seed)
        if (held_out_position(text) < 0.05) == held_out:
            found.append(text)
        if len(found) == count:
            return found
    raise AssertionError


@pytest.fixture
def mixed(make_config, write_jsonl):
    """Ten held-out documents: 3 copied with one word changed, 2 copied by half, 5 that are nowhere else."""
    originals = documents(True, 10, lambda seed: " ".join(words(seed)))
    others = documents(False, 50, lambda seed: " ".join(words(seed + 10**6)))
    near = [
        next(
            changed
            for n in range(10_000)
            if held_out_position(changed := original.replace(original.split()[50], f"other{n}")) >= 0.05
        )
        for original in originals[:3]
    ]
    half = [
        next(
            halved
            for n in range(10_000)
            if held_out_position(halved := " ".join([*original.split()[:54], *words(n + 10**7, 46)])) >= 0.05
        )
        for original in originals[3:5]
    ]
    # In another domain, in capitals and with other punctuation, which a shingle does not see.
    sources = {
        "one": {"kind": "jsonl", "path": str(write_jsonl("one.jsonl", [*originals, *others]))},
        "two": {
            "kind": "jsonl",
            "path": str(
                write_jsonl("two.jsonl", [*documents(True, 2, lambda s: f"{s} two")[:2], *map(str.upper, near), *half])
            ),
        },
    }
    return lambda **data: make_config(mixture={"one": 1, "two": 1}, sources=sources, **data)


def test_near_duplicates_are_counted_by_shingles(mixed):
    config = mixed()
    found = overlaps(config, prepare(config))["one"]
    # 93 shingles a document. One word changed leaves all but the 8 that hold it; the first 54 words hold 47.
    assert found == Overlap(10, 3, pytest.approx((3 * (93 - 8) + 2 * 47) / 930), 1.0)
    # Two is not trained on now: nothing is shared.
    off = config.model_copy(update={"data": config.data.model_copy(update={"mixture": {"one": 1.0, "two": 0.0}})})
    assert overlaps(off, prepare(off))["one"] == Overlap(10, 0, 0.0, 1.0)


def test_the_tokenizer_makes_no_difference(mixed, tmp_path):
    config = mixed()
    train_bpe(config, 300, tmp_path / "bpe.json")
    by_pieces = mixed(tokenizer=str(tmp_path / "bpe.json"), vocab_size=300)
    assert overlaps(by_pieces, prepare(by_pieces)) == overlaps(config, prepare(config))


def test_of_much_text_a_sample_is_compared_and_said_so(mixed, monkeypatch):
    config = mixed()
    prepared = prepare(config)
    monkeypatch.setattr(overlap, "_BLOCK_TOKENS", 256)
    monkeypatch.setattr(overlap, "TRAINING_TOKENS", 1 << 14)
    sampled = overlaps(config, prepared)["one"]
    trained = {name: len(domain.tokens("train")) for name, domain in prepared.domains.items()}
    share = 1 << 13
    assert sampled.compared == pytest.approx(sum(min(n, share) for n in trained.values()) / sum(trained.values()))
    assert sampled.compared < 1
    assert sampled.shared <= overlaps(config, prepared)["one"].shared + 1e-9
    assert overlaps(config, prepared)["one"] == sampled


def test_shingles_of_short_texts_and_of_text_without_spaces():
    hasher = overlap._Hasher()
    assert len(hasher.shingles(" ... ")) == 0
    assert len(hasher.shingles("two words")) == 1
    assert len(hasher.shingles("日本語の文章には空白がない")) == 13 - 8 + 1
    assert np.array_equal(hasher.shingles("Two, WORDS!"), hasher.shingles("two words"))
    assert not np.array_equal(hasher.shingles("words two"), hasher.shingles("two words"))
