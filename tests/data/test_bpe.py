import subprocess
import sys

import pytest

from blobjax.cli.data import data_prepare
from blobjax.config import BadInputError
from blobjax.data import prepare
from blobjax.data.bpe import train_bpe
from blobjax.data.tokenizer import BpeTokenizer


def test_same_text_same_file_in_any_process(make_config, tmp_path):
    config = make_config(mixture={"bible": 1.0})
    assert train_bpe(config, 400, tmp_path / "one.json") == 400
    program = (
        "import sys; from blobjax.config import Config; from blobjax.data import train_bpe;"
        "train_bpe(Config.model_validate_json(sys.argv[1]), 400, sys.argv[2])"
    )
    other = tmp_path / "other.json"
    subprocess.run([sys.executable, "-c", program, config.model_dump_json(), str(other)], check=True)
    assert other.read_bytes() == (tmp_path / "one.json").read_bytes()
    assert BpeTokenizer(str(other)).separator == 0


def test_held_out_words_do_not_shape_the_vocabulary(make_config, write_jsonl, tmp_path):
    from blobjax.data.split import held_out_position

    texts = [f"q{first}{second}z " * 50 for first in "abcdefgh" for second in "klmno"]
    path = write_jsonl("text.jsonl", texts)
    config = make_config(
        mixture={"mine": 1}, sources={"mine": {"kind": "jsonl", "path": str(path)}}, held_out_fraction=0.3
    )
    held_out = {text for text in texts if held_out_position(text) < 0.3}
    train_bpe(config, 2000, tmp_path / "t.json")
    tokenizer = BpeTokenizer(str(tmp_path / "t.json"))
    pieces = {text: len(tokenizer.encode(text)) for text in texts}
    assert held_out
    # A word seen in training merges to one piece each time it stands; one that was held out does not.
    assert max(n for text, n in pieces.items() if text not in held_out) < 60
    assert min(n for text, n in pieces.items() if text in held_out) > 90


def test_prepares_with_what_was_trained(make_config, tmp_path):
    path = tmp_path / "t.json"
    config = make_config(vocab_size=1024, mixture={"bible": 1.0}, tokenizer=str(path))
    train_bpe(config, 1024, path)
    prepared = prepare(config)
    manifest = prepared.domains["bible"].manifest
    for split in ("train", "held_out"):
        tokens = prepared.domains["bible"].tokens(split)
        assert tokens.dtype == "uint16"
        assert prepared.tokenizer.bytes_per_token[tokens].sum() == manifest["bytes"][split]
        assert (tokens == 0).sum() == manifest["documents"][split]
    assert manifest["bytes"]["train"] / manifest["shards"]["train"]["tokens"] > 2


def test_too_small_and_unwritable(make_config, tmp_path):
    config = make_config(mixture={"bible": 1.0})
    with pytest.raises(BadInputError, match="at least 257 ids, not 100"):
        train_bpe(config, 100, tmp_path / "t.json")
    (tmp_path / "file").touch()
    with pytest.raises(BadInputError, match=r"t\.json: cannot be written"):
        train_bpe(config, 300, tmp_path / "file" / "t.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_another_tokenizer_is_not_replaced(make_config, tmp_path):
    config, path = make_config(mixture={"bible": 1.0}), tmp_path / "t.json"
    train_bpe(config, 300, path)
    assert train_bpe(config, 300, path) == 300
    before = path.read_bytes()
    with pytest.raises(BadInputError, match=r"t\.json: is there, and is another tokenizer; give another name"):
        train_bpe(config, 301, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "refused"),
    [("model.d_model=0", "model.d_model"), ("data.held_out_fraction=1e-9", "held_out")],
    ids=["before it is trained", "after it"],
)
def test_a_preparation_that_is_refused_leaves_no_new_tokenizer(tmp_path, setting, refused):
    path = tmp_path / "t.json"
    options = {"train_bpe": 300, "tokenizer_out": str(path)}
    with pytest.raises(BadInputError, match=refused):
        data_prepare("laptop", ["data.mixture={bible: 1}", f"data.prepared_dir={tmp_path}", setting], **options)
    assert not path.exists()
