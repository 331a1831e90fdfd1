"""QUANTITY AND BREADTH OF DATA: its keys."""

from typing import Annotated, Literal

from pydantic import Field

from blobjax.config.schema.section import Nonnegative, Positive, Section


class Source(Section):
    """Where one domain's documents come from."""

    kind: Literal["embedded", "text", "jsonl", "parquet", "array_record", "huggingface"] = "text"
    """embedded: the corpus in the package; the others are files, or a Hugging Face dataset name."""
    path: str = ""
    """A file or glob (text, jsonl, parquet, array_record), or a dataset name; relative to the working directory."""
    field: str = "text"
    """The record field that holds the text (jsonl, parquet, huggingface; array_record: records are JSON)."""
    split: str = "train"
    """The dataset split (huggingface)."""


class Data(Section):
    """QUANTITY AND BREADTH OF DATA."""

    mixture: dict[str, Nonnegative] = {"shakespeare": 1.0}
    """Domain to weight; weights need not sum to one, a weight of 0 leaves a domain out of training but evaluates it."""
    sources: dict[str, Source] = {}
    """Domain to source; the embedded domains need no entry."""
    tokenizer: str = "bytes"
    """`bytes`, or the path of a Hugging Face tokenizers JSON file."""
    seq_len: Positive = 256
    """Tokens in one training sequence."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each domain's training windows (of data.seq_len tokens) that a run ever sees: how much unique data there
    is. The same ones for every seed, and those of a smaller share are among those of a larger one."""
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of each domain's documents kept for evaluation, chosen by the hash of their content."""
    mask_documents: bool = True
    """Packed documents do not attend to each other."""
    prepared_dir: str = ""
    """Where token shards are kept; empty: the user's cache directory, ~/.cache/blobjax."""
    prefetch: Annotated[int, Field(ge=1, le=1000)] = 4
    """Batches made ready ahead of the step."""
