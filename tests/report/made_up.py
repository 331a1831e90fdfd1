"""Runs that never ran: directories with the files that one would have left."""

import json
from pathlib import Path
from typing import Any

from blobjax.config import dump
from tests.tiny import tiny

START = {
    "versions": {"blobjax": "0.1.0", "jax": "0.10.2"},
    "device_kind": "cpu",
    "devices": 8,
    "processes": 1,
    "mesh": {"data": 8, "fsdp": 1},
    "length": 100,
    "flops_per_token": 1000.0,
}
TOKENS_PER_STEP = 16 * 32


def start(time: float, **more: Any) -> dict[str, Any]:
    return {"event": "start", "time": time, "began": time, **START, **more}


def stop(time: float, reason: str = "finished", step: int | None = 100) -> dict[str, Any]:
    return {"event": "stop", "time": time, "reason": reason} | ({} if step is None else {"step": step})


def line(step: int, loss: float | str = 3.0, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "loss": loss,
        "cross_entropy": loss,
        "grad_norm": 1.0,
        "tokens": step * TOKENS_PER_STEP,
        "tokens_per_second": 1000.0 + step,
        "model_flops_utilization": None,
        "step_seconds": 0.5,
        "data_wait_seconds": 0.05,
        "data/shakespeare/epochs": 2 * step / 100,
        **more,
    }


def evaluation(step: int, value: float = 2.0) -> dict[str, Any]:
    metrics = ("cross_entropy", "perplexity", "bits_per_byte")
    return {"step": step, **{f"eval/shakespeare/{metric}": value for metric in metrics}}


def leave(folder: Path, events: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> None:
    """What a run writes line by line."""
    for name, lines in (("events", events), ("metrics", metrics)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))


def write(
    folder: Path,
    events: list[dict[str, Any]],
    metrics: list[dict[str, Any]],
    *overrides: str,
    energy: dict[int, dict[str, float]] | None = None,
    **files: str,
) -> Path:
    """The directory of a run; `files` by name without what follows the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump(tiny("data.mixture={shakespeare: 1}", *overrides)))
    leave(folder, events, metrics)
    for process, account in (energy or {}).items():
        (folder / "energy").mkdir(exist_ok=True)
        (folder / "energy" / f"{process}.json").write_text(json.dumps(account))
    for name, text in files.items():
        suffix = {"undone_metrics": "jsonl"}.get(name, "json")
        (folder / f"{name}.{suffix}").write_text(text)
    return folder
