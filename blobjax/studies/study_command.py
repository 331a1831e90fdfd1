"""`blobjax study`: from a name to a page, or to a table of how its cells stand."""

import contextlib
import json
import platform
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from blobjax.config import BadInputError
from blobjax.config.load import configs_dir
from blobjax.processes.stopping import SIGNALS
from blobjax.report import redaction
from blobjax.runs.directory import write_atomically
from blobjax.runs.outcome import DONE
from blobjax.studies import confirmation, here, noise, runner
from blobjax.studies.analyses import ANALYSES, found, lacking
from blobjax.studies.cell_progress import Progress, table
from blobjax.studies.finding import Finding, Prediction
from blobjax.studies.results import Result, jsonable, read, write_cells
from blobjax.studies.slurm import Jobs, executor
from blobjax.studies.study import Cell, ResolvedStudy, load_study
from blobjax.training.progress import PatientConsole

FINISHED, FAILED, RESUMABLE = 0, 1, 75
# Columns of what no terminal shows.
_WIDE = 1000


def study(
    name: str,
    overrides: Sequence[str] = (),
    directory: str = "",
    jobs: int = 0,
    confirm: bool = False,
    on: Literal["local", "here", "slurm"] = "local",
    slurm: Sequence[str] = (),
) -> int:
    """Runs what has not been run of a study, and writes its results.

    Args:
      name: a path, or a name in configs/studies/.
      overrides: `dotted.key=value` for every cell, `grid.AXIS=[values]` for the grid.
      directory: where; default studies/NAME.
      jobs: cells at once; 0: as many as suit the machine.
      confirm: when all cells are done, also make the run that tests what they predict.
      on: `local`: cells run in processes of this machine; `here`: in this one; `slurm`: as jobs of a Slurm cluster.
      slurm: `name=value` for sbatch, where they are.

    Returns:
      The exit code: 0 all cells came to an end, 1 some failed, 75 interrupted, to be resumed.

    Raises:
      BadInputError: anything about the study that cannot work, before anything runs.
    """
    plan = load_study(name, overrides, Path(directory) if directory else None)
    if problems := lacking(plan.study.analysis, {name: axis.values for name, axis in plan.study.grid.items()}):
        raise BadInputError(*(f"{plan.name}: {line}" for line in problems))
    if confirm and not ANALYSES[plan.study.analysis].predicts:
        known = ", ".join(name for name, analysis in ANALYSES.items() if analysis.predicts)
        raise BadInputError(f"--confirm: {plan.name} predicts nothing that a run could test; those that do: {known}")
    if find_spec("matplotlib") is None:
        raise BadInputError("a study draws plots, and matplotlib is not installed; pip install 'blobjax[plot]'")
    console = PatientConsole()
    runner.check(plan)
    runner.check_grid(plan)
    submits = executor(plan.directory, slurm) if on == "slurm" else None
    if on == "here":
        here.start(plan)
    with runner.locked(plan.directory) as lock, _told_to_stop():
        write_atomically(plan.directory / "study.yaml", _record(plan))
        cells = runner.unfinished(plan)
        done = len(plan.cells) - len(cells)
        known = f", {done} of them done before" if done else ""

        def run(part: ResolvedStudy, cells: list[Cell], done: int) -> None:
            with Progress(len(part.cells), done, console, live=on != "here") as progress:
                if on == "here":
                    here.run(part, cells, progress)
                elif submits is not None:
                    Jobs(part, cells, jobs, progress, submits).run()
                else:
                    at_once = min(jobs or runner.default_jobs(part), len(cells))
                    runner.Crew(part, cells, at_once, lock, progress).run()

        console.print(f"{plan.name}: {len(plan.cells)} cells{known}", highlight=False, soft_wrap=True)
        try:
            if cells:
                run(plan, cells, done)
            return conclude(plan, console, run if confirm else None)
        except KeyboardInterrupt:
            write_cells(plan.directory / "cells.jsonl", [read(cell) for cell in plan.cells])
            console.print("stopped; run the same command to go on", highlight=False)
            return RESUMABLE


def status(name: str, overrides: Sequence[str] = (), directory: str = "") -> None:
    """Prints how the cells of a study stand.

    Raises:
      BadInputError: there is no such study, or its directory is something else.
    """
    plan = load_study(name, overrides, Path(directory) if directory else None)
    runner.check_directory(plan.directory)
    # Into a file or a pipe as wide as it is, and not cut at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    console.print(table([read(cell) for cell in plan.cells], runner.in_use(plan.directory)))


def _record(plan: ResolvedStudy) -> str:
    """The study with its overrides applied and its base resolved: a study file again."""
    content = plan.study.model_dump(mode="json")
    ours = {"name": True, "logging": {"run_dir": True}}
    content["base"] = plan.base.model_dump(mode="json", exclude=plan.base.derived() | ours)
    content["grid"] = {axis: values.values for axis, values in plan.study.grid.items()}
    return yaml.safe_dump(content, sort_keys=False, width=100, allow_unicode=True)


@contextlib.contextmanager
def _told_to_stop() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP save, and end with 75; what is ignored (nohup) stays ignored."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


Run = Callable[[ResolvedStudy, list[Cell], int], None]
"""Runs cells of a plan, of whose cells so many were done before."""


def _confirm(plan: ResolvedStudy, prediction: Prediction | None, run: Run, console: Console) -> None:
    """Makes the run that tests a prediction, or goes on with it; one that has come to its end is left alone."""
    if prediction is None:
        console.print("--confirm: nothing could be predicted, for the reasons below", highlight=False, soft_wrap=True)
        return
    alone = replace(plan, cells=(confirmation.cell(plan, prediction),))
    runner.check(alone)
    if cells := runner.unfinished(alone):
        console.print(f"testing the prediction for {prediction.what}", highlight=False, soft_wrap=True)
        run(alone, cells, 0)


def conclude(plan: ResolvedStudy, console: Console, confirm: Run | None = None) -> int:
    """Writes cells.jsonl, and where every cell has come to an end summary.json, the plots and the page.

    Args:
      confirm: runs cells, where the run that tests the prediction is to be made before.
    """
    from blobjax.laws import fit_file
    from blobjax.report import plots
    from blobjax.studies.page import page

    folder = plan.directory
    results = [read(cell) for cell in plan.cells]
    write_cells(folder / "cells.jsonl", results)
    if open_cells := [result for result in results if result.status not in (*DONE, "failed")]:
        names = ", ".join(f"{result.cell.name} ({result.reason})" for result in open_cells)
        console.print(f"not at their end: {names}; run the same command to go on", highlight=False, soft_wrap=True)
        return RESUMABLE
    finding = found(plan.study.analysis, results)
    if confirm is not None:
        _confirm(plan, finding.prediction, confirm, console)
    tested = confirmation.look(plan, finding)
    finding = confirmation.weighed(finding, tested)
    summary = summarise(plan, results, finding, tested)
    pictures = []
    for picture in finding.pictures:
        png = plots.to_png(picture.figure)
        write_atomically(folder / f"{picture.name}.png", png)
        pictures.append((picture.caption, png))
    for name, content in finding.laws.items():
        fit_file.write(content, folder / f"fit-{name}.json")
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / "index.html", page(plan, results, summary, finding, tested, pictures))
    for words in summary["found"]:
        console.print(words, highlight=False, markup=False, soft_wrap=True)
    console.print(f"page: {folder / 'index.html'}", highlight=False, soft_wrap=True)
    if confirm is not None:
        if tested is None:
            return FAILED
        if tested.result.status not in DONE:
            return FAILED if tested.result.status == "failed" else RESUMABLE
    return FAILED if any(result.status == "failed" for result in results) else FINISHED


def _failures(results: list[Result]) -> list[str]:
    """A sentence for each reason that cells failed for: what was found without them is not the whole answer."""
    reasons: dict[str, list[str]] = {}
    for result in results:
        if result.status == "failed":
            reasons.setdefault(result.reason, []).append(result.cell.name)
    return [f"Failed, and missing from all of this: {', '.join(names)} ({why})." for why, names in reasons.items()]


def _law(content: dict[str, Any]) -> dict[str, Any]:
    """What is asked first of a fit; the rest is in its file."""
    return jsonable({name: content[name] for name in ("law", "formula", "parameters", "derived", "future", "notes")})


def summarise(
    plan: ResolvedStudy, results: list[Result], finding: Finding, tested: confirmation.Tested | None
) -> dict[str, Any]:
    """What summary.json says. It tells no secret, and what kind of machine this was, not which."""
    asked = ["--confirm"] if tested is not None and tested.result.status != "waiting" else []
    # A shipped study is found by its name. Of any other the page can name one file for certain, which lies beside it
    # and has the overrides applied.
    shipped = plan.path == configs_dir() / "studies" / f"{plan.name}.yaml"
    again = [plan.name, *plan.overrides] if shipped else ["study.yaml", "--dir", "again"]
    packages = ("blobjax", "jax", "flax", "optax", "numpy", "matplotlib")
    starts = [event for result in results for event in result.events if event["event"] == "start"]
    devices = sorted({f"{each['devices']} × {each['device_kind']}" for each in starts if "device_kind" in each})
    told = {
        "study": plan.name,
        "title": plan.study.title,
        "question": plan.study.question,
        "expected": plan.study.expected,
        "source": plan.study.source,
        "reproduced": finding.reproduced,
        "found": [*finding.words, *_failures(results)],
        "seeds": sorted({result.cell.config.seed for result in results}),
        "interval": noise.INTERVAL,
        "numbers": jsonable(finding.numbers),
        "laws": {name: _law(content) | {"file": f"fit-{name}.json"} for name, content in finding.laws.items()},
        "worth": {name: jsonable(asdict(each)) for name, each in finding.worth.items()},
        "prediction": None if tested is None else confirmation.record(tested),
        "cells": dict(Counter(result.status for result in results)),
        "wall_seconds": round(sum(result.wall_seconds for result in results), 1),
        "command": redaction.command(shlex.join(["blobjax", "study", *again, *asked])),
        "overrides": list(plan.overrides),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in packages},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{', '.join(devices)}; {platform.system()} {platform.machine()}, {runner.cores()} cores",
    }
    return redaction.public(told)
