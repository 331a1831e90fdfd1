"""What a person sees while a run trains: one live line on a terminal, a plain line now and then anywhere else."""

import os
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from blobjax.config import BatchSizes

# Seconds between plain lines: a log of a long run stays readable.
_PLAIN_EVERY = 10.0


class PatientConsole(Console):
    """A console whose reader may go away (`blobjax train … | head`), or whose disk may be full: training goes on,
    unseen."""

    def _check_buffer(self) -> None:
        # All of rich's writing goes through here; its own hook is for broken pipes alone.
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Falls silent instead of ending the process, as rich would."""
        self.quiet = True
        # What is buffered would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ProgressLine:
    """Shows step, loss, the metric to watch, tokens per second and time left.

    Args:
      length: steps of the whole run.
      start: steps already done.
      batches: sequences in each step; the time left is in proportion to those that are left.
      watched: a metric's name, and its label.
      console: where to; a terminal gets a live line.
    """

    def __init__(self, length: int, start: int, batches: BatchSizes, watched: tuple[str, str], console: Console):
        self._length = length
        self._watched = watched
        self._console = console
        self._shown = float("-inf")
        self._begun = time.monotonic()
        self._start = batches.sequences(start)
        self._end = batches.sequences(length)
        self._sequences = batches.sequences
        self._progress: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            self._progress = Progress(
                TextColumn(f"[bold]{{task.fields[step]}}/{length}"),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._progress.add_task("starting", total=self._end, completed=self._start, step=start)

    def open(self) -> None:
        """Begins the live line."""
        if self._progress is not None:
            self._progress.start()

    def update(self, step: int, metrics: dict[str, Any]) -> None:
        """Shows a step's metrics; cheap enough to call at every step."""
        name, label = self._watched
        figures = (
            f"loss {metrics['loss']:.3f}  {label} {metrics[name]:.3f}  {metrics['tokens_per_second']:,.0f} tokens/s"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=self._sequences(step), description=figures, step=step)
            return
        now = time.monotonic()
        if now - self._shown >= _PLAIN_EVERY or step == self._length:
            self._shown = now
            done = self._sequences(step)
            left = (now - self._begun) / max(done - self._start, 1) * (self._end - done)
            line = f"step {step}/{self._length}  {figures}  ETA {int(left) // 60}:{int(left) % 60:02d}"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Ends the live line."""
        if self._progress is not None:
            self._progress.stop()
