"""What a study is: a question, a grid of runs that answers it, and what the answer is expected to be.

A study file is read, overridden and checked as a config is, and so is the config of every cell, before anything runs.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from blobjax.config import BadInputError, Config
from blobjax.config.closest import suggest
from blobjax.config.explain import explain
from blobjax.config.load import Setting, find_study, load_inline, parse_override, read_yaml, shown
from blobjax.config.schema import Section
from blobjax.report.html import short

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
]

# A cell's name is the names of its values, each a part of a file name.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._+-]+")
# What a study decides for each of its cells.
_OURS = ("name", "logging.run_dir")


class Axis(Section):
    """One dimension of the grid: named values, each of which sets some keys.

    Written out, `{small: {model.d_model: 64, model.n_heads: 4}, …}`; or, where all values set one key,
    `{key: optimizer.learning_rate, values: [1e-3, 1e-2]}`.
    """

    values: dict[str, dict[str, Any]]
    """Label to what it sets: dotted keys and their values."""
    key: str = ""
    """The one key that all values set; empty where they are written out."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("key"), str):
            key, values = given["key"], given.get("values")
            if given.keys() != {"key", "values"} or not isinstance(values, list) or not values:
                raise ValueError("{key: dotted.key, values: [a list]}")
            return {"key": key, "values": {label(value): {key: value} for value in values}}
        written = isinstance(given, dict) and all(isinstance(value, dict) for value in given.values())
        if not written or not given:
            raise ValueError("values such as {small: {model.d_model: 64}}, or {key: dotted.key, values: [a list]}")
        return {"values": {label(name): value for name, value in given.items()}}

    def replaced(self, values: Any) -> "Axis":
        """This axis with other values: a list for its key, or of the labels that stay; or values written out."""
        if isinstance(values, dict):
            return Axis.model_validate(values)
        if not isinstance(values, list) or not values:
            raise ValueError("a list of values")
        if self.key:
            return Axis.model_validate({"key": self.key, "values": values})
        if unknown := [value for value in values if label(value) not in self.values]:
            raise ValueError(
                f"labels of this axis; {label(unknown[0])} is none, {suggest(label(unknown[0]), self.values)}"
            )
        return self.model_copy(update={"values": {label(value): self.values[label(value)] for value in values}})


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
    grid: Annotated[dict[str, Axis], Field(min_length=1)]
    """Axis to its values, slowest first; there is a cell for each combination."""
    exclude: tuple[dict[str, tuple[str, ...]], ...] = ()
    """Combinations that are left out: axis to a label, or a list of them."""
    analysis: AnalysisName = "final-loss"
    """What makes numbers, words and pictures of the cells."""

    @field_validator("base", mode="before")
    @classmethod
    def _base_by_name(cls, given: Any) -> Any:
        return {"include": given} if isinstance(given, str) else given

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


@dataclass(frozen=True)
class Plan:
    """A study with its overrides applied: everything known, nothing run.

    Attributes:
      name: the study's, from its file.
      study: what the file says.
      overrides: as given on the command line.
      base: the config without any axis.
      directory: where its cells and results go.
      cells: in the order of the grid.
    """

    name: str
    study: Study
    overrides: tuple[str, ...]
    directory: Path
    base: Config
    cells: tuple[Cell, ...]


def label(value: Any) -> str:
    """How a value is called: 0.001, 3e-5, true, 300 steps."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return short(value)
    return str(value)


def load_study(name: str, overrides: Sequence[str], directory: Path | None = None) -> Plan:
    """Reads a study by path or shipped name and resolves the config of every cell.

    Args:
      overrides: `dotted.key=value` for the config of every cell, or `grid.AXIS=[values]` for other values of an axis.
      directory: the study's; default studies/NAME.

    Raises:
      BadInputError: every problem found, one line each.
    """
    path = find_study(name)
    content = read_yaml(path)
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
    study, settings, found = _override_grid(study, settings)
    problems += found + _check_exclusions(study, shown(path)) + _check_overrides(study, settings)
    if problems:
        raise BadInputError(*problems)
    short = _NOT_IN_NAMES.sub("-", path.stem)
    directory = directory or Path("studies") / short
    base, cells = _resolve(study, path, settings, short, directory / "cells")
    return Plan(short, study, tuple(overrides), directory, base, cells)


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
    return [
        f"{origin}: exclude: the grid has no axis '{axis}'; {suggest(axis, study.grid)}"
        for each in study.exclude
        for axis in each
        if axis not in study.grid
    ]


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
    base = load_inline(study.base, path, [*settings, Setting("name", short, origin)])
    cells: list[Cell] = []
    wrong: dict[str, list[str]] = {}
    for labels in _combinations(study):
        name = "_".join(_NOT_IN_NAMES.sub("-", each).strip("-.") or "-" for each in labels.values())
        values = {axis: study.grid[axis].values[value] for axis, value in labels.items()}
        own = [
            Setting(key, value, f"{origin}: grid.{axis}.{labels[axis]}")
            for axis, value_of in values.items()
            for key, value in value_of.items()
        ]
        ours = [Setting("name", f"{short}_{name}"), Setting("logging.run_dir", str(cells_dir / name))]
        try:
            config = load_inline(study.base, path, [*settings, *own, *ours])
        except BadInputError as error:
            for line in error.problems:
                wrong.setdefault(line, []).append(name)
            continue
        if any(name == other.name for other in cells):
            raise BadInputError(f"{origin}: grid: two cells would be called {name}; give their values other labels")
        cells.append(Cell(name, labels, {setting.key: setting.value for setting in own}, config))
    if wrong:
        raise BadInputError(*wrong)
    if not cells:
        raise BadInputError(f"{origin}: exclude leaves no cell of the grid")
    return base, tuple(cells)
