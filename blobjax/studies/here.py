"""Cells one after another in the study's own process: a breakpoint stops there, and what a cell prints is seen.

What ends the process ends the study with it, be it a run that hangs or one that found silent corruption; the same
command goes on.
"""

import os
from pathlib import Path

import jax

from blobjax.compute import runtime
from blobjax.config import BadInputError
from blobjax.studies import runner, worker
from blobjax.studies.cell_progress import Progress
from blobjax.studies.order import Order
from blobjax.studies.results import read
from blobjax.studies.study import Cell, ResolvedStudy


def start(plan: ResolvedStudy) -> None:
    """Starts jax as all cells of a study want it; to be called once, before the first of them.

    Raises:
      BadInputError: they do not want the same.
    """
    first = plan.cells[0]
    for cell in plan.cells:
        if runner.start_of(cell.config) != runner.start_of(first.config):
            raise BadInputError(
                f"--on here: {first.name} and {cell.name} start jax in different ways, and one process starts "
                f"it once ({', '.join(runner.START)} of compute); leave out --on here"
            )
    for name, value in runner.compilation_cache(plan.directory).items():
        if name not in os.environ:
            # jax reads its environment when it is imported, which it was.
            jax.config.update(name.lower(), float(value) if name.endswith("SECS") else value)
    runtime.configure(first.config.compute)


def run(plan: ResolvedStudy, cells: list[Cell], progress: Progress) -> None:
    """Runs cells until each has come to an end.

    Raises:
      BadInputError: a cell's run refused its config, devices or data.
      KeyboardInterrupt: one was told to stop; it is saved.
    """
    order = Order(plan, cells)
    while (cell := order.take()) is not None:
        runner.prepare(cell)
        if why_not := order.unmet(cell):
            runner.note_failure(cell, why_not)
        else:
            progress.begin(cell)
            answer = worker.run(Path(cell.config.logging.run_dir), configured=True)
            runner.refuse(cell, answer)
            if "error" in answer:
                runner.note_failure(cell, answer["error"])
            if answer["told"] in ("SIGINT", "SIGTERM", "SIGHUP"):
                raise KeyboardInterrupt
        progress.end(read(cell))
        order.ended(cell)
