"""What a mixture holds: for `blobjax data describe`."""

from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from blobjax.config import Config
from blobjax.data.mixture import Mixture
from blobjax.data.overlap import NEAR, SHINGLE_WORDS, Overlap, overlaps
from blobjax.data.preparation import SPLITS, Prepared
from blobjax.data.stream import used
from blobjax.data.tokenizer import Tokenizer

_DEFINITION = (
    f"A shingle is {SHINGLE_WORDS} words in a row. A near-duplicate has at least {NEAR:.0%} of its shingles in the "
    "training text of any domain."
)


@dataclass(frozen=True)
class Description:
    """One domain.

    Attributes:
      domain: its name.
      kind, path: its source.
      documents, bytes, tokens: of both splits together.
      held_out: share of the bytes that is held out.
      weight: share of the training sequences.
      epochs: passes over the training split in the run; None where its length is not known, and for examples.
      sample: how the held-out text begins; between two documents stands ` | `.
      notes: what was skipped when it was prepared.
      overlap: how much of its held-out text stands in the training text too.
    """

    domain: str
    kind: str
    path: str
    documents: int
    bytes: int
    tokens: int
    held_out: float
    weight: float
    epochs: float | None
    sample: str
    notes: list[str]
    overlap: Overlap


def describe(config: Config, prepared: Prepared, sequences: int | None = None) -> list[Description]:
    """Describes each domain of the mixture.

    Args:
      config: the run.
      prepared: what `prepare` returned for it.
      sequences: training sequences in the whole run, for `epochs`.
    """
    mixture = Mixture(config.data.mixture)
    counts = dict(zip(mixture.names, mixture.counts(sequences or 0), strict=True))
    weights = dict(zip(mixture.names, mixture.weights, strict=True))
    shared = overlaps(config, prepared)
    described = []
    for name, domain in prepared.domains.items():
        manifest = domain.manifest
        tokens = {split: manifest["shards"][split]["tokens"] for split in SPLITS}
        size = sum(manifest["bytes"].values())
        windows = used((tokens["train"] - 1) // config.data.seq_len, config.data.fraction)
        # How many rows examples fill is known once they are packed.
        unknown = sequences is None or domain.marks("train") is not None
        described.append(
            Description(
                domain=name,
                kind=manifest["source"]["kind"],
                path=manifest["source"]["path"],
                documents=sum(manifest["documents"].values()),
                bytes=size,
                tokens=sum(tokens.values()),
                held_out=manifest["bytes"]["held_out"] / size,
                weight=weights.get(name, 0) / sum(weights.values()),
                epochs=None if unknown else counts.get(name, 0) / windows,
                sample=_sample(prepared.tokenizer, domain.tokens("held_out")[:200]),
                notes=domain.notes,
                overlap=shared[name],
            )
        )
    return described


def _sample(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.separator))
    texts = (tokenizer.decode(document) for document in documents)
    return " | ".join(text for text in texts if text)[:160]


def render(descriptions: list[Description]) -> Group:
    """The descriptions for a rich console: a table of numbers 80 columns wide, then where each domain comes from."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    counted = any(d.epochs is not None for d in descriptions)
    numbers = ("documents", "MB", "tokens", "B/token", "held out", "weight", *(["epochs"] if counted else []))
    table.add_column("domain", overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    lines = []
    for d in descriptions:
        figures = [f"{d.documents:,}", f"{d.bytes / 1e6:,.2f}", f"{d.tokens:,}", f"{d.bytes / d.tokens:.2f}"]
        figures += [f"{d.held_out:.1%}", f"{d.weight:.1%}"]
        if counted:
            figures.append("" if d.epochs is None else f"{d.epochs:.2f}")
        table.add_row(d.domain, *figures)
        origin = d.kind if d.kind == "embedded" else f"{d.kind} {d.path}"
        # Text, not markup: a sample may hold what rich would take for a style.
        line = Text.assemble((d.domain, "bold"), f" ({origin}): {' '.join(d.sample.split())}")
        lines.append(line)
        lines += [Text(f"  {note}") for note in (_overlap(d.overlap), *d.notes)]
    return Group(table, *lines, Text(_DEFINITION, style="dim"))


def _overlap(overlap: Overlap) -> str:
    line = (
        f"of the held-out text {overlap.shared:.1%} of the shingles are in training text too; near-duplicates: "
        f"{overlap.near_duplicates} of {overlap.documents:,} documents"
    )
    if overlap.compared < 1:
        line += f" (at least: compared with {overlap.compared:.2g} of the training text)"
    return line
