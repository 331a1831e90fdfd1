"""Points from what runs left: the end of each run, or its training curve. The config tells what was counted."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blobjax.compute.flops import flops_per_token, param_count
from blobjax.config import BadInputError, Config
from blobjax.runs import mixture, outcome
from blobjax.runs.directory import RunDirectory
from blobjax.runs.outcome import Outcome, as_float

MEANINGS = {
    "params": "trained parameters, embeddings and output projection in",
    "non_embedding_params": "trained parameters without embeddings and output projection (the N of Kaplan et al.)",
    "flops": "model FLOPs, forward and backward: causal attention and output projection in, embedding lookup out",
    "flops_6nd": "6 × params (embeddings in) × tokens: no attention",
    "flops_6nd_non_embedding": "6 × params (embeddings out) × tokens: no attention",
    "loss": "mean cross-entropy logged in the last 5% of the training steps, nats per token",
    "held_out_loss": "cross-entropy of held-out text at the end, mean over domains by their weights, nats per token",
}
"""What the columns of a run count; `eval/…` metrics are columns too, under their names."""

# Points of a training curve: enough for a smooth envelope.
_POINTS = 60


@dataclass(frozen=True)
class RunRows:
    """Rows of the runs in a directory.

    Attributes:
      rows: place and cells of each.
      sha256: of all configs and metrics that were read.
      notes: runs that were passed over.
    """

    rows: list[tuple[str, dict[str, Any]]]
    sha256: str
    notes: tuple[str, ...]


def read(path: Path, curves: bool) -> RunRows:
    """The rows of a run, or of all finished runs of a study.

    Args:
      curves: rows all along each run, not of its end alone.

    Raises:
      BadInputError: there is no finished run.
    """
    study = (path / "study.yaml").is_file()
    folders = sorted(p for p in (path / "cells").glob("*") if p.is_dir()) if study else [path]
    if not study and not (path / "config.yaml").is_file():
        raise BadInputError(f"{path}: neither the directory of a run (config.yaml) nor of a study (study.yaml)")
    rows: list[tuple[str, dict[str, Any]]] = []
    passed_over: list[str] = []
    digest = hashlib.sha256()
    for folder in folders:
        directory = RunDirectory(folder)
        if not directory.config.is_file():
            passed_over.append(f"{folder.name} (not begun)")
            continue
        # Where the run lies now, not where it was begun.
        config = directory.resolved_config(f"logging.run_dir={json.dumps(str(folder))}")
        result = outcome.read(directory)
        if result.status != "finished":
            passed_over.append(f"{folder.name} ({result.status})")
            continue
        for file in (directory.config, directory.metrics):
            digest.update(file.read_bytes())
        rows += [(str(folder), cells) for cells in (_curve(config, result) if curves else [end(config, result)])]
    if not rows:
        why = f": {', '.join(passed_over)}" if passed_over else ""
        raise BadInputError(f"{path}: no finished run{why}; finish it, or give other points")
    notes = (f"{path}: left out as not finished: {', '.join(passed_over)}",) if passed_over else ()
    return RunRows(rows, digest.hexdigest(), notes)


def _sizes(config: Config, tokens: float) -> dict[str, Any]:
    """What a config and a number of tokens come to."""
    params = {
        "params": param_count(config.model, config.conditioning, embeddings=True),
        "non_embedding_params": param_count(config.model, config.conditioning, embeddings=False),
    }
    return params | {
        "tokens": tokens,
        "flops": flops_per_token(config.model, config.data.seq_len) * tokens,
        "flops_6nd": 6 * params["params"] * tokens,
        "flops_6nd_non_embedding": 6 * params["non_embedding_params"] * tokens,
        "batch_size": config.duration.global_batch_size,
    }


def end(config: Config, result: Outcome) -> dict[str, Any]:
    """The row of a finished run: what it came to, and at what cost."""
    last = result.metrics[-1]
    tokens = max((as_float(line["tokens"]) for line in result.metrics if "tokens" in line), default=math.nan)
    return {
        **_sizes(config, tokens),
        "loss": result.final_loss,
        "held_out_loss": mixture.held_out_loss(config, result.held_out),
        "steps": last["step"],
        "unique_tokens": mixture.unique_tokens(config, tokens, mixture.epochs(result.metrics)),
        **result.held_out,
    }


def _curve(config: Config, result: Outcome) -> list[dict[str, Any]]:
    """Smoothed losses at tokens evenly spread in their logarithm."""
    lines = [line for line in result.metrics if line.get("cross_entropy") is not None and "tokens" in line]
    losses = np.array([as_float(line["cross_entropy"]) for line in lines])
    tokens = np.array([as_float(line["tokens"]) for line in lines])
    if len(lines) < 2:
        return []
    chosen = np.unique(np.searchsorted(tokens, np.geomspace(tokens[0], tokens[-1], _POINTS)).clip(0, len(lines) - 1))
    rows = []
    for at in chosen:
        # The mean over a window that is a twentieth of the curve so far.
        first = max(0, at - max(1, at // 20))
        rows.append({**_sizes(config, float(tokens[at])), "loss": float(losses[first : at + 1].mean())})
    return rows
