import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from blobjax.config import BadInputError, Config
from blobjax.data import prepare
from blobjax.data.split import held_out_position

pytestmark = pytest.mark.smoke

PREPARE = (
    "import sys; from blobjax.config import Config; from blobjax.data import prepare;"
    "print(prepare(Config.model_validate_json(sys.argv[1])).fingerprint)"
)


def start(config: Config) -> subprocess.Popen:
    command = [sys.executable, "-c", PREPARE, config.model_dump_json()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def mine(path: Path, **more) -> dict:
    return {"mixture": {"mine": 1}, "sources": {"mine": {"kind": "jsonl", "path": str(path)}}, **more}


def texts_of(prepared, domain: str, split: str) -> list[str]:
    """The documents read back from a shard."""
    tokens = prepared.domains[domain].tokens(split)
    starts = np.flatnonzero(tokens == prepared.tokenizer.separator)
    return [prepared.tokenizer.decode(part) for part in np.split(tokens, starts)[1:]]


def left_overs(config: Config) -> list[str]:
    root = Path(config.data.prepared_dir)
    return [path.name for path in root.glob(".*") if path.is_dir()]


def test_documents_come_back_in_order_and_are_counted(make_config, write_jsonl):
    texts = [f"document {i} ü" for i in range(200)]
    written = [*texts[:100], "", "\0", "with\0nul\0s", *texts[100:]]
    config = make_config(**mine(write_jsonl("a.jsonl", written), held_out_fraction=0.2))
    prepared = prepare(config)
    manifest = prepared.domains["mine"].manifest
    clean = [*texts[:100], "withnuls", *texts[100:]]
    for split, is_in in (("train", lambda p: p >= 0.2), ("held_out", lambda p: p < 0.2)):
        expected = [text for text in clean if is_in(held_out_position(text))]
        assert texts_of(prepared, "mine", split) == expected
        assert manifest["documents"][split] == len(expected)
        assert manifest["bytes"][split] == sum(len(text.encode()) for text in expected)
        assert manifest["shards"][split]["tokens"] == manifest["bytes"][split] + len(expected)
    assert (manifest["dropped_nuls"], manifest["empty_documents"]) == (3, 2)


def test_what_is_skipped_is_counted_and_said(make_config, tmp_path):
    rows = [{"text": f"document {i}"} for i in range(100)] + [{"text": None}] * 3
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.mkfifo(tmp_path / "in" / "pipe")
    source = {"kind": "jsonl", "path": str(tmp_path / "in" / "*"), "nulls": "skip"}
    config = make_config(mixture={"mine": 1}, sources={"mine": source})
    pipe = f"1 FIFO ({tmp_path / 'in' / 'pipe'})"
    for _ in range(2):  # prepared, then opened
        assert prepare(config).notes == [
            "domain 'mine': skipped 3 rows whose field 'text' is null or missing",
            f"domain 'mine': skipped what '{source['path']}' matches and is no file: {pipe}",
        ]
    (tmp_path / "in" / "a.jsonl").write_text('{"txt": "x"}\n' * 5)
    assert "holds no text; 5 of its rows have no field 'text'" in complaint(config)


def test_held_out_split_does_not_depend_on_order_or_company(make_config, write_jsonl):
    texts = [f"document {i}" for i in range(300)]
    one = prepare(make_config(**mine(write_jsonl("one.jsonl", texts))))
    other = prepare(make_config(**mine(write_jsonl("other.jsonl", [*texts[::-1], *(f"new {i}" for i in range(99))]))))
    held_out = set(texts_of(one, "mine", "held_out"))
    assert held_out
    assert held_out <= set(texts_of(other, "mine", "held_out"))
    assert not held_out & set(texts_of(other, "mine", "train"))


def test_splits_of_the_embedded_corpus(corpus):
    config, prepared = corpus
    for domain in config.data.mixture:
        train, held_out = (texts_of(prepared, domain, split) for split in ("train", "held_out"))
        assert not set(train) & set(held_out)
        assert 0.02 < len(held_out) / (len(train) + len(held_out)) < 0.1


def test_finished_domains_are_opened_not_written_again(make_config):
    config = make_config(mixture={"bible": 1, "jargon": 1})
    told = []
    first = prepare(config, lambda *report: told.append(report))
    assert {report[0] for report in told} == {"bible", "jargon"}
    assert all(report[1] == report[2] for report in told[-1:])
    before = {domain.folder: domain.folder.stat().st_mtime_ns for domain in first.domains.values()}
    told.clear()
    second = prepare(
        make_config(mixture={"jargon": 2, "bible": 0, "shakespeare": 1}), lambda *report: told.append(report)
    )
    assert {report[0] for report in told} == {"shakespeare"}
    assert all(folder.stat().st_mtime_ns == when for folder, when in before.items())
    assert second.fingerprint != first.fingerprint


def test_whatever_decides_the_tokens_makes_another_folder(make_config, write_jsonl):
    path = write_jsonl("a.jsonl", [f"document {i}" for i in range(100)])
    base = prepare(make_config(**mine(path))).domains["mine"].folder
    assert prepare(make_config(**mine(path), seq_len=8, seed=3)).domains["mine"].folder == base
    assert prepare(make_config(**mine(path), held_out_fraction=0.3)).domains["mine"].folder != base
    write_jsonl("a.jsonl", [f"document {i}" for i in range(101)])
    assert prepare(make_config(**mine(path))).domains["mine"].folder != base


def test_killed_preparation_leaves_nothing_and_the_next_succeeds(make_config, write_jsonl):
    path = write_jsonl("big.jsonl", [f"{i} " + "some words of text " * 50 for i in range(60_000)])
    config = make_config(mixture={"bible": 1, "mine": 1}, sources=mine(path)["sources"])
    process = start(config)
    deadline = time.monotonic() + 30
    # Killed while the second domain is being written, the first being finished.
    while not any("mine" in name for name in left_overs(config)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    root = Path(config.data.prepared_dir)
    assert [path.name.split("-")[0] for path in root.iterdir() if not path.name.startswith(".")] == ["bible"]
    assert left_overs(config)
    told = []
    prepared = prepare(config, lambda *report: told.append(report))
    assert {report[0] for report in told} == {"mine"}
    assert sum(prepared.domains["mine"].manifest["documents"].values()) == 60_000
    assert left_overs(config) == []


def test_processes_prepare_at_once(make_config, write_jsonl):
    path = write_jsonl("a.jsonl", [f"{i} some words" for i in range(3000)])
    config = make_config(**mine(path))
    processes = [start(config) for _ in range(3)]
    found = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert found == {prepare(config).fingerprint}
    assert left_overs(config) == []


# Locks that fail as they do where a file system has none, and locks that succeed and keep nobody out.
BROKEN_LOCKS = {"unsupported": "raise OSError(errno.ENOLCK, 'No locks available')", "without effect": "return None"}
# Each process waits, once it has its scratch folder, until all of them have one: so all four work at the same time.
TOGETHER = """
import errno, fcntl, sys, time
from pathlib import Path
from blobjax.config import Config
from blobjax.data import prepare

def flock(*_):
    {flock}

fcntl.flock = flock
config = Config.model_validate_json(sys.argv[1])
processes, root = int(sys.argv[2]), Path(config.data.prepared_dir)

def meet(domain, done, total):
    deadline = time.monotonic() + 60
    while done == 0 and not (root / "all here").exists():
        if sum(path.is_dir() for path in root.glob(".*")) == processes:
            (root / "all here").touch()
        assert time.monotonic() < deadline, "the scratch folders of the others are gone"
        time.sleep(0.01)

print(prepare(config, meet).fingerprint)
"""


@pytest.mark.parametrize("flock", BROKEN_LOCKS.values(), ids=BROKEN_LOCKS)
def test_processes_prepare_at_once_where_locks_do_not_work(make_config, write_jsonl, flock):
    config = make_config(**mine(write_jsonl("a.jsonl", [f"{i} some words" for i in range(300)])))
    command = [sys.executable, "-c", TOGETHER.format(flock=flock), config.model_dump_json(), "4"]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    ended = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, [error for _, error in ended]
    assert {output.strip() for output, _ in ended} == {prepare(config).fingerprint}
    assert left_overs(config) == []


def test_only_scratch_folders_of_dead_processes_of_this_machine_are_removed(make_config, write_jsonl):
    config = make_config(**mine(write_jsonl("a.jsonl", [f"{i} some words" for i in range(100)])))
    final = prepare(config).domains["mine"].folder
    shutil.rmtree(final)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    names = {
        "dead": f".{final.name}.{host}.{ended.pid}.00000000",
        "alive": f".{final.name}.{host}.{os.getpid()}.00000000",
        "elsewhere": f".{final.name}.{host}-2.{ended.pid}.00000000",
        "not ours": f".{final.name}.{host}.notes",
    }
    for name in names.values():
        (final.parent / name).mkdir()
    prepare(config)
    assert {which for which, name in names.items() if (final.parent / name).exists()} == set(names) - {"dead"}


def test_the_loser_of_the_rename_takes_the_winners_folder(make_config, write_jsonl, monkeypatch):
    """Two machines on a file system whose locks do not reach across them."""
    config = make_config(**mine(write_jsonl("a.jsonl", [f"{i} some words" for i in range(100)])))
    rename, winners = os.rename, []

    def late(source, target):
        monkeypatch.setattr(os, "rename", rename)
        # Until it is renamed, nothing of it stands under its name.
        assert not target.exists()
        assert (source / "manifest.json").is_file()
        winners.append(prepare(config))
        assert winners[0].domains["mine"].folder == target
        rename(source, target)

    # The second preparation is within the first, so neither may wait for the other.
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(os, "rename", late)
    prepared = prepare(config)
    assert prepared.fingerprint == winners[0].fingerprint
    assert left_overs(config) == []


def test_damaged_shard_is_named_with_the_way_out(make_config):
    config = make_config(mixture={"bible": 1})
    folder = prepare(config).domains["bible"].folder
    content = bytearray((folder / "train.bin").read_bytes())
    content[5] ^= 1
    (folder / "train.bin").write_bytes(content)
    assert f"{folder / 'train.bin'}: damaged shard: content after byte 0" in complaint(config)
    (folder / "train.bin").write_bytes(content[:-1])
    assert f"delete the folder {folder} and it is prepared again" in complaint(config)
    (folder / "manifest.json").write_text("{")
    assert f"{folder / 'manifest.json'}: damaged" in complaint(config)


@pytest.mark.parametrize(
    "lie",
    [
        {"file": "../outside.bin"},
        {"file": "/etc/passwd"},
        {"file": ".."},
        {"dtype": "object"},
        {"dtype": "float32"},
        {"dtype": ["uint8"]},
        {"crc32": []},
        {"tokens": -1},
        {"block_bytes": 0},
    ],
    ids=str,
)
def test_a_manifest_that_lies_opens_nothing_outside_of_its_folder(make_config, lie):
    config = make_config(mixture={"bible": 1})
    folder = prepare(config).domains["bible"].folder
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"]["train"] |= lie
    (folder / "manifest.json").write_text(json.dumps(manifest))
    shutil.copy(folder / "train.bin", folder.parent / "outside.bin")
    try:
        assert "delete the folder" in complaint(config)
    finally:
        (folder.parent / "outside.bin").unlink()


def complaint(config: Config) -> str:
    with pytest.raises(BadInputError) as caught:
        prepare(config)
    (line,) = caught.value.problems
    assert "\n" not in line
    assert not Path(config.data.prepared_dir).is_dir() or left_overs(config) == []
    return line


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "holds no text"),
        (["", "\0"], "holds no text"),
        (["only one"], "is a single document; give at least two"),
        (["one", "two", "three"], "none of its 3 documents is held out at data.held_out_fraction=0.05; 0."),
    ],
)
def test_too_little_text(make_config, write_jsonl, texts, message):
    config = make_config(**mine(write_jsonl("a.jsonl", texts)))
    line = complaint(config)
    assert message in line
    assert "domain 'mine'" in line


def test_the_fraction_suggested_is_enough(make_config, write_jsonl):
    path = write_jsonl("a.jsonl", ["one", "two", "three"])
    line = complaint(make_config(**mine(path)))
    suggested = float(line.split("; ")[-1].split()[0])
    prepared = prepare(make_config(**mine(path), held_out_fraction=suggested))
    assert prepared.domains["mine"].manifest["documents"] == {"train": 2, "held_out": 1}
    assert "all of its 3 documents are held out" in complaint(make_config(**mine(path), held_out_fraction=0.9999))


def test_half_a_surrogate_is_no_text(make_config, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "\\ud800"}\n')
    assert "a.jsonl: document 2 holds half a surrogate pair" in complaint(make_config(**mine(path)))


def test_bad_line_in_the_middle_leaves_nothing(make_config, write_jsonl):
    path = write_jsonl("a.jsonl", [f"document {i}" for i in range(1000)])
    with path.open("a") as file:
        file.write("oops\n")
    assert "a.jsonl:1001: not JSON" in complaint(make_config(**mine(path)))


def test_unwritable_folder(make_config, tmp_path):
    (tmp_path / "file").touch()
    line = complaint(make_config(mixture={"bible": 1}, prepared_dir=str(tmp_path / "file" / "below")))
    assert "cannot be written: Not a directory; give another folder with data.prepared_dir=FOLDER" in line


def test_disk_that_fills_up_leaves_nothing(make_config):
    """A limit on file size stands in for a full disk: the write itself fails, half way."""
    config = make_config(mixture={"bible": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        line = complaint(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written: File too large" in line
    assert prepare(config).domains["bible"].manifest["documents"]["train"] > 0


def test_all_unknown_domains_are_named_at_once(make_config):
    with pytest.raises(BadInputError) as caught:
        prepare(make_config(mixture={"bibel": 1, "jargn": 1, "bible": 1}))
    assert len(caught.value.problems) == 2


def test_cache_directory_is_the_default(make_config, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepared = prepare(make_config(mixture={"bible": 1}, prepared_dir=""))
    assert prepared.domains["bible"].folder.parent == tmp_path / "cache" / "blobjax"
    manifest = json.loads((prepared.domains["bible"].folder / "manifest.json").read_text())
    assert manifest == prepared.domains["bible"].manifest
