"""How much of the held-out text stands in the training text too.

The split keeps copies together (split.py), but not texts that differ in a few words. Those are looked for by shingles,
runs of SHINGLE_WORDS words (Broder 1997, "On the resemblance and containment of documents"): words in lower case,
punctuation left out, as in the check of GPT-2's test sets (Radford et al. 2019, section 4), which reports `shared`. A
document is a near-duplicate when NEAR of its shingles occur anywhere in the training text, the threshold at which PaLM
calls an example contaminated (Chowdhery et al. 2022, section 8).
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from blobjax.config import Config
from blobjax.data.preparation import Prepared
from blobjax.data.tokenizer import Tokenizer

SHINGLE_WORDS = 8
NEAR = 0.7
# Tokens looked at, all domains together: seconds, and some 100 MB. More text is sampled in blocks spread evenly.
TRAINING_TOKENS = 1 << 24
HELD_OUT_TOKENS = 1 << 22
_BLOCK_TOKENS = 1 << 16
# Ideographs and kana are words of their own, since no spaces part them.
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_KNOWN_WORDS = 1 << 20


@dataclass(frozen=True)
class Overlap:
    """One domain's held-out text against the training text of all domains.

    Attributes:
      documents: held-out documents looked at.
      near_duplicates: those with at least NEAR of their shingles in the training text.
      shared: share of the held-out shingles that occur in the training text.
      compared: share of the training tokens looked at; below 1, the other figures are lower bounds.
    """

    documents: int
    near_duplicates: int
    shared: float
    compared: float


def overlaps(config: Config, prepared: Prepared) -> dict[str, Overlap]:
    """Domain to its overlap with the training text of every domain of positive weight. The same for the same tokens."""
    hasher = _Hasher()
    names = list(prepared.domains)
    share = HELD_OUT_TOKENS // max(len(names), 1)
    held_out = {
        name: [hasher.shingles(text) for text in _documents(domain.tokens("held_out"), share, prepared.tokenizer)]
        for name, domain in prepared.domains.items()
    }
    known = np.unique(np.concatenate([np.empty(0, np.uint64), *(s for each in held_out.values() for s in each)]))
    seen = np.zeros(len(known), bool)
    trained = [prepared.domains[name].tokens("train") for name, weight in config.data.mixture.items() if weight > 0]
    share = TRAINING_TOKENS // max(len(trained), 1)
    for tokens in trained:
        for text in _documents(tokens, share, prepared.tokenizer):
            _mark(seen, known, hasher.shingles(text))
    size = sum(map(len, trained))
    compared = sum(min(len(tokens), share) for tokens in trained) / size if size else 1.0
    return {name: _overlap(shingles, known, seen, compared) for name, shingles in held_out.items()}


def _overlap(documents: list[np.ndarray], known: np.ndarray, seen: np.ndarray, compared: float) -> Overlap:
    shares = [float(seen[np.searchsorted(known, shingles)].mean()) for shingles in documents if len(shingles)]
    distinct = np.unique(np.concatenate([np.empty(0, np.uint64), *documents]))
    shared = float(seen[np.searchsorted(known, distinct)].mean()) if len(distinct) else 0.0
    return Overlap(len(shares), sum(share >= NEAR for share in shares), shared, compared)


def _mark(seen: np.ndarray, known: np.ndarray, shingles: np.ndarray) -> None:
    if len(known) and len(shingles):
        at = np.minimum(np.searchsorted(known, shingles), len(known) - 1)
        seen[at[known[at] == shingles]] = True


def _documents(tokens: np.ndarray, most: int, tokenizer: Tokenizer) -> Iterator[str]:
    """The texts in a shard; of one longer than `most` tokens those in blocks spread evenly over it."""
    blocks: Iterable[np.ndarray]
    if len(tokens) <= most:
        # In pieces that begin with a document, so that no document is cut.
        starts = np.flatnonzero(tokens == tokenizer.separator)
        blocks = np.split(tokens, starts[np.unique(starts // _BLOCK_TOKENS, return_index=True)[1]])
    else:
        count = max(most // _BLOCK_TOKENS, 1)
        first = (np.arange(count) * ((len(tokens) - _BLOCK_TOKENS) / max(count - 1, 1))).astype(np.int64)
        blocks = (tokens[start : start + _BLOCK_TOKENS] for start in first)
    for block in blocks:
        block = np.asarray(block)
        for document in np.split(block, np.flatnonzero(block == tokenizer.separator)):
            if len(document):
                yield tokenizer.decode(document)


class _Hasher:
    """Shingles as 64-bit numbers, the same in every process."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}

    def shingles(self, text: str) -> np.ndarray:
        """The distinct shingles of a text, uint64, sorted. A text of fewer words is one shingle, an empty one none."""
        words = _WORD.findall(text.lower())
        if not words:
            return np.empty(0, np.uint64)
        if len(self._words) > _KNOWN_WORDS:
            self._words.clear()
        for word in set(words) - self._words.keys():
            self._words[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        hashes = np.array([self._words[word] for word in words], np.uint64)
        length = min(SHINGLE_WORDS, len(hashes))
        rolled = np.zeros(len(hashes) - length + 1, np.uint64)
        for word in range(length):  # a polynomial in _BASE, modulo 2^64
            rolled = rolled * _BASE + hashes[word : word + len(rolled)]
        return np.unique(rolled)
