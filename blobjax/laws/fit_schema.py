"""What a fit file must hold to be predicted from, drawn and fitted again: its shape, and that its numbers agree."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from blobjax.laws import certainty, fitting
from blobjax.laws.formulas import LAWS, Law, Settings
from blobjax.laws.formulas.law import CHAIN, RANGE

FORMAT = 1
"""Of the file: readers refuse another."""

# Another machine's exponential differs in its last digits.
_ROUNDING = 1e-6

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    """No text is read as a number, and no truth value as one."""

    model_config = ConfigDict(strict=True)


class _Spread(_Strict):
    value: Number
    low: Number | None
    high: Number | None


class _ParameterKeys(_Strict):
    value: Number | None
    low: Number | None
    high: Number | None
    fixed: bool
    weakly_identified: bool
    meaning: str


class _ObjectiveKeys(_Strict):
    kind: str
    delta: Number | None
    value: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    converged: bool
    rms_residual: Number
    r_squared: Number | None = None


Some = Annotated[list[Number], Field(min_length=1)]


class _BudgetsKeys(_Strict):
    flops: Some
    params: Some
    tokens: Some
    loss: Some


class _DetailsKeys(_Strict):
    budgets: _BudgetsKeys | None = None


class _SettingsKeys(_Strict):
    delta: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    starts: Annotated[int, Field(ge=1)]
    bootstrap: Count
    level: Annotated[float, Field(ge=0.5, lt=1)]
    seed: Count
    fixed: dict[str, Number]
    budget_tolerance: Annotated[float, Field(ge=0, le=CHAIN)] = Settings.budget_tolerance
    window: Annotated[float, Field(gt=1, le=RANGE[1])] | None = None
    vertex: Literal["parabola", "akima"] = "parabola"


class _PointsKeys(_Strict):
    count: Annotated[int, Field(ge=1)]
    sha256: str
    dropped: dict[str, Count]
    notes: list[str]
    sources: list[dict[str, str]]
    columns: dict[str, list[Number]]
    places: list[str] = []


class _BootstrapKeys(_Strict):
    draws: list[list[Number]]
    failed: Count
    share: Annotated[float, Field(gt=0, le=1)]


class FitFile(_Strict):
    """The keys of a fit file; those that are only printed are not looked into."""

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)]
    law: str
    formula: str
    source: str
    target: str
    objective: _ObjectiveKeys
    counted: dict[str, str]
    parameters: dict[str, _ParameterKeys]
    derived: dict[str, _Spread]
    profiles: dict[str, dict[str, Any]]
    future: list[dict[str, Any]]
    beside: dict[str, dict[str, Any]]
    details: _DetailsKeys
    notes: list[str]
    settings: _SettingsKeys
    points: _PointsKeys
    bootstrap: _BootstrapKeys
    residuals: Some
    versions: dict[str, str]


def damage(content: dict[str, Any]) -> str:
    """What is wrong with the content of a fit file whose law is known, in words; empty for a whole one."""
    try:
        file = FitFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    law = LAWS[file.law]
    return next(_disagreements(law, file), "")


def _disagreements(law: Law, file: FitFile) -> Iterator[str]:
    """What each number may be, given the law and the others; what comes later takes what comes before for granted."""
    if file.target != law.target:
        yield f"target: is '{file.target}', of {law.name} '{law.target}'"
    for name in sorted({*law.names} ^ file.parameters.keys()):
        yield f"parameters: {f'{law.name} has no' if name in file.parameters else 'there is no'} '{name}'"
    for name in sorted(file.settings.fixed.keys() - {*law.names}):
        yield f"settings.fixed: {law.name} has no '{name}'"
    coefficient_of = {exponent: name for name, exponent in law.exponents.items()}
    for name, positive in zip(law.names, law.positive, strict=True):
        value, of = file.parameters[name].value, coefficient_of.get(name)
        if value is None and (of is None or file.parameters[of].value != 0):
            yield f"parameters.{name}: has no value"
        if value is not None and positive and value < 0:
            yield f"parameters.{name}: is {value:g}"
    columns = file.points.columns
    for name in (*law.needs, law.target):
        if name not in columns:
            yield f"points.columns: there is no '{name}'"
    if file.points.places and len(file.points.places) != file.points.count:
        yield f"points.places: {len(file.points.places)} for {file.points.count} points"
    for name, column in columns.items():
        if len(column) != file.points.count:
            yield f"points.columns.{name}: has {len(column)} numbers for {file.points.count} points"
        if (
            min(column) <= 0
            and not (name == law.target and law.signed)
            and not (min(column) == 0 and name in law.origin)
        ):
            yield f"points.columns.{name}: not all are more than 0"
    yield from _draws(law, file)
    yield from _residuals(law, file)


def _draws(law: Law, file: FitFile) -> Iterator[str]:
    rows = file.bootstrap.draws
    if any(len(row) != len(law.names) for row in rows):
        yield f"bootstrap.draws: not all have {len(law.names)} numbers"
    if len(rows) not in (0, file.settings.bootstrap - file.bootstrap.failed):
        yield f"bootstrap: {len(rows)} draws and {file.bootstrap.failed} that failed, of {file.settings.bootstrap}"
    draws = np.array(rows, float).reshape(-1, len(law.names))
    if np.any(draws[:, law.positive] < 0):
        yield "bootstrap.draws: not all of what must be positive is"
    for n, name in enumerate(law.names):
        entry, column = file.parameters[name], draws[:, n]
        for coefficient, exponent in law.exponents.items():
            if exponent == name:
                column = column[draws[:, law.names.index(coefficient)] != 0]
        if entry.low is None or entry.high is None:
            continue
        if not len(column) or not np.allclose(
            certainty.interval(column, file.bootstrap.share), [entry.low, entry.high], rtol=_ROUNDING, atol=0
        ):
            yield f"parameters.{name}: its interval, {entry.low:g} to {entry.high:g}, is not that of the draws"


def _residuals(law: Law, file: FitFile) -> Iterator[str]:
    if law.measured is not None:  # of a law of the best at each budget they are about its parabolas
        return
    if len(file.residuals) != file.points.count:
        yield f"residuals: {len(file.residuals)} for {file.points.count} points"
    x = {name: np.array(column) for name, column in file.points.columns.items()}
    found = [file.parameters[name].value for name in law.names]
    values = np.array([1.0 if value is None else value for value in found])
    with np.errstate(all="ignore"):
        predicted = law.predict(values, x)
        residuals = fitting.target(law, x) - (np.log(predicted) if law.log else predicted)
    if not np.allclose(residuals, file.residuals, rtol=_ROUNDING, atol=_ROUNDING):
        yield "parameters: with these values the residuals are others"
