"""DATA: QUANTITY AND BREADTH. Sources, tokenizers, mixtures and packing; one deterministic, resumable stream.

`prepare` writes each domain's tokens once; `open_stream` reads them for ever after. Importing this imports neither jax
nor grain, so that asking for help stays quick.
"""

from blobjax.data.bpe import train_bpe
from blobjax.data.description import describe, render
from blobjax.data.passed_over import PassedOver
from blobjax.data.preparation import Prepared, prepare
from blobjax.data.progress import show_progress
from blobjax.data.stream import Stream, open_stream
from blobjax.data.tokenizer import Tokenizer

__all__ = [
    "PassedOver",
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
