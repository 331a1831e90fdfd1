"""The corpus that ships with the package: a few domains of public-domain text (corpus/SOURCES.md says whose)."""

import hashlib
import lzma
from collections.abc import Iterator
from importlib import resources

_SUFFIX = ".txt.xz"


def domains() -> list[str]:
    """Names of the embedded domains, sorted."""
    folder = resources.files("blobjax.data") / "corpus"
    return sorted(entry.name.removesuffix(_SUFFIX) for entry in folder.iterdir() if entry.name.endswith(_SUFFIX))


def _packed(domain: str) -> bytes:
    return (resources.files("blobjax.data") / "corpus" / f"{domain}{_SUFFIX}").read_bytes()


def fingerprint(domain: str) -> str:
    """SHA-256 of the shipped file, in hexadecimal."""
    return hashlib.sha256(_packed(domain)).hexdigest()


def documents(domain: str) -> Iterator[str]:
    """The domain's documents; in the file each is ended by a NUL byte, which no text holds."""
    for document in lzma.decompress(_packed(domain)).split(b"\0")[:-1]:
        yield document.decode()
