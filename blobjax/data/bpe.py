"""Training a byte-level BPE vocabulary on the mixture's own training text.

Source: BPE for words, Sennrich et al. 2016; on bytes, Radford et al. 2019, section 2.2.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from blobjax.config import BadInputError, Config
from blobjax.data import sources
from blobjax.data.scratch import scratch_path
from blobjax.data.split import held_out_position
from blobjax.data.tokenizer import SEPARATORS

# The separator and one id a byte.
SMALLEST_VOCABULARY = 257


def train_bpe(config: Config, vocab_size: int, path: str | Path) -> int:
    """Writes a `tokenizers` JSON file learnt from the training split of every domain of positive weight.

    The same text gives the same file. Held-out documents are not read: their words must not shape the vocabulary they
    are then scored with. Id 0 is the separator.

    Args:
      config: `data` says which text; `data.tokenizer` is not read.
      vocab_size: ids wanted, the separator included.
      path: the file to write; one that is there already stays, if it holds the same.

    Returns:
      Ids in the vocabulary: vocab_size, or fewer where the text has no more pairs to merge.

    Raises:
      BadInputError: the vocabulary is too small, a source cannot be read, or the file holds another tokenizer or cannot
        be written.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST_VOCABULARY:
        raise BadInputError(f"a byte-level vocabulary has at least {SMALLEST_VOCABULARY} ids, not {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATORS[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(config), trainer)
    path, content = Path(path), tokenizer.to_str(pretty=True)
    try:
        if not path.exists():
            _write(path, content)
        elif path.read_bytes() != content.encode():
            raise BadInputError(f"{path}: is there, and is another tokenizer; give another name, or move it away")
    except OSError as error:
        raise BadInputError(f"{path}: cannot be written: {error.strerror or error}") from None
    return tokenizer.get_vocab_size()


def _write(path: Path, content: str) -> None:
    """Writes a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_path(path)
    try:
        scratch.write_text(content, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _training_texts(config: Config) -> Iterator[str]:
    limit = config.data.max_document_bytes
    for domain, weight in config.data.mixture.items():
        if weight > 0:
            for document in sources.Documents(sources.resolve(config, domain), domain, limit):
                text = document.text.replace("\0", "")
                if text and held_out_position(text) >= config.data.held_out_fraction:
                    yield text
