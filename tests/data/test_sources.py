import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blobjax.config import BadInputError
from blobjax.config.schema import Source
from blobjax.data import sources
from blobjax.data.readers import PASSAGE_BYTES

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
    return list(sources.Documents(Source(**source), "mine", 1 << 20))


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


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("record", [{"id": 2, "text": None}, {"id": 2}], ids=["null", "missing"])
def test_a_row_without_text_stops_preparation_or_is_skipped_and_counted(tmp_path, name, record):
    kind, write = WRITERS[name]
    rows = [{"id": 1, "text": "first"}, record, {"id": 3, "text": "third"}]
    write(tmp_path / name, [json.dumps(row).encode() for row in rows])
    path = str(tmp_path / name)
    line = complaint(kind=kind, path=path)
    assert "2: field 'text' is null" in line.replace("row ", "").replace("record ", "") or "no field 'text'" in line
    assert "data.sources.mine.nulls=skip skips such rows" in line
    documents = sources.Documents(Source(kind=kind, path=path, nulls="skip"), "mine", 1 << 20)
    assert [(d.text, d.number) for d in documents] == [("first", 1), ("third", 3)]
    assert documents.skipped_rows == 1


@pytest.mark.parametrize("name", WRITERS)
def test_a_record_beyond_the_limit_is_named(tmp_path, name):
    kind, write = WRITERS[name]
    fits = {"text": "x" * (2**20 - 200)}
    write(tmp_path / name, [json.dumps(record).encode() for record in (fits, fits, {"text": "é" * 2**19 + "x"})])
    line = complaint(kind=kind, path=str(tmp_path / name))
    assert line.startswith(f"{tmp_path / name}:")
    assert "3: is longer than data.max_document_bytes=1048576; cut it" in line
    assert len(list(sources.Documents(Source(kind=kind, path=str(tmp_path / name)), "mine", 1 << 22))) == 3


# 256 MB of one letter, a few kB packed, in one line or record. Each is read in a process of its own, since the peak of
# a process never falls.
BOMB = 256 << 20
PEAK = """
import resource, sys
from blobjax.config import BadInputError
from blobjax.config.schema import Source
from blobjax.data import sources
def peak():  # bytes of memory at most so far
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
kind, path, small = sys.argv[1:]
list(sources.Documents(Source(kind=kind, path=small), "mine", 1 << 20))  # what importing the libraries takes
before = peak()
try:
    print(sum(len(d.text) for d in sources.Documents(Source(kind=kind, path=path), "mine", 1 << 20)))
except BadInputError as error:
    print(error)
print(peak() - before)
"""


def read_elsewhere(kind: str, path: Path, small: Path) -> tuple[str, int]:
    """What a source holds, or the error, and how many bytes of memory reading it took."""
    command = [sys.executable, "-c", PEAK, kind, str(path), str(small)]
    said, taken = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return said, int(taken)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_decompression_bomb_is_refused_in_bounded_memory(tmp_path, name):
    kind, write = WRITERS[name]
    (tmp_path / "small").mkdir()
    write(tmp_path / "small" / name, [b'{"text": "x"}', b"{}" * 0, b'{"text": "x"}'])
    write(tmp_path / name, [b'{"text": "x"}', b'{"text": "' + b"a" * BOMB + b'"}'])
    said, taken = read_elsewhere(kind, tmp_path / name, tmp_path / "small" / name)
    assert said.startswith(f"{tmp_path / name}:2: is longer than data.max_document_bytes=1048576")
    # 1 MiB is the limit, 32 MiB the most that zstd makes of one step.
    assert taken < 64 << 20


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_a_compressed_text_of_any_length_is_read_in_bounded_memory(tmp_path, name):
    write = {"a.txt.gz": write_gzip, "a.txt.zst": write_zstd}[name]
    (tmp_path / "small").mkdir()
    write(tmp_path / "small" / name, [b"x"])
    write(tmp_path / name, [b"a" * BOMB])
    said, taken = read_elsewhere("text", tmp_path / name, tmp_path / "small" / name)
    assert int(said) == BOMB + 1
    assert taken < 64 << 20


def test_a_parquet_bomb_is_refused_before_it_is_decompressed(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for name, size in (("small", 1), ("a", BOMB)):
        table = pyarrow.table({"text": ["x", "a" * size]})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet", compression="zstd", use_dictionary=False)
    said, taken = read_elsewhere("parquet", tmp_path / "a.parquet", tmp_path / "small.parquet")
    assert said.startswith(f"{tmp_path / 'a.parquet'}: a text in rows 1 to 2: is longer than data.max_document_bytes=")
    assert taken < 64 << 20


def test_a_text_that_many_parquet_rows_share_is_held_once(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for name, rows in (("small", 1), ("a", 2000)):
        texts = pyarrow.array(["x" * 2**19]).take(pyarrow.array([0] * rows))
        pyarrow.parquet.write_table(pyarrow.table({"text": texts.dictionary_encode()}), tmp_path / f"{name}.parquet")
    said, taken = read_elsewhere("parquet", tmp_path / "a.parquet", tmp_path / "small.parquet")
    assert int(said) == 2000 * 2**19
    assert taken < 64 << 20


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
        (b'{"text": "a", "text": "b"}', "a.jsonl:3: field 'text' is given twice; remove one of them"),
        (b'{"te\\u0078t": "a", "text": null}', "a.jsonl:3: field 'text' is given twice"),
        (b'{"text": "a"}\r{"text": "b"}\r', "a.jsonl:3: its lines end in CR alone, and those of JSONL in LF or CR LF"),
    ],
)
def test_malformed_line_is_numbered(tmp_path, record, message):
    # The empty line is skipped, and counted.
    write_plain(tmp_path / "a.jsonl", [b'{"text": "fine"}', b"", record])
    assert message in complaint(kind="jsonl", path=str(tmp_path / "a.jsonl"))


def test_what_is_not_the_field_may_be_anything(tmp_path):
    digits = b"9" * 5000
    write_plain(
        tmp_path / "a.jsonl", [b'{"id": %b, "text": "one"}\r' % digits, b'{"a": {"text": 1, "text": 2}, "text": "two"}']
    )
    assert [d.text for d in read(kind="jsonl", path=str(tmp_path / "a.jsonl"))] == ["one", "two"]
    write_plain(tmp_path / "a.jsonl", [b'{"text": %b}' % digits])
    assert "a.jsonl:1: field 'text' is int, not text" in complaint(kind="jsonl", path=str(tmp_path / "a.jsonl"))


def test_a_parquet_column_that_is_there_twice_is_named(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    line = complaint(kind="parquet", path=str(tmp_path / "a.parquet"))
    assert line == f"{tmp_path / 'a.parquet'}: column 'text' is in the schema twice; rename one of them"


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
@pytest.mark.parametrize("make", ["new_file", "new_stream"])
def test_an_arrow_file_is_named_with_what_to_do(tmp_path, kind, make):
    import pyarrow

    table = pyarrow.table({"text": ["a"]})
    with getattr(pyarrow.ipc, make)(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    line = complaint(kind=kind, path=str(tmp_path / "a.arrow"))
    assert "a.arrow: is an Arrow file, which is not read; save the table as Parquet" in line


def test_malformed_array_record(tmp_path):
    write_array_record(tmp_path / "a.array_record", [b'{"text": "fine"}', b"{oops"])
    assert "record 2: not JSON" in complaint(kind="array_record", path=str(tmp_path / "a.array_record"))


TEXT_WRITERS = {
    "a.txt": lambda path, content: path.write_bytes(content),
    "a.txt.gz": lambda path, content: path.write_bytes(gzip.compress(content)),
    "a.txt.zst": lambda path, content: write_zstd(path, [content, b"", b""]),
    "A.TXT.GZ": lambda path, content: path.write_bytes(gzip.compress(content)),
}


@pytest.mark.parametrize("name", TEXT_WRITERS)
def test_text_files_may_be_compressed_and_may_begin_with_a_byte_order_mark(tmp_path, name):
    text = "paragraph of some words\n\n" * 5000
    TEXT_WRITERS[name](tmp_path / name, b"\xef\xbb\xbf" + text.encode())
    found = read(path=str(tmp_path / name))
    assert len(found) > 1
    assert "".join(document.text for document in found).rstrip() == text.rstrip()
    assert 0 < found[-1].done <= (tmp_path / name).stat().st_size
    TEXT_WRITERS[name](tmp_path / name, b"\xef\xbb\xbfcaf\xe9")
    assert f"{name}: byte 6 is not UTF-8 text" in complaint(path=str(tmp_path / name))


@pytest.mark.parametrize("name", list(TEXT_WRITERS)[1:])
def test_a_damaged_compressed_text_is_named(tmp_path, name):
    path = tmp_path / name
    TEXT_WRITERS[name](path, "".join(f"{i} {hash(i * 7919)}\n" for i in range(20_000)).encode())
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"garbage" * 1000):
        path.write_bytes(content)
        assert complaint(path=str(path)).startswith(f"{path}: ")


@pytest.mark.parametrize("name", list(WRITERS)[:3])
def test_a_byte_order_mark_before_the_first_line_is_no_text(tmp_path, name):
    kind, write = WRITERS[name]
    write(tmp_path / name, [b'\xef\xbb\xbf{"text": "one"}', b'{"text": "\xef\xbb\xbftwo"}', b""])
    assert [d.text for d in read(kind=kind, path=str(tmp_path / name))] == ["one", "\ufefftwo"]


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
    assert max(sizes) <= 5 * PASSAGE_BYTES
    if "\n\n" in text:
        assert all(document.text.endswith("\n\n") for document in found)
        assert max(sizes) < 1.1 * PASSAGE_BYTES


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
    first = next(iter(sources.Documents(sources.resolve(config, "plays"), "plays", 1 << 20)))
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
