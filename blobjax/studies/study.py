"""What a study is: a question, a grid of runs that answers it, and what the answer is expected to be.

A study file is read, overridden and checked as a config is, and so is the config of every cell, before anything runs.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, field_validator

from blobjax.config import BadInputError, Config
from blobjax.config.closest import suggest
from blobjax.config.document import read_yaml, shown
from blobjax.config.explain import explain
from blobjax.config.load import Setting, find_study, load_inline, parse_override
from blobjax.config.schema import Section
from blobjax.studies.axis import Axis, label

AnalysisName = Literal[
    "final-loss",
    "lr-sensitivity",
    "fp16-loss-scaling",
    "bf16-rounding",
    "mup-transfer",
    "precision-ladder",
    "norm-placement",
    "spike-recovery",
    "in-context",
    "isoflop",
    "model-ladder",
    "data-quantity",
    "data-breadth",
    "training-length",
    "batch-size",
]

# A cell's name is the names of its values, each a part of a file name.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._+-]+")
# What a study decides for each of its cells.
_OURS = ("name", "logging.run_dir")
# What an axis may set besides dotted keys: all that follows from a model's size (`--size` of a run).
SIZE = "size"
# Threads decide the last bits of a sum, which an unstable cell makes much of. So they are a setting of the study, the
# same whatever runs its cells, at once or not, on however many cores: one where the study gives no number.
THREADS = "compute.cpu_threads"
DEFAULT_THREADS = 1
# Combinations of one grid, and letters of a cell's name, which is a part of file names.
_MOST, _LONGEST = 1000, 150


class Study(Section):
    """One question."""

    title: str
    """A line that names it."""
    question: str
    """What is asked, in a few sentences."""
    expected: str
    """What the paper found, and so what should come out."""
    source: str
    """The paper, and where in it."""
    base: dict[str, Any]
    """The config all cells share: its keys, and `include` for those of another config."""
    grid: dict[str, Axis]
    """Axis to its values, slowest first; there is a cell for each combination."""
    exclude: tuple[dict[str, tuple[str, ...]], ...] = ()
    """Combinations that are left out: axis to a label, or a list of them."""
    analysis: AnalysisName = "final-loss"
    """What makes numbers, words and pictures of the cells."""

    @field_validator("base", mode="before")
    @classmethod
    def _base_by_name(cls, given: Any) -> Any:
        return {"include": given} if isinstance(given, str) else given

    @field_validator("grid")
    @classmethod
    def _some(cls, grid: dict[str, Axis]) -> dict[str, Axis]:
        if not grid:
            raise ValueError(
                "at least one axis, such as {learning_rate: {key: optimizer.learning_rate, values: [1e-3]}}"
            )
        return grid

    @field_validator("exclude", mode="before")
    @classmethod
    def _labels(cls, given: Any) -> Any:
        if not isinstance(given, list | tuple) or not all(isinstance(each, dict) for each in given):
            raise ValueError("a list such as [{depth: 8, warmup: none}]")
        as_list = lambda value: value if isinstance(value, list) else [value]  # noqa: E731
        return tuple({axis: tuple(label(v) for v in as_list(value)) for axis, value in each.items()} for each in given)


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
      name: of its directory, made of its labels.
      labels: axis to the label of this cell's value.
      overrides: the dotted keys those values set.
      config: the run.
    """

    name: str
    labels: dict[str, str]
    overrides: dict[str, Any]
    config: Config

    @property
    def after(self) -> str:
        """The cell from whose checkpoint this one begins (duration.start_from), so whose end it waits for; or none."""
        origin = self.config.duration.start_from
        return origin.run if origin is not None and "/" not in origin.run else ""


@dataclass(frozen=True)
class ResolvedStudy:
    """A study with its overrides applied: everything known, nothing run.

    Attributes:
      name: the study's, from its file.
      study: what the file says.
      overrides: as given on the command line.
      base: the config without any axis.
      directory: where its cells and results go.
      cells: in the order of the grid.
      path: of its file.
    """

    name: str
    study: Study
    overrides: tuple[str, ...]
    directory: Path
    base: Config
    cells: tuple[Cell, ...]
    path: Path


def load_study(name: str, overrides: Sequence[str], directory: Path | None = None) -> ResolvedStudy:
    """Reads a study by path or shipped name and resolves the config of every cell.

    Args:
      name: a path, a shipped name, or the directory of a study that was begun, which is gone on with as it is there.
      overrides: `dotted.key=value` for the config of every cell, or `grid.AXIS=[values]` for other values of an axis.
      directory: the study's; default studies/NAME, or the one that NAME is.

    Raises:
      BadInputError: every problem found, one line each.
    """
    path = find_study(name)
    content = read_yaml(path, Study)
    problems: list[str] = []
    settings: list[Setting] = []
    for override in overrides:
        try:
            settings.append(parse_override(override))
        except BadInputError as error:
            problems += error.problems
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        raise BadInputError(
            *problems, *explain(error, content, dict.fromkeys(["", *content], shown(path)), Study)
        ) from None
    problems += _check_exclusions(study, shown(path))
    study, settings, found = _override_grid(study, settings)
    problems += found + _check_axes(study, shown(path)) + _check_overrides(study, settings)
    if problems:
        raise BadInputError(*problems)
    begun = path.parent if Path(name).is_dir() and path.parent == Path(name) else None
    short = _NOT_IN_NAMES.sub("-", begun.resolve().name if begun else path.stem)
    directory = directory or begun or Path("studies") / short
    base, cells = _resolve(study, path, settings, short, directory / "cells")
    return ResolvedStudy(short, study, tuple(overrides), directory, base, cells, path)


def one_more(plan: ResolvedStudy, name: str, values: dict[str, Any], directory: Path) -> Cell:
    """A run beside the grid: the study's base with its overrides, and these dotted keys.

    Raises:
      BadInputError: every problem found.
    """
    given = [setting for setting in map(parse_override, plan.overrides) if not setting.key.startswith("grid.")]
    own = [Setting(key, value, name) for key, value in values.items() if key != SIZE]
    ours = [Setting("name", f"{plan.name}_{name}"), Setting("logging.run_dir", str(directory / name))]
    return Cell(name, {}, values, _load(plan.study.base, plan.path, [*given, *own, *ours], values.get(SIZE)))


def _load(content: dict[str, Any], path: Path, settings: Sequence[Setting], size: Any = None) -> Config:
    """A config whose threads are not left to the machine."""
    config = load_inline(content, path, settings, size)
    if config.compute.cpu_threads:
        return config
    return load_inline(content, path, [*settings, Setting(THREADS, DEFAULT_THREADS, shown(path))], size)


def _override_grid(study: Study, settings: list[Setting]) -> tuple[Study, list[Setting], list[str]]:
    """The study with `grid.…` overrides applied, the settings that are left, and what was wrong."""
    grid, rest, problems = dict(study.grid), [], []
    for setting in settings:
        section, _, axis = setting.key.partition(".")
        if section != "grid":
            rest.append(setting)
        elif axis not in grid:
            problems.append(f"override {setting.key}: the study has no such axis; {suggest(axis, grid)}")
        else:
            try:
                grid[axis] = grid[axis].replaced(setting.value)
            except ValidationError as error:
                expected = error.errors()[0]["msg"].removeprefix("Value error, ")
                problems.append(f"override {setting.key}: expected {expected}")
            except ValueError as error:
                problems.append(f"override {setting.key}: expected {error}")
    return study.model_copy(update={"grid": grid}), rest, problems


def _check_exclusions(study: Study, origin: str) -> list[str]:
    problems = []
    for axis, labels in ((axis, labels) for each in study.exclude for axis, labels in each.items()):
        if axis not in study.grid:
            problems.append(f"{origin}: exclude: the grid has no axis '{axis}'; {suggest(axis, study.grid)}")
            continue
        values = study.grid[axis].values
        problems += [f"{origin}: exclude: axis {axis} has no '{each}'; {suggest(each, values)}"
                     for each in labels if each not in values]  # fmt: skip
    return problems


def _check_axes(study: Study, origin: str) -> list[str]:
    """Keys that are not an axis's to set, or that two of them would; and more cells than anybody means."""
    keys = {name: {key for value in axis.values.values() for key in value} for name, axis in study.grid.items()}
    problems = [
        f"{origin}: grid.{name}: {key} is what the study decides for each cell; leave it out"
        for name, own in keys.items()
        for key in own
        if any(_overlap(key, ours) for ours in _OURS)
    ]
    problems += [
        f"{origin}: grid: the axes {first} and {second} both set {key}; let one of them do it"
        for first, second in itertools.combinations(keys, 2)
        for key in sorted(keys[first])
        if any(_overlap(key, other) for other in keys[second])
    ]
    if (count := math.prod(len(axis.values) for axis in study.grid.values())) > _MOST:
        problems.append(f"{origin}: grid: {count:,} combinations are more than the {_MOST:,} of one study; give fewer")
    return problems


def _check_overrides(study: Study, settings: list[Setting]) -> list[str]:
    """An override that an axis would undo, or that the study decides itself."""
    problems = []
    for key in (setting.key for setting in settings):
        if key in _OURS:
            problems.append(f"override {key}: the study names its cells and their directories; give --dir for another")
        for name, axis in study.grid.items():
            if any(_overlap(key, each) for value in axis.values.values() for each in value):
                problems.append(f"override {key}: the grid's axis {name} sets it; give grid.{name}=[…]")
    return problems


def _overlap(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


def _combinations(study: Study) -> Iterator[dict[str, str]]:
    for combination in itertools.product(*(axis.values for axis in study.grid.values())):
        labels = dict(zip(study.grid, combination, strict=True))
        if not any(all(labels[axis] in those for axis, those in each.items()) for each in study.exclude):
            yield labels


def _resolve(
    study: Study, path: Path, settings: list[Setting], short: str, cells_dir: Path
) -> tuple[Config, tuple[Cell, ...]]:
    origin = shown(path)
    base = _load(study.base, path, [*settings, Setting("name", short, origin)])
    settings = [*settings, Setting(THREADS, base.compute.cpu_threads, origin)]
    cells: list[Cell] = []
    wrong: dict[str, list[str]] = {}
    seen: dict[str, Config] = {}
    for labels in _combinations(study):
        name = _named(labels)
        if len(name) > _LONGEST:
            raise BadInputError(
                f"{origin}: grid: the name of cell {name[:40]}… has {len(name)} letters, and {_LONGEST} is the most; "
                "give its values shorter labels"
            )
        values = {axis: study.grid[axis].values[value] for axis, value in labels.items()}
        own = [
            Setting(key, _sibling(study, labels, axis, key, value), f"{origin}: grid.{axis}.{labels[axis]}")
            for axis, value_of in values.items()
            for key, value in value_of.items()
        ]
        size = next((setting.value for setting in own if setting.key == SIZE), None)
        ours = [Setting("name", f"{short}_{name}"), Setting("logging.run_dir", str(cells_dir / name))]
        try:
            config = _load(study.base, path, [*settings, *(s for s in own if s.key != SIZE), *ours], size)
        except BadInputError as error:
            for line in error.problems:
                wrong.setdefault(line, []).append(name)
            continue
        if any(name == other.name for other in cells):
            raise BadInputError(f"{origin}: grid: two cells would be called {name}; give their values other labels")
        same = config.model_copy(update={"name": "", "logging": base.logging})
        if twin := next((other for other, content in seen.items() if content == same), ""):
            raise BadInputError(
                f"{origin}: grid: {twin} and {name} are the same run, nothing differs in their configs; leave one out"
            )
        seen[name] = same
        cells.append(Cell(name, labels, {setting.key: setting.value for setting in own}, config))
    if wrong:
        raise BadInputError(*wrong)
    if not cells:
        raise BadInputError(f"{origin}: exclude leaves no cell of the grid")
    if problems := _check_order(cells, origin):
        raise BadInputError(*problems)
    return base, tuple(cells)


def _named(labels: dict[str, str]) -> str:
    return "_".join(_NOT_IN_NAMES.sub("-", each).strip("-.") or "-" for each in labels.values())


def _sibling(study: Study, labels: dict[str, str], axis: str, key: str, value: Any) -> Any:
    """A value of an axis; of `duration.start_from: LABEL@…` the cell that has this label and all others of this cell.

    So a branch of each seed begins from the trunk of its seed.
    """
    if key != "duration.start_from" or not isinstance(value, str):
        return value
    run, _, point = value.rpartition("@")
    return f"{_named(labels | {axis: run})}@{point}" if run in study.grid[axis].values else value


def _check_order(cells: list[Cell], origin: str) -> list[str]:
    """A cell begins from one that stands before it in the grid: so none waits for itself, or for ever."""
    names = [cell.name for cell in cells]
    return [
        f"{origin}: cell {cell.name}: duration.start_from '{cell.config.duration.start_from}': no cell before it in "
        f"the grid is called {cell.after}; " + (suggest(cell.after, names[:n]) if n else "it is the first")
        for n, cell in enumerate(cells)
        if cell.after and cell.after not in names[:n]
    ]
