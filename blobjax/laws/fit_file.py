"""A fit as a file: what was fitted, to what, how, and how sure; enough to predict from it, and to fit it again."""

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from blobjax.config import BadInputError
from blobjax.config.closest import suggest
from blobjax.laws import certainty, fitting
from blobjax.laws.fit_schema import FORMAT, damage
from blobjax.laws.formulas import LAWS, Law, Settings
from blobjax.laws.formulas.law import MOST_RESAMPLES, Columns, Estimate
from blobjax.laws.points import Points
from blobjax.runs import output

# A loss this many standard deviations above the law's, and by more than this part, is no noise.
_DIVERGED, _NOISE = 10, 0.1
# So many points are named one by one.
_NAMED = 5


def make(law: Law, points: Points, settings: Settings) -> dict[str, Any]:
    """Fits a law and finds out how far to trust it.

    Raises:
      BadInputError: the points do not allow it.
    """
    x = points.columns
    if unknown := [name for name in settings.fixed if name not in law.names]:
        raise BadInputError(f"--fix {unknown[0]}: {law.name} has no such parameter; {suggest(unknown[0], law.names)}")
    if settings.fixed and law.estimate is not None:
        raise BadInputError(f"--fix: --law {law.name} has an estimator of its own, which fits all its parameters")
    for name, value in settings.fixed.items():
        parameter = law.parameters[law.names.index(name)]
        if parameter.positive and (value < 0 or (value == 0 and not parameter.zero)):
            raise BadInputError(f"--fix {name}={value:g}: must be {'0 or more' if parameter.zero else 'more than 0'}")
    if settings.bootstrap > MOST_RESAMPLES:
        raise BadInputError(
            f"--bootstrap {settings.bootstrap}: must be {MOST_RESAMPLES} or less; 1000 tell all there is"
        )
    if problems := law.problems(x, settings.fixed):
        raise BadInputError(*(f"--law {law.name}: {problem}" for problem in problems))
    found = fitting.fit(law, x, settings)
    if not (np.all(np.isfinite(found.values)) and np.all(np.isfinite([found.objective, *found.residuals]))):
        raise BadInputError(_ran_off(law, settings, found))
    draws = fitting.bootstrap(law, x, settings, found)
    failed = settings.bootstrap - len(draws) if found.noise_known else 0
    notes = [*points.notes, *found.notes, *_diverged(law, points, settings, found)]
    notes += _resampled(settings, len(draws)) if found.noise_known else []
    if len(draws) < max(certainty.FEWEST, settings.bootstrap / 2):
        draws = draws[:0]
    within = certainty.share(settings.level, law.independent(x, found), len(law.names) - len(settings.fixed))
    notes += _without_derived(law, found, draws)
    parameters = _parameters(law, settings, found, draws, within)
    notes += _without_exponent(law, found, draws)
    notes += _without_profile(law, parameters)
    future, why_not = certainty.leave_future_out(law, x, settings, found)
    if why_not:
        notes.append(f"no leave-future-out table: {why_not}")
    return {
        "format": FORMAT,
        "law": law.name,
        "formula": law.formula,
        "source": law.source,
        "target": law.target,
        "objective": _objective(law, settings, found, dict(law.measured(x, settings)) if law.measured else x),
        "counted": points.counted,
        "parameters": parameters,
        "derived": _derived(law, found, draws, within),
        "profiles": _profiles(law, x, settings, found, draws, parameters, within),
        "future": future,
        "beside": {name: _beside(LAWS[name], x, settings) for name in law.beside},
        "details": found.details,
        "notes": notes,
        "settings": asdict(settings) | {"delta": _finite(settings.delta)},
        "points": {
            "count": len(x[law.target]),
            "sha256": points.sha256,
            "dropped": points.dropped,
            "notes": list(points.notes),
            "sources": points.sources,
            "columns": {name: column.tolist() for name, column in x.items()},
            "places": list(points.places),
        },
        "bootstrap": {"draws": draws.tolist(), "failed": failed, "share": within},
        "residuals": found.residuals.tolist(),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("blobjax", "numpy", "scipy")},
    }


def _ran_off(law: Law, settings: Settings, found: Estimate) -> str:
    infinite = [name for name, value in zip(law.names, found.values, strict=True) if not np.isfinite(value)]
    what = f"{' and '.join(infinite)} ran off to infinity" if infinite else "the law has no value at some points"
    fixed = "".join(f" --fix {name}={value:g}" for name, value in settings.fixed.items())
    return f"--law {law.name} was not fitted: {what}; look at {f'{fixed[1:]} and ' if fixed else ''}the points"


def _resampled(settings: Settings, fitted: int) -> list[str]:
    """What is to be said of resamples, where there is anything."""
    asked, fewest = settings.bootstrap, certainty.FEWEST
    if 0 < asked < fewest:
        return [f"{asked} resamples are too few for intervals; they take --bootstrap {fewest} or more"]
    if fitted < max(fewest, asked / 2) and asked:
        return [f"only {fitted} of {asked} resamples could be fitted: no intervals are given"]
    if fitted < asked:
        words = (
            f"{asked - fitted} of {asked} resamples could not be fitted or ran off to infinity; intervals are without"
        )
        return [f"{words} them, and too narrow for what is weakly identified"]
    return []


def _without_profile(law: Law, parameters: dict[str, Any]) -> list[str]:
    names = [name for name, entry in parameters.items() if entry["weakly_identified"] and entry["value"] is not None]
    if law.estimate is None or not names:
        return []
    return [
        f"no profile of {', '.join(names)}, weakly identified: {law.name} has an estimator of its own, which "
        "maximises no likelihood that could be profiled; its resamples tell what is known"
    ]


def _finite(value: float) -> float | None:
    """JSON has no infinity; a delta of null is least squares."""
    return value if np.isfinite(value) else None


def _diverged(law: Law, points: Points, settings: Settings, found: Estimate) -> list[str]:
    """A sentence for each run whose loss lies far above all that the law and the other runs have there."""
    if law.target != "loss" or law.curves:
        return []
    values = found.values
    if law.estimate is not None or np.isinf(settings.delta):
        # Least squares bend to a run that is far off, and a law of the best at a budget says nothing of other sizes.
        law = law if law.estimate is None else LAWS["chinchilla-3"]
        if law.problems(points.columns, settings.fixed):
            return []
        values = fitting.fit(law, points.columns, Settings(starts=5, fixed=settings.fixed)).values
    off = np.log(points.columns["loss"] / law.predict(values, points.columns))
    # The median is of the good runs, as long as they are the most; 1.4826 makes it a standard deviation.
    far = np.flatnonzero(off > max(_DIVERGED * 1.4826 * float(np.median(np.abs(off))), _NOISE))
    places = points.places or [f"point {n + 1}" for n in range(len(off))]
    lines = [
        f"{places[n]}: loss {points.columns['loss'][n]:.4g} is {np.exp(off[n]):.3g} times what the law gives there; if "
        "the run diverged, remove the row"
        for n in far[:_NAMED]
    ]
    return lines + ([f"and {len(far) - _NAMED} more of the kind"] if len(far) > _NAMED else [])


def _objective(law: Law, settings: Settings, found: Estimate, x: Columns) -> dict[str, Any]:
    of = f"log {law.target}" if law.log else law.target
    shape = "half the sum of squares" if np.isinf(settings.delta) else "sum of Huber losses"
    kind = law.minimises or f"{shape} of {of}"
    entry = {
        "kind": kind,
        "delta": _finite(settings.delta) if law.estimate is None else None,
        "value": found.objective,
        "converged": found.converged,
        "rms_residual": float(np.sqrt(np.mean(found.residuals**2))),
    }
    return entry | {"r_squared": r_squared(x[law.target], law.predict(found.values, x))}


def r_squared(measured: np.ndarray, predicted: np.ndarray) -> float:
    """The share of the target's variance that the law explains, in the target's own unit: 1 - SS_res / SS_tot."""
    variance = float(np.sum((measured - measured.mean()) ** 2))
    return 1 - float(np.sum((measured - predicted) ** 2)) / variance if variance else 1.0


def _beside(law: Law, x: Columns, settings: Settings) -> dict[str, Any]:
    """Another law on the same points, by its parameters and R² alone."""
    other = Settings(delta=law.delta, starts=settings.starts)
    for name in [name for name, has_value in law.origin.items() if not has_value]:
        x = {each: column[x[name] > 0] for each, column in x.items()}
    if problems := law.problems(x, {}):
        return {"formula": law.formula, "not_fitted": problems[0]}
    found = fitting.fit(law, x, other)
    fit = r_squared(x[law.target], law.predict(found.values, x))
    return {"formula": law.formula, "parameters": law.as_values(found.values), "r_squared": fit}


def _parameters(law: Law, settings: Settings, found: Estimate, draws: np.ndarray, within: float) -> dict[str, Any]:
    table = {}
    for parameter, value in zip(law.parameters, found.values.tolist(), strict=True):
        fixed = parameter.name in settings.fixed
        entry = {"value": value, "low": None, "high": None, "fixed": fixed, "weakly_identified": False}
        if parameter.name in _meaningless(law, found.values):
            entry |= {"value": None, "weakly_identified": True}
        elif len(draws) and not fixed:
            low, high = certainty.spanned(_known(law, draws, parameter.name), within)
            weak = low is None or high is None or certainty.weak(value, low, high)
            entry |= {"low": low, "high": high, "weakly_identified": weak}
        table[parameter.name] = entry | {"meaning": parameter.meaning}
    return table


def _meaningless(law: Law, values: np.ndarray) -> list[str]:
    """Exponents that no prediction depends on, as their coefficient is zero."""
    return [exponent for name, exponent in law.exponents.items() if values[law.names.index(name)] == 0]


def _known(law: Law, draws: np.ndarray, name: str) -> np.ndarray:
    """The draws of a parameter, NaN where it means nothing: [R]."""
    column = draws[:, law.names.index(name)].copy()
    for coefficient, exponent in law.exponents.items():
        if exponent == name:
            column[draws[:, law.names.index(coefficient)] == 0] = np.nan
    return column


def _without_exponent(law: Law, found: Estimate, draws: np.ndarray) -> list[str]:
    """A sentence for each exponent that some of the resamples tell nothing of."""
    lacking = {name: int(np.isnan(_known(law, draws, name)).sum()) for name in law.exponents.values()}
    return [
        f"{count} of {len(draws)} resamples tell nothing of {name}, as its coefficient is zero there"
        for name, count in lacking.items()
        if count and name not in _meaningless(law, found.values)
    ]


def _derived(law: Law, found: Estimate, draws: np.ndarray, within: float) -> dict[str, Any]:
    if law.derived is None:
        return {}
    values = law.derived(*found.values)
    of_draws = [law.derived(*draw) for draw in draws]
    table: dict[str, Any] = {}
    for name, value in values.items():
        if np.isfinite(value):
            low, high = certainty.spanned(np.array([each[name] for each in of_draws]), within)
            table[name] = {"value": value, "low": low, "high": high}
    return table


def _without_derived(law: Law, found: Estimate, draws: np.ndarray) -> list[str]:
    """Sentences about what does not follow from the parameters, or not from those of all resamples."""
    if law.derived is None:
        return []
    values, of_draws = law.derived(*found.values), [law.derived(*draw) for draw in draws]
    if none := [name for name, value in values.items() if not np.isfinite(value)]:
        return [f"{', '.join(none)}: {no_split(law, found.values) if law.optimum is not None else 'not finite'}"]
    lacking = max((sum(not np.isfinite(each[name]) for each in of_draws) for name in values), default=0)
    lost = f"{', '.join(values)}: {lacking} of {len(of_draws)} resamples have none; the intervals are without them"
    return [lost] if lacking else []


def no_split(law: Law, values: np.ndarray) -> str:
    """Why parameters have no best split, in words."""
    none = [f"{name} is {value:.3g}" for name, value in zip(law.names, values, strict=True)
            if value <= 0 and name != "E"]  # fmt: skip
    why = f", as {' and '.join(none)}" if none else ": the loss falls on to sizes that no budget asks for"
    return f"there is no best split{why}"


def _profiles(
    law: Law,
    x: Columns,
    settings: Settings,
    found: Estimate,
    draws: np.ndarray,
    parameters: dict[str, Any],
    within: float,
) -> dict[str, Any]:
    if law.estimate is not None or not len(draws) or found.objective < 1e-20:
        return {}
    table = {}
    # A draw that came out as zero has no logarithm; this is far enough.
    inner = np.maximum(law.internal(draws), np.log(np.finfo(float).tiny))
    for i, name in enumerate(law.names):
        if parameters[name]["weakly_identified"] and parameters[name]["value"] is not None:
            low, high = certainty.interval(inner[:, i], within)
            if high > low:
                table[name] = asdict(certainty.profile(law, x, settings, found, name, (high - low) / 2))
    return table


def write(content: dict[str, Any], path: Path) -> None:
    """Writes a fit file; no number in it is NaN or infinite.

    Raises:
      BadInputError: the file cannot be written.
    """
    output.write(path, json.dumps(jsonable(content), indent=1, ensure_ascii=False) + "\n")


def jsonable(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read(path: Path) -> dict[str, Any]:
    """A fit file's content.

    Raises:
      BadInputError: it is none, or of a law or a format that is not known here.
    """
    if path.exists() and not path.is_file():
        raise BadInputError(f"{path}: is not a regular file; make a fit file with blobjax laws fit")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        law, count = content["law"], content["format"]
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror}; make one with blobjax laws fit") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadInputError(f"{path}: is not a fit file; make one with blobjax laws fit") from None
    if not isinstance(law, str) or law not in LAWS:
        raise BadInputError(f"{path}: law '{law}' is not known here; {suggest(law, LAWS)}")
    if count != FORMAT:
        raise BadInputError(f"{path}: format {count} is not known here, only {FORMAT}; fit again with this version")
    if wrong := damage(content):
        raise BadInputError(f"{path}: is damaged: {wrong}; fit its points again")
    return content


def values(content: dict[str, Any]) -> np.ndarray:
    """The law's parameters, in its order; [P]. An exponent that means nothing is one: its coefficient is zero."""
    found = np.array([content["parameters"][name]["value"] for name in LAWS[content["law"]].names], float)
    return np.where(np.isnan(found), 1.0, found)


def draws(content: dict[str, Any]) -> np.ndarray:
    """The same of its resamples; [R, P], R is 0 where none were drawn."""
    return np.array(content["bootstrap"]["draws"], float).reshape(-1, len(content["parameters"]))


def refit(content: dict[str, Any]) -> dict[str, Any]:
    """Fits once more what a fit file holds: the same law, points and settings."""
    given, stored = content["points"], content["settings"]
    columns = {name: np.array(values, float) for name, values in given["columns"].items()}
    points = Points(columns, content["counted"], given["sources"], given["dropped"], tuple(given["notes"]),
                    tuple(given.get("places", ())))  # fmt: skip
    if points.sha256 != given["sha256"]:
        raise BadInputError("the points of the fit file are not those it was fitted to: their hash differs")
    delta = np.inf if stored["delta"] is None else stored["delta"]
    return make(LAWS[content["law"]], points, Settings(**stored | {"delta": delta}))
