"""Studies small enough to run, and results that were made up."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from blobjax.config import Config
from blobjax.studies.noise import Mean
from blobjax.studies.results import Result
from blobjax.studies.study import Cell

BASE = {
    "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_ff": 32, "activation": "gelu", "max_seq_len": 32},
    "data": {"mixture": {"shakespeare": 1}, "seq_len": 32},
    "duration": {"length": "30 steps", "global_batch_size": 4, "warmup": "2 steps"},
    "checkpoint": {"every": "100 steps"},
    "evaluation": {"every": "1000 steps", "sequences": 4},
    "logging": {"every": "1 step"},
}
STUDY = {
    "title": "A title",
    "question": "Is 1 < 2?",
    "expected": "It is.",
    "source": "Euclid & others",
    "base": BASE,
    "grid": {
        "rate": {"key": "optimizer.learning_rate", "values": [0.001, 0.01]},
        "width": {"narrow": {"model.d_model": 16}, "wide": {"model.d_model": 24, "model.n_heads": 3}},
    },
}


def write(folder: Path, name: str = "small.yaml", **changes: Any) -> str:
    """A study's file; its path."""
    path = folder / name
    content = {key: value for key, value in {**STUDY, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def made_up(
    labels: dict[str, str],
    losses: list[float],
    *,
    config: dict[str, Any] | None = None,
    status: str = "finished",
    events: list[dict] | None = None,
    **last: float,
) -> Result:
    """A result with these losses by step; further metrics on the last line."""
    lines: list[dict[str, Any]] = [{"step": n, "cross_entropy": loss} for n, loss in enumerate(losses, 1)]
    lines[-1] |= last
    cell = Cell("_".join(labels.values()), labels, {}, Config.model_validate(config or {}))
    return Result(status, "", lines, events or [], cell)  # type: ignore[arg-type]


def seeded(results: Iterable[Result], seeds: Iterable[int] = (0, 1, 2), apart: float = 0.0) -> list[Result]:
    """The same results with each of several seeds.

    Args:
      apart: by so much of itself a held-out loss is higher with each seed; a law is not fitted to equal points.
    """

    def line(one: dict[str, Any], seed: int) -> dict[str, Any]:
        return {name: v * (1 + apart * seed) if name.startswith("eval/") else v for name, v in one.items()}

    return [
        replace(
            result,
            metrics=[line(each, seed) for each in result.metrics],
            cell=replace(
                result.cell,
                name=f"{seed}_{result.cell.name}",
                labels={"seed": str(seed)} | result.cell.labels,
                config=result.cell.config.model_copy(update={"seed": seed}),
            ),
        )
        for seed in seeds
        for result in results
    ]


def means(value: Any) -> Any:
    """Numbers of a finding or a summary without their intervals."""
    if isinstance(value, Mean):
        return value.mean
    if isinstance(value, dict):
        return value["mean"] if "mean" in value else {name: means(each) for name, each in value.items()}
    return value
