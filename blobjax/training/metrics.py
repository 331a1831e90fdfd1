"""Where metrics go: metrics.jsonl always, TensorBoard always, Weights & Biases when asked for; from process 0 only."""

import hashlib
import json
import math
from typing import Any, Protocol

from blobjax.config import Config, dump
from blobjax.training.run_directory import RunDirectory, append_lines, read_jsonl, write_atomically


class Writer(Protocol):
    """A place metrics are written to."""

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Writes one step's metrics."""

    def close(self) -> None:
        """Makes sure that everything written is kept."""


class JsonlWriter:
    """metrics.jsonl: one object a line, each with `step`.

    A run that was killed has written lines beyond its last checkpoint. They are dropped on resume, because the resumed
    run writes the same steps again.
    """

    def __init__(self, directory: RunDirectory, resume_step: int):
        lines = list(read_jsonl(directory.metrics))
        kept = [line for line in lines if isinstance(line.get("step"), int) and line["step"] <= resume_step]
        if len(kept) < len(lines):
            write_atomically(directory.metrics, "".join(_line(line) for line in kept))
        self._file = append_lines(directory.metrics)

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Appends one line; a number that JSON cannot hold (NaN, infinity) is written as a string."""
        self._file.write(_line({"step": step, **metrics}))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _line(values: dict[str, Any]) -> str:
    finite = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite) + "\n"


class TensorBoardWriter:
    """tensorboard/: scalars, written by tensorboardX, which needs no TensorFlow."""

    def __init__(self, directory: RunDirectory, resume_step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory.tensorboard), purge_step=resume_step + 1)

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Adds one point to each scalar."""
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()


class WandBWriter:
    """Weights & Biases; the run's name and directory tie attempts of one run together."""

    def __init__(self, config: Config, directory: RunDirectory):
        import wandb
        import yaml

        settings = config.logging.wandb
        assert settings is not None
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            name=config.name,
            # Attempts of one run are one W&B run; runs of one name in two directories are two.
            id=f"{config.name}-{hashlib.sha256(str(directory.path.resolve()).encode()).hexdigest()[:8]}",
            resume="allow",
            dir=str(directory.path),
            config=yaml.safe_load(dump(config)),
        )

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Logs one step."""
        self._run.log(metrics, step=step)

    def close(self) -> None:
        """Uploads what is left."""
        self._run.finish()


def make_writers(config: Config, directory: RunDirectory, resume_step: int) -> list[Writer]:
    """The writers a config asks for; call it on process 0 only."""
    writers: list[Writer] = [JsonlWriter(directory, resume_step), TensorBoardWriter(directory, resume_step)]
    if config.logging.wandb is not None:
        writers.append(WandBWriter(config, directory))
    return writers
