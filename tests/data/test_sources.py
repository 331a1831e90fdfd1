import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from blobjax.config import BadInputError
from blobjax.config.schema import Source
from blobjax.data import sources

pytestmark = pytest.mark.smoke

TEXTS = ["First document.\n", "second, with ü and 日本", "", "fourth\nof\nmany lines"]


def write_plain(path: Path, records: list[bytes]) -> None:
    path.write_bytes(b"".join(record + b"\n" for record in records))


def write_gzip(path: Path, records: list[bytes]) -> None:
    path.write_bytes(gzip.compress(b"".join(record + b"\n" for record in records)))


def write_zstd(path: Path, records: list[bytes]) -> None:
    import zstandard

    # Two frames, as parallel compressors write them.
    frames = [b"".join(record + b"\n" for record in half) for half in (records[:2], records[2:])]
    path.write_bytes(b"".join(zstandard.compress(frame) for frame in frames))


def write_parquet(path: Path, records: list[bytes]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([json.loads(record) for record in records]), path)


def write_array_record(path: Path, records: list[bytes]) -> None:
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


WRITERS: dict[str, tuple[str, Callable[[Path, list[bytes]], None]]] = {
    "a.jsonl": ("jsonl", write_plain),
    "a.jsonl.gz": ("jsonl", write_gzip),
    "a.jsonl.zst": ("jsonl", write_zstd),
    "a.parquet": ("parquet", write_parquet),
    "a.array_record": ("array_record", write_array_record),
}


def read(**source) -> list[sources.Document]:
    return list(sources.documents(Source(**source), "mine"))


def complaint(**source) -> str:
    with pytest.raises(BadInputError) as caught:
        read(**source)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", WRITERS)
def test_records_come_back_in_order(tmp_path, name):
    kind, write = WRITERS[name]
    write(tmp_path / name, [json.dumps({"id": 1, "body": text}).encode() for text in TEXTS])
    found = read(kind=kind, path=str(tmp_path / name), field="body")
    assert [document.text for document in found] == TEXTS
    assert [document.number for document in found] == [1, 2, 3, 4]
    assert 0 < found[-1].done <= (tmp_path / name).stat().st_size


@pytest.mark.parametrize("name", WRITERS)
def test_missing_field_names_the_near_one(tmp_path, name):
    kind, write = WRITERS[name]
    write(tmp_path / name, [b'{"texts": "x"}'])
    line = complaint(kind=kind, path=str(tmp_path / name))
    assert name in line
    assert "no field 'text'; data.sources.mine.field may be one of: texts" in line


@pytest.mark.parametrize("name", WRITERS)
def test_a_number_is_no_text(tmp_path, name):
    kind, write = WRITERS[name]
    write(tmp_path / name, [b'{"text": 5}'])
    assert "field 'text' is int, not text" in complaint(kind=kind, path=str(tmp_path / name))


@pytest.mark.parametrize("name", list(WRITERS)[1:])
def test_damaged_file_is_named(tmp_path, name):
    kind, write = WRITERS[name]
    path = tmp_path / name
    write(path, [json.dumps({"text": f"{i} {hash(i * 7919)} " * 50}).encode() for i in range(300)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert str(path) in complaint(kind=kind, path=str(path))
    path.write_bytes(b"garbage" * 1000)
    assert str(path) in complaint(kind=kind, path=str(path))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"{oops", "a.jsonl:3: not JSON"),
        (b"[" * 100_000, "a.jsonl:3: not JSON"),
        (b'["x"]', "a.jsonl:3: expected a JSON object"),
        (b"\xff", "a.jsonl:3"),
    ],
)
def test_malformed_line_is_numbered(tmp_path, record, message):
    # The empty line is skipped, and counted.
    write_plain(tmp_path / "a.jsonl", [b'{"text": "fine"}', b"", record])
    assert message in complaint(kind="jsonl", path=str(tmp_path / "a.jsonl"))


def test_malformed_array_record(tmp_path):
    write_array_record(tmp_path / "a.array_record", [b'{"text": "fine"}', b"{oops"])
    assert "record 2: not JSON" in complaint(kind="array_record", path=str(tmp_path / "a.array_record"))


def test_text_files_of_a_glob_are_documents(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "deep" / "c.txt").write_text("three")
    assert [d.text for d in read(path=str(tmp_path / "*.txt"))] == ["one", "two"]
    assert [d.text for d in read(path=str(tmp_path / "**" / "*.txt"))] == ["one", "two", "three"]


def test_a_name_with_brackets_is_no_glob(tmp_path):
    (tmp_path / "a[1].txt").write_text("literal")
    assert [d.text for d in read(path=str(tmp_path / "a[1].txt"))] == ["literal"]


@pytest.mark.parametrize(
    "text",
    [
        "paragraph of some words\nand a second line\n\n" * 5000,
        "only lines\n" * 20_000,
        "日本語é" * 60_000,
        "no end " * 50_000,
    ],
    ids=["paragraphs", "lines", "wide characters", "one line"],
)
def test_a_long_text_is_cut_into_passages_without_loss(tmp_path, text):
    (tmp_path / "book.txt").write_text(text)
    found = read(path=str(tmp_path / "book.txt"))
    assert "".join(document.text for document in found) == text
    sizes = [len(document.text.encode()) for document in found]
    assert len(sizes) > 1
    assert max(sizes) <= 5 * sources.PASSAGE_BYTES
    if "\n\n" in text:
        assert all(document.text.endswith("\n\n") for document in found)
        assert max(sizes) < 1.1 * sources.PASSAGE_BYTES


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"x" * 40_000 + b"\n\n" + b"caf\xe9\n")
    assert "latin.txt: byte 40005 is not UTF-8 text" in complaint(path=str(tmp_path / "latin.txt"))


def test_no_match_suggests_the_nearest(tmp_path):
    (tmp_path / "train.jsonl").touch()
    line = complaint(kind="jsonl", path=str(tmp_path / "trian.jsonl"))
    assert "matches no file" in line
    assert f"did you mean '{tmp_path / 'train.jsonl'}'?" in line
    assert "there is nothing in" in complaint(path=str(tmp_path / "nowhere" / "*.txt"))
    assert "is a folder; give the files in it" in complaint(path=str(tmp_path))


def test_unknown_domain_suggests_the_nearest(make_config):
    with pytest.raises(BadInputError, match=r"data.mixture.shakespear: no such domain; did you mean 'shakespeare'\?"):
        sources.resolve(make_config(mixture={"shakespear": 1}), "shakespear")
    with pytest.raises(BadInputError, match=r"data.sources.mine.path is empty; give a file or glob"):
        sources.resolve(make_config(mixture={"mine": 1}, sources={"mine": {}}), "mine")
    config = make_config(mixture={"mine": 1}, sources={"mine": {"kind": "embedded", "path": "quran"}})
    with pytest.raises(BadInputError, match=r"no embedded domain 'quran'; there are: bible, jargon"):
        sources.resolve(config, "mine")


def test_embedded_domain_under_another_name(make_config):
    config = make_config(mixture={"plays": 1}, sources={"plays": {"kind": "embedded", "path": "shakespeare"}})
    first = next(sources.documents(sources.resolve(config, "plays"), "plays"))
    assert first.text.startswith("Romeo and Juliet")


def test_hugging_face_dataset_from_a_folder(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra `huggingface` is not installed")
    raw, saved = tmp_path / "raw", tmp_path / "saved"
    raw.mkdir()
    write_plain(raw / "train.jsonl", [json.dumps({"text": text}).encode() for text in TEXTS])
    datasets.load_dataset(str(raw), cache_dir=str(tmp_path / "cache")).save_to_disk(str(saved))
    assert "cannot be loaded" in complaint(kind="huggingface", path=str(tmp_path / "nothing"))
    for folder in (str(raw), str(saved)):
        assert [d.text for d in read(kind="huggingface", path=folder)] == TEXTS
        assert "no field 'body'" in complaint(kind="huggingface", path=folder, field="body")
        assert "split" in complaint(kind="huggingface", path=folder, split="test")


def test_hugging_face_without_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "pip install 'blobjax[huggingface]'" in complaint(kind="huggingface", path="some/name")
