"""DATA: QUANTITY AND BREADTH. Sources, tokenizers, mixtures and packing; one deterministic, resumable stream.

`prepare` writes each domain's tokens once; `open_stream` reads them for ever after. Importing this imports neither jax
nor grain, so that asking for help stays quick.
"""

from blobjax.data.describe import describe, render
from blobjax.data.prepare import Prepared, prepare
from blobjax.data.progress import show_progress
from blobjax.data.stream import Stream, open_stream
from blobjax.data.tokenizer import Tokenizer
from blobjax.data.train_bpe import train_bpe

__all__ = [
    "Prepared",
    "Stream",
    "Tokenizer",
    "describe",
    "open_stream",
    "prepare",
    "render",
    "show_progress",
    "train_bpe",
]
