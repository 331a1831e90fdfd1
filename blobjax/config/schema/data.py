"""QUANTITY AND BREADTH OF DATA: its keys."""

from typing import Annotated, Literal

from pydantic import Field

from blobjax.config.schema.section import Nonnegative, Positive, Section


class Source(Section):
    """Where one domain's documents come from."""

    kind: Literal["embedded", "text", "jsonl", "parquet", "array_record", "huggingface", "examples"] = "text"
    """embedded: the corpus in the package; the others are files, or a Hugging Face dataset name. examples: JSONL with
    `prompt` and `answer`, or `messages` (objective.kind supervised)."""
    path: str = ""
    """A file or glob (text, jsonl, parquet, array_record), or a dataset name; relative to the working directory. Text
    and jsonl files may be compressed: .gz, .zst."""
    field: str = "text"
    """The record field that holds the text (jsonl, parquet, huggingface; array_record: records are JSON)."""
    split: str = "train"
    """The dataset split (huggingface)."""
    nulls: Literal["error", "skip"] = "error"
    """What happens at a row whose text is null or missing: preparation stops (error), or the row is skipped and counted
    (skip). A Parquet file or dataset without the column is always an error."""
    long_examples: Literal["error", "skip"] = "error"
    """What happens where an example is longer than data.seq_len (examples): the run is refused (error), or the example
    is skipped and counted (skip)."""


class Data(Section):
    """QUANTITY AND BREADTH OF DATA."""

    mixture: dict[str, Nonnegative] = {"shakespeare": 1.0}
    """Domain to weight; weights need not sum to one, a weight of 0 leaves a domain out of training but evaluates it."""
    sources: dict[str, Source] = {}
    """Domain to source; the embedded domains need no entry."""
    tokenizer: str = "bytes"
    """`bytes`, or the path of a Hugging Face tokenizers JSON file; `~` is the home directory."""
    seq_len: Positive = 256
    """Tokens in one training sequence."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each domain's training windows (of data.seq_len tokens) that a run ever sees: how much unique data there
    is. The same ones for every seed, and those of a smaller share are among those of a larger one."""
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of each domain's documents kept for evaluation, chosen by the hash of their content."""
    max_document_bytes: Annotated[int, Field(ge=1 << 20, lt=1 << 31)] = 256_000_000
    """Longest record taken, in bytes after decompression: a line (jsonl), a text (parquet, huggingface), a record
    (array_record). A longer one stops preparation, so that a small compressed file cannot take all memory. Text files
    are cut into passages and need no limit."""
    mask_documents: bool = True
    """Packed documents do not attend to each other."""
    prepared_dir: str = ""
    """Where token shards are kept; empty: the user's cache directory, ~/.cache/blobjax."""
    prefetch: Annotated[int, Field(ge=1, le=1000)] = 4
    """Batches made ready ahead of the step."""
