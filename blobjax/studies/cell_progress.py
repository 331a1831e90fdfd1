"""What a person sees while a study runs: a line for every cell that ends, and on a terminal a live one below."""

import json
import threading
from pathlib import Path

from rich import progress as rich_progress
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blobjax.studies.results import Result
from blobjax.studies.study import Cell

# Of the end of a metrics file, that holds its last line.
_TAIL_BYTES = 32_768


class Progress:
    """Follows cells from their directories; safe to call from the threads that drive workers.

    Args:
      total: cells of the study.
      done: of them, those that were done before.
      live: whether a terminal gets a live line; not where cells draw their own.
    """

    def __init__(self, total: int, done: int, console: Console, live: bool = True):
        self._total = total
        self._done = done
        self._console = console
        self._running: dict[str, Cell] = {}
        self._lock = threading.Lock()
        self._live: rich_progress.Progress | None = None
        if live and console.is_terminal:
            self._live = rich_progress.Progress(
                rich_progress.TextColumn("[bold]{task.fields[cells]}"),
                rich_progress.BarColumn(bar_width=24),
                rich_progress.TextColumn("{task.description}"),
                rich_progress.TimeRemainingColumn(),
                console=console,
            )
            self._task = self._live.add_task("starting", total=total, completed=done, cells=f"{done}/{total}")

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, cell: Cell) -> None:
        """A worker was given a cell."""
        with self._lock:
            self._running[cell.name] = cell

    def end(self, result: Result) -> None:
        """A cell came to an end, or was stopped."""
        with self._lock:
            self._running.pop(result.cell.name, None)
            if result.status in ("waiting", "stopped"):
                return
            self._done += 1
            why = f" ({result.reason})" if result.reason else f", loss {result.final_loss:.3f}"
            self.say(
                f"{self._done}/{self._total}  {result.cell.name}: {result.status}{why}, {result.wall_seconds:.0f} s"
            )

    def update(self) -> None:
        """Redraws the live line."""
        if self._live is None:
            return
        with self._lock:
            steps = {name: _step(Path(cell.config.logging.run_dir)) for name, cell in self._running.items()}
            done = self._done
        parts = sum(step / length for step, length in steps.values() if length)
        shown = "  ".join(
            f"{name} {step}/{length}" if length else f"{name} …" for name, (step, length) in steps.items()
        )
        self._live.update(self._task, completed=done + parts, description=shown, cells=f"{done}/{self._total}")

    def say(self, line: str) -> None:
        """Prints a line of its own."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


def _step(directory: Path) -> tuple[int, int]:
    """The newest step in a run's metrics, and the run's length; zeros where it is not known yet."""
    metrics, events = directory / "metrics.jsonl", directory / "events.jsonl"
    if not (metrics.is_file() and events.is_file()):  # not there yet, or a pipe
        return 0, 0
    try:
        with metrics.open("rb") as file:
            file.seek(max(file.seek(0, 2) - _TAIL_BYTES, 0))
            step = json.loads(file.read().rstrip(b"\n").rsplit(b"\n", 1)[-1])["step"]
        lines = events.read_text(encoding="utf-8").splitlines()
        return step, next(json.loads(line)["length"] for line in reversed(lines) if '"start"' in line)
    except (OSError, ValueError, KeyError, StopIteration):  # removed meanwhile, or half a line
        return 0, 0


def table(results: list[Result], running: bool) -> Table:
    """All cells of a study and how they stand.

    Args:
      running: whether the study runs now: what was begun and has not ended is under way.
    """
    shown = Table(box=None, pad_edge=False)
    shown.add_column("cell", no_wrap=True, min_width=max(len(result.cell.name) for result in results))
    shown.add_column("status", no_wrap=True, min_width=len("finished"))
    for column in ("steps", "final loss", "seconds"):
        shown.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    shown.add_column("why", no_wrap=True, overflow="ellipsis")
    for result in results:
        status = "running" if running and result.status == "stopped" else result.status
        done = result.status not in ("waiting", "stopped")
        shown.add_row(
            result.cell.name,
            status,
            str(max((line["step"] for line in result.metrics), default=0)),
            f"{result.final_loss:.4f}" if done else "",
            f"{result.wall_seconds:.0f}" if done else "",
            "" if status == "running" else escape(result.reason),
        )
    return shown
