"""How far preparation is: a bar on a terminal, a line a domain elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called with a domain, its bytes done and its bytes in all (0: not known yet); done == total ends the domain."""


def silent(domain: str, done: int, total: int) -> None:
    """Shows nothing."""


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A `Progress` for `prepare` that draws on stderr."""
    if not sys.stderr.isatty():
        started: dict[str, float] = {}

        def line(domain: str, done: int, total: int) -> None:
            if started.setdefault(domain, time.monotonic()) and done == total:
                seconds = time.monotonic() - started[domain]
                print(f"prepared {domain}: {total / 1e6:.1f} MB in {seconds:.1f} s", file=sys.stderr, flush=True)

        yield line
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
