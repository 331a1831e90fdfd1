import json

import numpy as np
import pytest

from blobjax.config import BadInputError
from blobjax.data.bpe import train_bpe
from blobjax.data.tokenizer import BpeTokenizer, ByteTokenizer, load, token_dtype

TEXTS = [
    "To be, or not to be: that is the question.",
    "naïve café — “quoted” 日本語 🙂🙃 e\u0301",
    "  leading, trailing and\t\ttabs \n\n\n",
    "literally <|sep|> and <|endoftext|>",
    "ﬁ ligature ² and \u00a0 space",
]


@pytest.fixture(scope="module")
def bpe_path(tmp_path_factory):
    from blobjax.config import Config

    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_bpe(Config.model_validate({"data": {"mixture": {"shakespeare": 1}}}), 600, path)
    return path


def changed(path, tmp_path, **keys):
    layout = json.loads(path.read_text())
    for key, value in keys.items():
        layout[key] = {**layout[key], **value} if key == "model" else value
    other = tmp_path / "other.json"
    other.write_text(json.dumps(layout))
    return str(other)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_come_back(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text).tolist() == list(text.encode())


@pytest.mark.parametrize("text", TEXTS)
def test_bpe_pieces_add_up_to_the_bytes(text, bpe_path):
    tokenizer = BpeTokenizer(str(bpe_path))
    ids = tokenizer.encode(text)
    assert tokenizer.bytes_per_token[ids].sum() == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.separator not in ids


def test_every_piece_stands_for_its_bytes(bpe_path):
    """Against the library's own decoder: the bytes of a token are what it adds to a text."""
    tokenizer = BpeTokenizer(str(bpe_path))
    letter = tokenizer.encode("a").tolist()
    for index in range(1, tokenizer.vocab_size):
        # Whole characters only: a lone byte of a longer one decodes to a replacement of another length.
        text = tokenizer.decode([*letter, index])
        if "\ufffd" not in text:
            assert tokenizer.bytes_per_token[index] == len(text.encode()) - 1, index
    assert tokenizer.bytes_per_token[tokenizer.separator] == 0


def test_a_tilde_is_the_home_directory(bpe_path, monkeypatch):
    monkeypatch.setenv("HOME", str(bpe_path.parent))
    assert BpeTokenizer("~/tokenizer.json").vocab_size == BpeTokenizer(str(bpe_path)).vocab_size
    with pytest.raises(BadInputError, match=r"data\.tokenizer '~no-such-user/t\.json'"):
        BpeTokenizer("~no-such-user/t.json")


def test_normaliser_in_the_file_does_not_touch_the_text(bpe_path, tmp_path):
    tokenizer = BpeTokenizer(changed(bpe_path, tmp_path, normalizer={"type": "NFKC"}))
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.bytes_per_token[ids].sum() == len(text.encode())
        assert tokenizer.decode(ids) == text


def test_added_words_count_as_they_are_spelt(bpe_path, tmp_path):
    layout = json.loads(bpe_path.read_text())
    word = {"id": 600, "content": "Romeo—é", "special": False, "single_word": False, "lstrip": False, "rstrip": False}
    added = [*layout["added_tokens"], {**word, "normalized": False}]
    tokenizer = BpeTokenizer(changed(bpe_path, tmp_path, added_tokens=added))
    ids = tokenizer.encode("O Romeo—é, Romeo—é!")
    assert list(ids).count(600) == 2
    assert tokenizer.bytes_per_token[ids].sum() == len("O Romeo—é, Romeo—é!".encode())


def test_ids_that_say_nothing_are_left_out(bpe_path):
    for tokenizer in (ByteTokenizer(), BpeTokenizer(str(bpe_path))):
        ids = [tokenizer.separator, *tokenizer.encode("one"), tokenizer.separator, 5000, *tokenizer.encode("two")]
        assert tokenizer.decode(np.array(ids)) == "onetwo"
        assert tokenizer.decode([]) == ""


def test_nul_is_dropped(bpe_path):
    for tokenizer in (ByteTokenizer(), BpeTokenizer(str(bpe_path))):
        assert tokenizer.encode("a\0b").tolist() == tokenizer.encode("ab").tolist()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "without byte-level pieces"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
            "add_prefix_space",
        ),
        ({"normalizer": {"type": "Lowercase"}}, "normaliser Lowercase"),
        ({"model": {"dropout": 0.1}}, "dropout"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        ({"added_tokens": []}, "no special token to separate documents"),
    ],
)
def test_tokenizers_that_cannot_be_exact_are_refused(bpe_path, tmp_path, keys, message):
    with pytest.raises(BadInputError, match=message) as caught:
        BpeTokenizer(changed(bpe_path, tmp_path, **keys))
    assert len(caught.value.problems) == 1


def test_word_piece_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    path = tmp_path / "wordpiece.json"
    Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(str(path))
    with pytest.raises(BadInputError, match="a WordPiece tokenizer without byte-level pieces"):
        BpeTokenizer(str(path))


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b"\xff\xfe", b'{"model": 3}'])
def test_missing_or_garbage_file(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInputError, match=r"tokenizer\.json") as caught:
        BpeTokenizer(str(path))
    (line,) = caught.value.problems
    assert "\n" not in line


def test_vocabulary_must_fit_the_model(bpe_path, make_config):
    with pytest.raises(BadInputError, match=r"has 600 ids but model.vocab_size is 512; raise it to at least 600"):
        load(make_config(vocab_size=512, tokenizer=str(bpe_path)))
    assert load(make_config(vocab_size=600, tokenizer=str(bpe_path))).vocab_size == 600


def test_narrowest_type():
    assert [token_dtype(n) for n in (256, 257, 1 << 16, (1 << 16) + 1)] == [np.uint8, np.uint16, np.uint16, np.uint32]
