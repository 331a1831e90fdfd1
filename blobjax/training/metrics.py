"""Where metrics go: metrics.jsonl always, TensorBoard always, Weights & Biases when asked for; from process 0 only."""

import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from blobjax.config import Config, dump
from blobjax.runs.directory import Lines, RunDirectory, read_jsonl, write_atomically


class Writer(Protocol):
    """A place metrics are written to."""

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Writes one step's metrics."""

    def undo(self, step: int) -> None:
        """Takes back what was written of the steps after this one: a rollback has undone them."""

    def close(self) -> None:
        """Makes sure that everything written is kept."""


class JsonlWriter:
    """metrics.jsonl: one object a line, each with `step`.

    A run that was killed has written lines beyond its last checkpoint. They are dropped on resume, because the resumed
    run writes the same steps again. After a rollback other steps take their numbers: the old lines move to
    undone_metrics.jsonl, so that metrics.jsonl is the history of the run's state, and the trouble can still be seen.
    """

    def __init__(self, directory: RunDirectory, resume_step: int):
        self._directory = directory
        self._cut(resume_step)
        self._file = Lines(directory.metrics)

    def _cut(self, step: int) -> list[dict[str, Any]]:
        """Drops the lines beyond a step and returns them."""
        kept: list[dict[str, Any]] = []
        dropped: list[dict[str, Any]] = []
        for line in read_jsonl(self._directory.metrics):
            (kept if isinstance(line.get("step"), int) and line["step"] <= step else dropped).append(line)
        if dropped:
            write_atomically(self._directory.metrics, "".join(_line(line) for line in kept))
        return dropped

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Appends one line; a number that JSON cannot hold (NaN, infinity) is written as a string."""
        self._file.write(_line({"step": step, **metrics}))

    def undo(self, step: int) -> None:
        """Moves the lines beyond a step to undone_metrics.jsonl."""
        self.close()
        undone = self._cut(step)
        lines = Lines(self._directory.undone_metrics)
        for line in undone:
            lines.write(_line(line))
        lines.close()
        self._file = Lines(self._directory.metrics)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _line(values: dict[str, Any]) -> str:
    finite = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite) + "\n"


class _EventFile:
    """One of TensorBoard's files, of which a full disk costs the rest and not the run.

    tensorboardX writes in a thread, which an error would end; a few points later, its queue full, the run would wait
    for that thread for ever. Nothing can follow a torn record, so after an error this file takes no more.
    """

    # How tensorboardX is told to open files by this class: what stands before the first colon of a path.
    PREFIX = "blobjax"

    def __init__(self, path: str):
        self._path = path.removeprefix(f"{self.PREFIX}:")
        self._file = open(self._path, "wb")  # noqa: SIM115
        self._whole = True

    @classmethod
    def open(cls, path: str) -> "_EventFile":
        return cls(path)

    @classmethod
    def directory_check(cls, path: str) -> None:
        Path(path.removeprefix(f"{cls.PREFIX}:")).mkdir(parents=True, exist_ok=True)

    def write(self, content: bytes) -> None:
        self._try(lambda: self._file.write(content))

    def flush(self) -> None:
        self._try(self._file.flush)

    def close(self) -> None:
        self._try(self._file.close)

    def _try(self, action: Callable[[], object]) -> None:
        if not self._whole:
            return
        try:
            action()
        except OSError as error:
            self._whole = False
            line = f"blobjax: {self._path} cannot be written: {error.strerror or error}; TensorBoard misses the rest"
            print(line, file=sys.stderr, flush=True)
            # What is still in its buffer would be tried again, and raise again.
            self._file.raw.close()


class TensorBoardWriter:
    """tensorboard/: scalars, written by tensorboardX, which needs no TensorFlow."""

    def __init__(self, directory: RunDirectory, resume_step: int):
        self._path = f"{_EventFile.PREFIX}:{directory.tensorboard}"
        self._open(resume_step)

    def _open(self, step: int) -> None:
        from tensorboardX import SummaryWriter
        from tensorboardX.record_writer import register_writer_factory

        register_writer_factory(_EventFile.PREFIX, _EventFile)
        # TensorBoard marks a NaN as one; tensorboardX would warn of each. What is wrong with a run, the run says.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        self._writer = SummaryWriter(self._path, purge_step=step + 1)

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Adds one point to each scalar."""
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def undo(self, step: int) -> None:
        """Tells TensorBoard to forget the points beyond a step, as on resume."""
        self.close()
        self._open(step)

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

    def undo(self, step: int) -> None:
        """Nothing: W&B takes no point back, and passes over steps it has had until the run is beyond them."""

    def close(self) -> None:
        """Uploads what is left."""
        self._run.finish()


def make_writers(config: Config, directory: RunDirectory, resume_step: int) -> list[Writer]:
    """The writers a config asks for; call it on process 0 only."""
    writers: list[Writer] = [JsonlWriter(directory, resume_step), TensorBoardWriter(directory, resume_step)]
    if config.logging.wandb is not None:
        writers.append(WandBWriter(config, directory))
    return writers
