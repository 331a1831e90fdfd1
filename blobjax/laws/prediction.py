"""What a fit says of a run that has not been made: the target with its intervals, and the best size for a budget."""

from typing import Any

import numpy as np

from blobjax.config import BadInputError
from blobjax.laws import certainty, fit_file
from blobjax.laws.formulas import LAWS, Law
from blobjax.laws.formulas.law import RANGE

# Columns of which two tell all.
_SIZES = ("flops", "params", "tokens", "overtraining")
# Of them more than two may differ by so much: steps are whole, and sizes what widths allow.
_AGREE = 0.02
# So many residuals are enough to tell how they spread.
_RESIDUALS = 1000
# So many times the largest point is far enough to be told.
_FAR = 1.5


def predict(content: dict[str, Any], given: dict[str, float]) -> dict[str, Any]:
    """Evaluates a fit.

    Args:
      content: of a fit file.
      given: column to its value. Of params, tokens and flops (= 6 × params × tokens) two are enough; flops alone asks a
        law that has an optimum for it.

    Returns:
      `at` (what it was evaluated at), the target with `value`, `low` and `high` (of the law) and `run_low` and
      `run_high` (of a single run, its noise included), `optimum` (params and tokens with their intervals) where flops
      alone were given, and `notes`.

    Raises:
      BadInputError: a column that the law needs is missing, unknown or not positive.
    """
    law = LAWS[content["law"]]
    least, most = RANGE
    # Training that has not begun is a point of a law that has a value there.
    given_sizes = {name: value for name, value in given.items() if value != 0 or not law.origin.get(name)}
    wrong = [f"{name} is {value:g}, and must be more than 0" for name, value in given_sizes.items()
             if not 0 < value < np.inf]  # fmt: skip
    wrong += [f"{name} is {value:g}; it takes {least:g} to {most:g}" for name, value in given_sizes.items()
              if 0 < value < np.inf and not least <= value <= most]  # fmt: skip
    # Kaplan's tokens are those of a data set, and follow from no budget.
    two = len({*law.uses} & {*_SIZES}) > 1 and law.optimum is not None
    known = [*dict.fromkeys((*law.uses, *(_SIZES if two else ())))]
    wrong += [f"--law {law.name} uses no '{name}'; it takes {', '.join(known)}" for name in given if name not in known]
    if wrong:
        raise BadInputError(*wrong)
    values, draws = fit_file.values(content), fit_file.draws(content)
    at = _completed(given)
    result: dict[str, Any] = {"law": law.name}
    searched = law.optimum is not None and "flops" in given and not {"params", "tokens", "overtraining"} & given.keys()
    found_there = ("params", "tokens", "overtraining") if searched else ()
    if missing := [name for name in law.needs if name not in at and name not in found_there]:
        raise BadInputError(f"--law {law.name} needs {_listed(missing)} too; {_how(law, missing)}")
    if searched:
        assert law.optimum is not None
        best = law.optimum(law, values, given["flops"], _columns(at))
        if not np.all(np.isfinite(best)):
            raise BadInputError(f"{fit_file.no_split(law, values)}; give --params and --tokens")
        of_draws = np.array([law.optimum(law, draw, given["flops"], _columns(at)) for draw in draws]).reshape(-1, 2)
        at |= dict(zip(("params", "tokens"), best, strict=True)) | {"overtraining": best[1] / best[0]}
        result["optimum"] = {
            name: {"value": best[i], **_range(of_draws[:, i], content)} for i, name in enumerate(("params", "tokens"))
        }
        ats = [at | {"params": n, "tokens": d, "overtraining": d / n} for n, d in of_draws]
    else:
        ats = [at] * len(draws)
    value = law.predict(values, _columns(at)).item()
    if not np.isfinite(value):
        raise BadInputError(f"--law {law.name} has no value there; give others, nearer to what was fitted")
    of_law = np.array([law.predict(draw, _columns(each)).item() for draw, each in zip(draws, ats, strict=True)])
    notes = []
    if lacking := int(np.sum(~np.isfinite(of_law))):
        notes.append(f"{lacking} of {len(of_law)} resamples say nothing of it; the intervals are without them")
    run = {f"run_{name}": each for name, each in _range(_of_run(law, content, of_law), content).items()}
    result |= {"at": at, law.target: {"value": value, **_range(of_law, content), **run}}
    return result | {"notes": notes + _beyond(law, content, at)}


def _of_run(law: Law, content: dict[str, Any], of_law: np.ndarray) -> np.ndarray:
    """What single runs may come to: every draw of the law with every residual. None where no residual is a run's."""
    if law.curves or not len(of_law):
        return np.zeros(0)
    residuals = np.array(content["residuals"])
    # Residuals are smaller than errors, as the fit bends to its points.
    count, free = len(residuals), len(content["parameters"]) - len(content["settings"]["fixed"])
    shrunk = np.sqrt(max(count - free, 1) / count) if law.measured is None else 1.0
    noise = np.quantile(residuals, np.linspace(0, 1, _RESIDUALS)) if count > _RESIDUALS else residuals
    return (of_law[:, None] * np.exp(noise / shrunk) if law.log else of_law[:, None] + noise / shrunk).ravel()


def _completed(given: dict[str, float]) -> dict[str, float]:
    """With what follows from 6 × params × tokens = flops, and the multiplier."""
    at = dict(given)
    if "overtraining" in at and "flops" in at and "params" not in at:
        at |= {"params": (at["flops"] / 6 / at["overtraining"]) ** 0.5}
    if {"flops", "params"} <= at.keys():
        at.setdefault("tokens", at["flops"] / (6 * at["params"]))
    if {"flops", "tokens"} <= at.keys():
        at.setdefault("params", at["flops"] / (6 * at["tokens"]))
    if {"overtraining", "params"} <= at.keys():
        at.setdefault("tokens", at["overtraining"] * at["params"])
    if {"overtraining", "tokens"} <= at.keys():
        at.setdefault("params", at["tokens"] / at["overtraining"])
    if {"params", "tokens"} <= at.keys():
        at.setdefault("flops", 6 * at["params"] * at["tokens"])
        at.setdefault("overtraining", at["tokens"] / at["params"])
        budget, multiplier = 6 * at["params"] * at["tokens"], at["tokens"] / at["params"]
        for name, follows, rule in (("flops", budget, "6 × params × tokens is"),
                                    ("overtraining", multiplier, "tokens / params is")):  # fmt: skip
            if abs(np.log(at[name] / follows)) > _AGREE:
                raise BadInputError(f"{name} is {at[name]:.4g}, but {rule} {follows:.4g}; give two of them alone")
    return at


def _columns(at: dict[str, float]) -> dict[str, np.ndarray]:
    return {name: np.array([value], float) for name, value in at.items()}


def _range(draws: np.ndarray, content: dict[str, Any]) -> dict[str, float | None]:
    if not len(draws):
        return {"low": None, "high": None}
    low, high = certainty.spanned(draws, content["bootstrap"]["share"])
    return {"low": low, "high": high}


def _listed(names: list[str]) -> str:
    return " and ".join(names)


def _how(law: Law, missing: list[str]) -> str:
    options = [f"--{name}" if name in ("flops", "params", "tokens") else f"--at {name}=" for name in missing]
    best = law.optimum is not None and {"params", "tokens", "overtraining"} & set(missing)
    budget = ", or --flops alone for the best of a budget" if best else ""
    return f"give {_listed(options)}{budget}"


def _beyond(law: Law, content: dict[str, Any], at: dict[str, float]) -> list[str]:
    """A sentence for each column in which the prediction lies outside of what was fitted."""
    notes = []
    for name in (*law.needs, *law.may_use):
        fitted = content["points"]["columns"].get(name)
        if fitted is None or name not in at:
            continue
        if at[name] > _FAR * max(fitted):
            notes.append(f"{name} are {at[name] / max(fitted):.3g} times the largest that was fitted")
        elif at[name] < min(fitted) / _FAR:
            notes.append(f"{name} are {min(fitted) / at[name]:.3g} times below the smallest that was fitted")
    return notes
