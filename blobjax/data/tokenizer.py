"""Tokenizers: bytes, and byte-level BPE from a Hugging Face `tokenizers` JSON file.

Only byte-level vocabularies are taken: there each token stands for a known number of bytes of the text, so that a loss
in nats per token becomes bits per byte exactly, and runs with different tokenizers can be compared.
Dims: V vocabulary.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from blobjax.config import BadInputError, Config
from blobjax.config.paths import expanded

# What the separator is called in the vocabularies in use, most telling first; the first one found is taken.
SEPARATORS = (
    "<|sep|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|begin_of_text|>",
    "<eos>",
    "</s>",
    "<bos>",
    "<s>",
)


class Tokenizer(Protocol):
    """What preparation, evaluation and sampling need of a tokenizer.

    Attributes:
      vocab_size: number of ids; every id is below it.
      separator: the id that opens every document; no text encodes to it.
      bytes_per_token: int32 [V], bytes of UTF-8 text each id stands for; 0 for the separator and other special tokens.
      fingerprint: changes whenever the ids of some text could.
    """

    vocab_size: int
    separator: int
    bytes_per_token: np.ndarray
    fingerprint: str

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, without a separator; a NUL in the text is dropped."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of many texts; takes the cores there are."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids; separators and ids beyond the vocabulary are left out, broken UTF-8 becomes U+FFFD."""


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest unsigned integer that holds every id."""
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class ByteTokenizer:
    """Byte b is id b. Id 0, the NUL that no text holds, separates documents."""

    vocab_size = 256
    separator = 0
    fingerprint = "bytes"

    def __init__(self) -> None:
        self.bytes_per_token = np.ones(256, np.int32)
        self.bytes_per_token[self.separator] = 0

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode().replace(b"\0", b""), np.uint8)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        # A model may have more rows than there are bytes, and may be asked what it says before it has learnt anything.
        values = np.asarray(ids)
        return values[(values != self.separator) & (values < 256)].astype(np.uint8).tobytes().decode(errors="replace")


class BpeTokenizer:
    """Byte-level BPE (Radford et al. 2019, section 2.2) read from a `tokenizers` JSON file.

    A Unicode normaliser in the file is left out: the text is modelled as it is written, byte for byte.

    Raises:
      BadInputError: the file is missing, is no tokenizer, is not byte-level, or has nothing to separate documents with.
    """

    def __init__(self, path: str) -> None:
        import tokenizers  # imported here: the byte tokenizer has no use for it

        try:
            content = expanded(path, "data.tokenizer").read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise BadInputError(f"data.tokenizer '{path}': {reason}; give `bytes` or a tokenizers JSON file") from None
        try:
            layout = json.loads(content)
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # tokenizers raises the bare class
            raise BadInputError(f"data.tokenizer '{path}': not a tokenizers JSON file: {error}") from None
        problem = _not_byte_level(layout)
        if problem:
            raise BadInputError(
                f"data.tokenizer '{path}': {problem}; bits per byte would not be exact, so only byte-level BPE is taken"
            )
        # The file may ask for cutting, padding and normalising; none of them belongs in a training stream.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.normalizer = None
        # Text that spells `<|sep|>` is text, not a separator.
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        special = {token["content"] for token in layout.get("added_tokens", []) if token["special"]}
        separator = next((name for name in SEPARATORS if name in special), None)
        if separator is None:
            raise BadInputError(
                f"data.tokenizer '{path}': no special token to separate documents with; add one of "
                f"{', '.join(SEPARATORS)} (found: {', '.join(sorted(special)) or 'none'})"
            )
        self.separator = vocabulary[separator]
        self.vocab_size = max(vocabulary.values()) + 1
        added = {token["content"] for token in layout.get("added_tokens", [])}
        self.bytes_per_token = np.zeros(self.vocab_size, np.int32)
        for token, index in vocabulary.items():
            # A learnt token is spelt with one character a byte; one added afterwards is spelt as it is.
            size = len(token.encode()) if token in added else len(token)
            self.bytes_per_token[index] = 0 if token in special else size
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        clean = [text.replace("\0", "") for text in texts]
        found = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        return [np.asarray(encoding.ids, np.uint32) for encoding in found]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode([int(i) for i in ids if i != self.separator], skip_special_tokens=False)


def _not_byte_level(layout: dict) -> str:
    """Why a tokenizer does not map text to bytes one to one; empty if it does."""
    outer = layout.get("pre_tokenizer") or {}
    steps = [outer, *outer.get("pretokenizers", [])]
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    model = layout.get("model", {})
    if model.get("type") != "BPE" or not byte_level:
        return f"a {model.get('type', 'nameless')} tokenizer without byte-level pieces"
    if any(step.get("add_prefix_space") for step in byte_level):
        return "it puts a space before every text (add_prefix_space)"
    normalizer = (layout.get("normalizer") or {}).get("type", "NFC")
    if normalizer not in ("NFC", "NFD", "NFKC", "NFKD"):
        return f"its normaliser {normalizer} rewrites the text"
    if any(
        step.get("type") in ("Split", "Punctuation", "Whitespace", "WhitespaceSplit") and _drops(step) for step in steps
    ):
        return "its pre-tokenizer drops white space"
    from tokenizers.pre_tokenizers import ByteLevel

    marks = [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if marks:
        return f"its pieces carry marks ({marks[0]}) that are not in the text"
    if model.get("dropout"):
        return "it leaves merges out at random (dropout)"
    missing = [letter for letter in ByteLevel.alphabet() if letter not in model.get("vocab", {})]
    if missing:
        return f"{len(missing)} of the 256 bytes are not in its vocabulary"
    return ""


def _drops(step: dict) -> bool:
    return step["type"].startswith("Whitespace") or step.get("behavior") == "Removed"


def load(config: Config) -> Tokenizer:
    """The tokenizer a config asks for.

    Raises:
      BadInputError: it cannot be used, or has more ids than the model has rows.
    """
    name = config.data.tokenizer
    tokenizer: Tokenizer = ByteTokenizer() if name == "bytes" else BpeTokenizer(name)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise BadInputError(
            f"data.tokenizer '{name}' has {tokenizer.vocab_size} ids but model.vocab_size is "
            f"{config.model.vocab_size}; raise it to at least {tokenizer.vocab_size}"
        )
    return tokenizer
