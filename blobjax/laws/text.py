"""Fits and predictions as text for a person."""

import math
from collections.abc import Iterable
from typing import Any

from blobjax.laws.formulas import LAWS

Rows = Iterable[Iterable[str]]


def number(value: float | None) -> str:
    """Four significant digits; a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    if 0 < abs(value) < 1e-100:  # a logarithm that ran away
        return "0"
    if isinstance(value, int) or (1e3 <= abs(value) < 1e5):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def table(head: tuple[str, ...], rows: Rows) -> str:
    """Columns set to the right but for the first and, where it is text, the last."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if i == 0 or head[i] == "" else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def fit(content: dict[str, Any]) -> str:
    """All that a fit file says, but for draws and points."""
    points, objective = content["points"], content["objective"]
    dropped = "".join(f", {count} left out ({why})" for why, count in points["dropped"].items())
    parts = [
        f"{content['law']}: {content['formula']}\nsource: {content['source']}",
        f"points: {points['count']}{dropped}; sha256 {points['sha256'][:16]}",
        "counted:\n" + "\n".join(f"  {name}: {meaning}" for name, meaning in content["counted"].items()),
        _objective(objective, content["details"]),
        _parameters(content),
    ]
    parts += _profiles(content)
    parts += _budgets(content)
    parts += _beside(content)
    parts += _future(content)
    parts += [f"note: {note}" for note in content["notes"]]
    return "\n\n".join(parts)


def _objective(objective: dict[str, Any], details: dict[str, Any]) -> str:
    delta = f", delta {objective['delta']:g}" if objective["delta"] is not None else ""
    fit = f"; R² {objective['r_squared']:.5f}" if "r_squared" in objective else ""
    starts = ""
    if "starts" in details:
        starts = f"; {details['starts_agreeing']} of {details['starts']} starts lead there"
    converged = "" if objective["converged"] else "; NOT CONVERGED"
    return (
        f"objective: {objective['kind']}{delta}: {objective['value']:.8g}{starts}{converged}\n"
        f"residuals: root mean square {objective['rms_residual']:.3g}{fit}"
    )


def _parameters(content: dict[str, Any]) -> str:
    level = f"{content['settings']['level']:.0%}"
    rows = []
    for name, entry in content["parameters"].items():
        words = entry["meaning"] + ("; fixed" if entry["fixed"] else "")
        if entry["value"] is None:
            words += "; not identified"
        elif entry["weakly_identified"]:
            words += "; weakly identified"
        rows.append((name, number(entry["value"]), number(entry["low"]), number(entry["high"]), words))
    for name, entry in content["derived"].items():
        values = (number(entry[each]) for each in ("value", "low", "high"))
        rows.append((name, *values, "follows from the others"))
    draws = len(content["bootstrap"]["draws"])
    return table(("parameter", "value", f"{level} from", "to", ""), rows) + f"\n  intervals: {draws} resamples"


def _profiles(content: dict[str, Any]) -> list[str]:
    parts = []
    for name, profile in content["profiles"].items():
        low = f"from {number(profile['low'])}" if profile["low"] is not None else "open below"
        high = f"to {number(profile['high'])}" if profile["high"] is not None else "open above"
        values = [number(value) for value in profile["values"]]
        deviances = [f"{round(deviance, 2) + 0.0:.2f}" for deviance in profile["deviance"]]
        widths = [max(len(a), len(b)) for a, b in zip(values, deviances, strict=True)]
        lines = [
            f"  {head:<9}" + " ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
            for head, cells in ((name, values), ("deviance", deviances))
        ]
        level = f"{content['settings']['level']:.0%}"
        parts.append(f"profile of {name}, weakly identified: {level} {low} {high}\n" + "\n".join(lines))
    return parts


def _budgets(content: dict[str, Any]) -> list[str]:
    if "budgets" not in content["details"]:
        return []
    columns = content["details"]["budgets"]
    names = ("flops", "params", "tokens", "loss")
    rows = [[number(value) for value in row] for row in zip(*(columns[name] for name in names), strict=True)]
    step = -(-len(rows) // 12)
    return ["best of each budget:\n" + table(names, rows[::step])]


def _beside(content: dict[str, Any]) -> list[str]:
    lines = []
    for name, other in content["beside"].items():
        if "not_fitted" in other:
            lines.append(f"beside it {name}: not fitted, {other['not_fitted']}")
            continue
        values = ", ".join(f"{parameter} {number(value)}" for parameter, value in other["parameters"].items())
        lines.append(
            f"beside it {name}: {other['formula']} with {values}\n"
            f"  R²: {content['law']} {content['objective']['r_squared']:.5f}, {name} {other['r_squared']:.5f}"
        )
    return lines


def _future(content: dict[str, Any]) -> list[str]:
    rows = content["future"]
    if not rows:
        return []
    params = "params_measured" in rows[0]
    head = ("fitted up to", "points", "predicted at", "unseen", "measured", "predicted", "error", "absolute")
    more = ("best params", "predicted") if params else ()
    lines = []
    for row in rows:
        line = [number(row["up_to"]), str(row["points"]), number(row["at"]), str(row["unseen"])]
        line += [number(row["measured"]), number(row["predicted"])]
        line += (
            [_shown(row["error"], "+.3g"), _shown(row["absolute_error"], ".3g")]
            if LAWS[content["law"]].signed
            else [_shown(row["error"], "+.2%"), _shown(row["absolute_error"], ".2%")]
        )
        line += [number(row["params_measured"]), number(row["params_predicted"])] if params else []
        lines.append(line)
    return ["leave-future-out:\n" + table((*head, *more), lines)]


def _shown(value: float | None, form: str) -> str:
    """A dash where the law had no value for what was unseen."""
    return "-" if value is None or math.isnan(value) else f"{value:{form}}"


def prediction(result: dict[str, Any], target: str, level: float) -> str:
    """What `predict` found."""
    lines = [f"{result['law']} at " + ", ".join(f"{name} {number(value)}" for name, value in result["at"].items())]
    found = result[target]
    spread = "no interval"
    if found["low"] is not None:
        spread = f"{level:.0%} of the law {number(found['low'])} to {number(found['high'])}"
    if found["run_low"] is not None:
        spread += f", of a single run {number(found['run_low'])} to {number(found['run_high'])}"
    lines.append(f"{target}: {found['value']:.5g} ({spread})")
    for name, entry in result.get("optimum", {}).items():
        span = f"{number(entry['low'])} to {number(entry['high'])}" if entry["low"] is not None else "no interval"
        lines.append(f"best {name}: {number(entry['value'])} ({span})")
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])
