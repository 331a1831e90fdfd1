"""How far preparation is: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called with a domain, its bytes done and its bytes in all (0: not known); at its end the two are equal."""

# Where there is no terminal: often enough to see that it is alive, seldom enough for a log.
_SECONDS_BETWEEN_LINES = 10.0


def silent(domain: str, done: int, total: int) -> None:
    """Shows nothing."""


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A `Progress` for `prepare` that draws on stderr."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("preparing {task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, progress.TaskID] = {}

        def draw(domain: str, done: int, total: int) -> None:
            if domain not in tasks:
                tasks[domain] = bar.add_task(domain)
            bar.update(tasks[domain], completed=done, total=total or None)

        yield draw


def _lines() -> Progress:
    started: dict[str, float] = {}
    told: dict[str, float] = {}

    def line(domain: str, done: int, total: int) -> None:
        now = time.monotonic()
        start = started.setdefault(domain, now)
        if done and done == total:
            print(f"prepared {domain}: {total / 1e6:,.1f} MB in {now - start:.1f} s", file=sys.stderr, flush=True)
        elif now - told.setdefault(domain, start) >= _SECONDS_BETWEEN_LINES:
            told[domain] = now
            whole = f" of {total / 1e6:,.1f}" if total else ""
            print(f"preparing {domain}: {done / 1e6:,.1f}{whole} MB", file=sys.stderr, flush=True)

    return line
