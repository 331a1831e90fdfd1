"""Windows, batches and their order. Every claim is checked against `slow_window`, which knows nothing of numpy."""

import itertools
import zlib
from fractions import Fraction

import numpy as np
import pytest

from blobjax.config import BadInputError
from blobjax.data import open_stream, prepare

pytestmark = pytest.mark.smoke

KEYS = {"tokens", "targets", "segments", "positions", "mask", "target_bytes"}


def slow_window(tokens: list[int], separator: int, sizes, mask_documents: bool = True) -> dict[str, list[int]]:
    """One window of T+1 tokens as model input, token by token."""
    rows: dict[str, list[int]] = {key: [] for key in KEYS}
    segment, position = 0, 0
    for index, (token, target) in enumerate(itertools.pairwise(tokens)):
        if index == 0 or (token == separator and mask_documents):
            segment, position = segment + 1, 0
        rows["tokens"].append(token)
        rows["targets"].append(target)
        rows["segments"].append(segment)
        rows["positions"].append(position)
        rows["mask"].append(1)
        rows["target_bytes"].append(int(sizes[target]))
        position += 1
    return rows


@pytest.fixture
def small(make_config, write_jsonl):
    """A domain of short documents, several to a window; returns make(documents, ...) -> stream, and what it reads."""

    def make(documents=150, **data):
        texts = [f"document {i} " + f"word{i} " * (i % 7) for i in range(documents)]
        source = {"kind": "jsonl", "path": str(write_jsonl("small.jsonl", texts))}
        config = make_config(**{"mixture": {"mine": 1}, "sources": {"mine": source}, "held_out_fraction": 0.2, **data})
        prepared = prepare(config)
        return open_stream(config, prepared), prepared

    return make


def take(iterator, n):
    return [dict(batch) for batch in itertools.islice(iterator, n)]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize("mask_documents", [True, False])
def test_windows_against_a_slow_reference(small, mask_documents):
    stream, prepared = small(mask_documents=mask_documents)
    flat = prepared.domains["mine"].tokens("train").tolist()
    windows = (len(flat) - 1) // 32
    batch = stream.sequences(list(range(windows)))
    found = {tuple(row) for row in batch["tokens"].tolist()}
    assert found == {tuple(flat[i * 32 : i * 32 + 32]) for i in range(windows)}
    assert batch["segments"].max() > 2 or not mask_documents
    for row in range(windows):
        tokens = [*batch["tokens"][row].tolist(), int(batch["targets"][row, -1])]
        expected = slow_window(tokens, 0, stream.tokenizer.bytes_per_token, mask_documents)
        for key in KEYS:
            assert batch[key][row].tolist() == expected[key], key


def test_types_and_shapes(small):
    stream, _ = small()
    batch = next(stream.batches(0, np.arange(5), 5))
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        key: ((5, 32), "float32" if key == "mask" else "int32") for key in KEYS
    }


def test_an_epoch_reads_every_window_once_and_the_next_in_another_order(small):
    stream, _ = small()
    windows = stream.tokens_per_epoch // 32
    epochs = [
        [row.tobytes() for row in stream.sequences(list(range(e * windows, (e + 1) * windows)))["tokens"]]
        for e in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == windows
    assert epochs[0] != epochs[1]
    assert stream.epochs(windows) == {"mine": 1.0}
    assert stream.epochs(windows * 5 // 2)["mine"] == pytest.approx(2.5, abs=1 / windows)


def test_batch_does_not_depend_on_who_asks_or_when(corpus):
    config, prepared = corpus
    whole = take(open_stream(config, prepared).batches(0, np.arange(8), 8), 6)
    for prefetch in (1, 7):
        data = config.data.model_copy(update={"prefetch": prefetch})
        stream = open_stream(config.model_copy(update={"data": data}), prepared)
        for parts in ([[0, 1, 2, 3], [4, 5, 6, 7]], [[7, 0], [3], [1, 2, 4, 5, 6]]):
            for rows in parts:
                for full, part in zip(whole, stream.batches(0, np.array(rows), 8), strict=False):
                    assert_equal({key: value[rows] for key, value in full.items()}, part)
        # Resumed after any number of sequences.
        for start in (1, 3, 5):
            assert_equal(whole[start], next(stream.batches(start * 8, np.arange(8), 8)))


def test_another_batch_size_reads_on_in_the_same_order(corpus):
    stream = open_stream(*corpus)
    twelve = np.concatenate([batch["tokens"] for batch in take(stream.batches(24, np.arange(12), 12), 4)])
    sixteen = np.concatenate([batch["tokens"] for batch in take(stream.batches(24, np.arange(16), 16), 3)])
    np.testing.assert_array_equal(twelve, sixteen)


def test_the_iterators_state_is_its_position(corpus):
    stream = open_stream(*corpus)
    iterator = stream.batches(0, np.arange(4), 4)
    take(iterator, 3)
    state = iterator.get_state()
    expected = next(iterator)
    other = stream.batches(0, np.arange(4), 4)
    other.set_state(state)
    assert_equal(expected, next(other))
    assert state["next_index"] == 3


def test_seed_decides_the_order(corpus):
    config, prepared = corpus
    first, again, other = (
        open_stream(config.model_copy(update={"seed": seed}), prepared).sequences(list(range(30))) for seed in (0, 0, 1)
    )
    assert_equal(first, again)
    assert not np.array_equal(first["tokens"], other["tokens"])


def test_mixture_is_exact_and_weight_zero_is_not_trained_on(corpus):
    config, prepared = corpus
    stream = open_stream(config, prepared)
    texts = {name: bytes(domain.tokens("train")) for name, domain in prepared.domains.items()}
    rows = stream.sequences(list(range(100)))["tokens"].astype(np.uint8)
    found = [next(name for name, text in texts.items() if row.tobytes() in text) for row in rows]
    assert {name: found.count(name) for name in texts} == {
        "shakespeare": 60,
        "bible": 20,
        "mathematics": 20,
        "jargon": 0,
    }
    epochs = stream.epochs(100)
    assert set(epochs) == {"shakespeare", "bible", "mathematics"}
    windows = (len(texts["bible"]) - 1) // 64
    assert epochs["bible"] == float(Fraction(20, windows))


def test_held_out_windows_are_disjoint_from_training(corpus):
    config, prepared = corpus
    stream = open_stream(config, prepared)
    for domain in config.data.mixture:
        batch = stream.held_out(domain, 10)
        assert batch["tokens"].shape == (10, 64)
        held_out = bytes(prepared.domains[domain].tokens("held_out"))
        assert all(row.astype(np.uint8).tobytes() in held_out for row in batch["tokens"])
        assert_equal(batch, stream.held_out(domain, 10))


def test_held_out_text_is_scored_whole_and_padding_never(small):
    stream, prepared = small()
    flat = prepared.domains["mine"].tokens("held_out")
    batch = stream.held_out("mine", 10**6)
    assert len(batch["tokens"]) == -(-(len(flat) - 1) // 32)
    assert batch["mask"].sum() == len(flat) - 1
    counted = batch["mask"] == 1
    np.testing.assert_array_equal(batch["targets"][counted], flat[1:])
    assert batch["target_bytes"].sum() == prepared.domains["mine"].manifest["bytes"]["held_out"]
    assert not counted.all()
    for key in KEYS:
        assert not batch[key][~counted].any()
    assert (batch["segments"][counted] > 0).all()


def test_held_out_text_shorter_than_a_window(small):
    stream, prepared = small(documents=50, seq_len=900)
    flat = prepared.domains["mine"].tokens("held_out")
    batch = stream.held_out("mine", 4)
    assert batch["tokens"].shape == (1, 900)
    assert batch["mask"].sum() == len(flat) - 1 < 900


def test_domain_shorter_than_a_sequence(small):
    with pytest.raises(BadInputError, match=r"domain 'mine' has \d+ training tokens, less than one sequence") as caught:
        small(documents=50, seq_len=2048)
    assert len(caught.value.problems) == 1


def test_rows_outside_the_batch(corpus):
    with pytest.raises(ValueError, match="rows 0 to 8 are not all in a batch of 8"):
        open_stream(*corpus).batches(0, np.arange(9), 8)


def test_bpe_stream_counts_bytes(make_config, tmp_path):
    from blobjax.data import train_bpe

    path = tmp_path / "bpe.json"
    config = make_config(vocab_size=500, mixture={"bible": 1}, tokenizer=str(path))
    train_bpe(config, 500, path)
    prepared = prepare(config)
    stream = open_stream(config, prepared)
    batch = stream.sequences([0, 1, 2])
    for targets, size in zip(batch["targets"], batch["target_bytes"], strict=True):
        whole = targets[targets != 0]
        text = stream.tokenizer.decode(whole)
        if "\ufffd" not in text:
            assert size.sum() == len(text.encode())
    assert (
        stream.held_out("bible", 10**6)["target_bytes"].sum() == prepared.domains["bible"].manifest["bytes"]["held_out"]
    )


def test_the_stream_never_changes(corpus):
    """A checkpoint written by an older version goes on with the text it would have had."""
    stream = open_stream(*corpus)
    assert zlib.crc32(np.ascontiguousarray(stream.sequences(list(range(100)))["tokens"]).tobytes()) == GOLDEN


GOLDEN = 3165226194


def seen(stream, sequences) -> set[tuple[int, ...]]:
    return {tuple(row) for row in stream.sequences(list(range(sequences)))["tokens"].tolist()}


def test_a_fraction_of_the_data_is_gone_through_again_and_again(small):
    whole, prepared = small()
    windows = (len(prepared.domains["mine"].tokens("train")) - 1) // 32
    used = round(windows * 0.25)
    part, _ = small(fraction=0.25)
    assert part.tokens_per_epoch == 32 * used
    assert part.epochs(2 * used) == {"mine": 2.0}
    assert len(seen(part, used)) == len(seen(part, 3 * used)) == used
    # Not simply the text's beginning: its windows come from all over it.
    flat = prepared.domains["mine"].tokens("train").tolist()
    places = sorted(i for i in range(windows) if tuple(flat[i * 32 : i * 32 + 32]) in seen(part, used))
    assert places[0] < windows / 4
    assert places[-1] > 3 * windows / 4
    assert whole.tokens_per_epoch == 32 * windows


def test_a_smaller_fraction_lies_within_a_larger_one_whatever_the_seed(small):
    half, _ = small(fraction=0.5)
    tenth, _ = small(fraction=0.1)
    windows = half.tokens_per_epoch // 32
    assert seen(tenth, windows) < seen(half, windows)
