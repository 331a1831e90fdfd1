"""A run's flow, block by block, in words: read from its metrics, kept as flow.json."""

import json
import math
from collections import defaultdict
from typing import Any

from rich.console import Console
from rich.table import Table

from blobjax.conditioning.laminar import LAMINAR, TURBULENT, survey
from blobjax.reliability.run_directory import RunDirectory, read_jsonl, write_atomically

# The table's columns: what a person looks for first. flow.json has all of them.
_COLUMNS = {
    "residual_rms": "residual\nRMS",
    "attention_logit_max": "logit\nmax",
    "attention_entropy": "entropy",
    "grad_rms": "gradient\nRMS",
    "update_ratio": "update\nratio",
    "dead_fraction": "dead\nunits",
    "grad_flush_fraction": "flushed",
    "weight_sqnr_db": "SQNR\ndB",
    "log_z_mean": "log\nZ",
}
_STYLES = {LAMINAR: "", "watch": "yellow", TURBULENT: "bold red"}
_MARKS = {LAMINAR: "", "watch": " !", TURBULENT: " !!"}
_MOST_SENTENCES = 6


def conclude(directory: RunDirectory, vocab_size: int) -> dict[str, Any] | None:
    """Judges the probes in a run's metrics and writes flow.json; None where there are none."""
    probes: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in read_jsonl(directory.metrics):
        for key, value in line.items():
            if key.startswith("flow/"):
                _, place, name = key.split("/")
                # Numbers that JSON does not know are written as text.
                probes[place][name].append((line["step"], float(value)))
    if not probes:
        return None
    found = survey(probes, vocab_size)
    write_atomically(directory.flow, json.dumps(_plain(found), indent=2) + "\n")
    return found


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
    for sentence in found["sentences"][:_MOST_SENTENCES]:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if len(found["sentences"]) > _MOST_SENTENCES:
        console.print(f"… and {len(found['sentences']) - _MOST_SENTENCES} more in flow.json", highlight=False)


def _cell(row: dict[str, Any]) -> str:
    value = f"{row['last']:.3g}{_MARKS[row['verdict']]}"
    style = _STYLES[row["verdict"]]
    return f"[{style}]{value}[/]" if style else value
