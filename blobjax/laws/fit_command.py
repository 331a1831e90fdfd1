"""`blobjax laws`: from points to a fit file, and from a fit file to a prediction."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from blobjax.config import BadInputError
from blobjax.config.closest import suggest
from blobjax.laws import fit_file, text
from blobjax.laws.formulas import LAWS, Law, Settings
from blobjax.laws.formulas.law import CHAIN, RANGE, VERTICES
from blobjax.laws.points import choose
from blobjax.laws.prediction import predict as evaluate
from blobjax.laws.tables import plain, read


def fit(
    paths: Sequence[str],
    law_name: str,
    *,
    columns: Sequence[str] = (),
    drop_highest_loss: int = 0,
    drop_missing: bool = False,
    drop_duplicates: bool = False,
    counted: str = "",
    fixed: Sequence[str] = (),
    delta: float | None = None,
    starts: int | None = None,
    bootstrap: int | None = None,
    level: float | None = None,
    seed: int | None = None,
    budget_tolerance: float | None = None,
    window: float | None = None,
    vertex: str | None = None,
) -> dict[str, Any]:
    """Fits a law to points; the content of its fit file.

    Args:
      paths: tables, run and study directories; or one fit file, which is fitted again as it was, with no options.
      columns: `ours=theirs` for columns with other names.
      fixed: `parameter=value` for what is not to be fitted.
      delta: of the Huber loss; None: the law's own.
      starts, bootstrap, level, seed, budget_tolerance, window, vertex: as in `Settings`; None: its default.

    Raises:
      BadInputError: anything about it that cannot work.
    """
    chosen: dict[str, Any] = {"delta": delta, "starts": starts, "bootstrap": bootstrap, "level": level, "seed": seed,
                              "budget_tolerance": budget_tolerance, "window": window, "vertex": vertex}  # fmt: skip
    if [Path(path).suffix for path in paths] == [".json"]:
        content = fit_file.read(Path(paths[0]))
        if law_name not in ("", content["law"]):
            raise BadInputError(f"{paths[0]} is a fit of {content['law']}; for --law {law_name} give its points")
        given = {"--col": columns, "--drop-highest-loss": drop_highest_loss, "--drop-missing": drop_missing,
                 "--drop-duplicates": drop_duplicates, "--counted": counted, "--fix": fixed}  # fmt: skip
        ignored = [name for name, value in given.items() if value]
        ignored += [f"--{name.replace('_', '-')}" for name, value in chosen.items() if value is not None]
        if ignored:
            raise BadInputError(
                f"{' '.join(ignored)}: a fit file is fitted again as it was; for other options give points"
            )
        return fit_file.refit(content)
    if law_name not in LAWS:
        known = suggest(law_name, LAWS) if law_name else f"known: {', '.join(LAWS)}"
        raise BadInputError(f"--law '{law_name}' is not a law; {known}" if law_name else f"give --law NAME; {known}")
    law = LAWS[law_name]
    if delta is not None and law.estimate is not None:
        raise BadInputError(f"--delta: --law {law.name} does not minimise a Huber loss but the {law.minimises}")
    if delta is not None and not delta > 0:
        raise BadInputError(f"--delta {delta:g}: must be more than 0; inf is least squares")
    _refuse_budget_options(law, chosen)
    settings = replace(
        Settings(delta=law.delta),
        **{name: value for name, value in chosen.items() if value is not None},
        fixed={name: _float(f"--fix {name}", value) for name, value in _pairs("--fix", fixed).items()},
    )
    points = choose(
        law,
        read(paths, curves=law.curves),
        _pairs("--col", columns),
        drop_highest_loss=drop_highest_loss,
        drop_missing=drop_missing,
        drop_duplicates=drop_duplicates,
        counted=counted,
    )
    return fit_file.make(law, points, settings)


def _refuse_budget_options(law: Law, chosen: dict[str, Any]) -> None:
    """Refuses what only IsoFLOP budgets have a use for where there are none, and values that mean nothing."""
    tolerance, window, vertex = (chosen[name] for name in ("budget_tolerance", "window", "vertex"))
    for name in ("budget_tolerance", "window", "vertex"):
        if chosen[name] is not None and name not in law.options:
            users = ", ".join(each.name for each in LAWS.values() if name in each.options)
            raise BadInputError(f"--{name.replace('_', '-')}: --law {law.name} has no use for it, only {users}")
    if tolerance is not None and not 0 <= tolerance <= CHAIN:
        raise BadInputError(f"--budget-tolerance {tolerance:g}: must be 0 to {CHAIN:g}, as 0.02 for 2%")
    if window is not None and not window > 1:
        raise BadInputError(f"--window {window:g}: must be more than 1, a factor on both sides; inf takes all sizes")
    if vertex is not None and vertex not in VERTICES:
        raise BadInputError(f"--vertex '{vertex}' is not known; {suggest(vertex, VERTICES)}")
    if vertex == "akima" and window is not None:
        raise BadInputError("--window: a spline has none, it goes through all sizes; leave it out or --vertex akima")
    if window is not None:
        chosen["window"] = min(window, RANGE[1])  # JSON has no infinity


def predict(path: str, given: dict[str, float | None], others: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """Evaluates a fit file; the result, and the result as text.

    Args:
      given: column to value; None where it was not given.
      others: `column=value` for further columns.
    """
    content = fit_file.read(Path(path))
    at = {name: value for name, value in given.items() if value is not None}
    more = {name: _float(f"--at {name}", value) for name, value in _pairs("--at", others).items()}
    if twice := [name for name in more if name in at]:
        raise BadInputError(f"--at {twice[0]}: is given as --{twice[0]} too; give one of them")
    at |= more
    if not at:
        raise BadInputError("give what to predict for: --flops, --params, --tokens or --at COLUMN=VALUE")
    result = evaluate(content, at)
    return result, text.prediction(result, content["target"], content["settings"]["level"])


def as_json(content: dict[str, Any]) -> str:
    """One JSON object, as in a fit file but without points and draws, which are what makes it long."""
    short = {name: value for name, value in content.items() if name not in ("bootstrap", "residuals")}
    if "points" in short:
        short["points"] = {name: value for name, value in short["points"].items() if name not in ("columns", "places")}
    return json.dumps(fit_file.jsonable(short), indent=1, ensure_ascii=False)


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not (name and equals and value):
            raise BadInputError(f"{option} {each}: expected NAME=VALUE")
        if name.strip() in pairs:
            raise BadInputError(f"{option} {name.strip()}: is given twice; give it once")
        pairs[name.strip()] = value.strip()
    return pairs


def _float(option: str, value: str) -> float:
    try:
        number = plain(value)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise BadInputError(f"{option}={value}: not a number")
    return number
