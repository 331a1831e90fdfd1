"""A run's flow, block by block, in words: read from its metrics, kept as flow.json."""

import json
import math
from collections import defaultdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from blobjax.conditioning.laminar import LAMINAR, STAGNANT, TURBULENT, WATCH, Known, survey
from blobjax.config import Config
from blobjax.data import Stream
from blobjax.runs.directory import RunDirectory, read_jsonl, write_atomically
from blobjax.runs.ledger import as_float

# The table's columns: what a person looks for first. flow.json has all of them.
_COLUMNS = {
    "residual_rms": "residual\nRMS",
    "attention_logit_max": "logit\nmax",
    "attention_entropy": "entropy",
    "grad_rms": "gradient\nRMS",
    "update_ratio": "update\nratio",
    "moved_fraction": "moved",
    "dead_fraction": "dead\nunits",
    "grad_flush_fraction": "flushed",
    "weight_sqnr_db": "SQNR\ndB",
    "log_z_mean": "log\nZ",
}
_STYLES = {LAMINAR: "", WATCH: "yellow", STAGNANT: "bold red", TURBULENT: "bold red"}
_MARKS = {LAMINAR: "", WATCH: " !", STAGNANT: " !!", TURBULENT: " !!"}
_MOST_SENTENCES = 6
_UNIGRAM_TOKENS = 2**20


def conclude(directory: RunDirectory, config: Config, stream: Stream | None = None) -> dict[str, Any] | None:
    """Judges the probes and the loss in a run's metrics and writes flow.json; None where there are no probes.

    Args:
      stream: what the run was trained on, whose token frequencies are what the loss is held against; None: a uniform
        guess is.
    """
    probes: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    losses: list[tuple[int, float]] = []
    for line in read_jsonl(directory.metrics):
        # Numbers that JSON does not know are written as text.
        if "cross_entropy" in line and not as_float(line.get("skipped", 0)):
            losses.append((line["step"], as_float(line["cross_entropy"])))
        if _overflowed(line):
            continue
        for key, value in line.items():
            if key.startswith("flow/") and key.count("/") == 2:
                _, place, name = key.split("/")
                probes[place][name].append((line["step"], as_float(value)))
    if not probes:
        return None
    if losses:
        probes["run"]["cross_entropy"] = losses
    unigram = unigram_entropy(stream, config, losses[-1][0]) if stream and losses else None
    scaled = config.conditioning.loss_scaling.kind != "none"
    found = survey(probes, Known(config.model.vocab_size, unigram, scaled))
    write_atomically(directory.flow, json.dumps(_plain(found | {"unigram_entropy": unigram}), indent=2) + "\n")
    return found


def _overflowed(line: dict[str, Any]) -> bool:
    """Whether it is of a step that loss scaling refused: an everyday event, whose gradients mean nothing."""
    gradient, loss = (as_float(line.get(name, 0)) for name in ("grad_norm", "loss"))
    return "loss_scale" in line and math.isfinite(loss) and not math.isfinite(gradient)


def unigram_entropy(stream: Stream, config: Config, steps: int) -> float:
    """Entropy of the frequencies of the tokens to be predicted, nats: the least loss without any context.

    Of the run's first sequences, up to a million tokens; which do not show every word of a large vocabulary, so that
    the entropy of their own frequencies is too low (`entropy`).
    """
    length = config.data.seq_len
    count = max(min(steps * config.duration.global_batch_size, _UNIGRAM_TOKENS // length), 1)
    batch = stream.sequences(list(range(count)))
    return entropy(np.bincount(batch["targets"][batch["mask"] > 0]))


def entropy(counts: np.ndarray) -> float:
    """Entropy, nats, of the distribution that counts were drawn from, by the estimate of Miller (1955, Note on the bias
    of information estimates).

    The entropy of the frequencies in N draws is too low by about (K - 1) / (2 N), where K kinds occur (K here is of
    those that were seen).

    Args:
      counts: of each kind, [kinds] int; some may be 0, not all.
    """
    seen, total = counts[counts > 0], counts.sum()
    p = seen / total
    return float(-np.sum(p * np.log(p)) + (len(seen) - 1) / (2 * total))


def _plain(node: Any) -> Any:
    """With numbers that JSON does not know as text, as in metrics.jsonl."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return str(node) if isinstance(node, float) and not math.isfinite(node) else node


def show(found: dict[str, Any], console: Console) -> None:
    """The table, a line a place, and below it what is to be said."""
    places = {name: place for name, place in found["places"].items() if name != "run"}
    shown = [name for name in _COLUMNS if any(name in place["probes"] for place in places.values())]
    table = Table(title="flow at the last probe", title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in shown:
        table.add_column(_COLUMNS[name], justify="right", no_wrap=True)
    for place, content in places.items():
        cells = []
        for name in shown:
            row = content["probes"].get(name)
            cells.append("" if row is None else _cell(row))
        table.add_row(place, *cells)
    # As wide as it is: on a narrow terminal, or in a file, its lines are wrapped rather than its numbers cut short.
    wide = type(console)(file=console.file, width=max(console.width, 120), force_terminal=console.is_terminal)
    wide.print(table, soft_wrap=True)
    if found["verdict"] == LAMINAR:
        console.print("The flow is laminar: nothing is beyond its threshold.", highlight=False)
    if found["verdict"] == STAGNANT:
        console.print("The run is stagnant: it learns nothing, or nothing any more.", highlight=False)
    for sentence in found["sentences"][:_MOST_SENTENCES]:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if len(found["sentences"]) > _MOST_SENTENCES:
        console.print(f"… and {len(found['sentences']) - _MOST_SENTENCES} more in flow.json", highlight=False)


def _cell(row: dict[str, Any]) -> str:
    value = f"{row['last']:.3g}{_MARKS[row['verdict']]}"
    style = _STYLES[row["verdict"]]
    return f"[{style}]{value}[/]" if style else value
