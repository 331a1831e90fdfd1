"""What a study's page says of fitted laws, and of what was varied: how much compute it was worth."""

import shlex
from html import escape
from typing import Any

from blobjax.laws import text
from blobjax.laws.formulas import LAWS
from blobjax.laws.multiplier import Worth
from blobjax.report.html import paragraph, section, table


def laws(found: dict[str, dict[str, Any]]) -> list[str]:
    """Each law with its parameters' intervals and how it would have predicted the future.

    Args:
      found: name to the content of a fit file.

    Returns:
      The section's HTML; nothing where no law was fitted.
    """
    if not found:
        return []
    return [section("Fitted laws", *(part for name, content in found.items() for part in _law(name, content)))]


def _law(name: str, content: dict[str, Any]) -> list[str]:
    level = f"{content['settings']['level']:.0%}"
    entries = {**content["parameters"], **content["derived"]}
    rows = [
        [escape(parameter), *(escape(text.number(entry[each])) for each in ("value", "low", "high")),
         escape(entry.get("meaning", "follows from the others"))]
        for parameter, entry in entries.items()
    ]  # fmt: skip
    parts = [
        f"<p><b>{escape(name)}</b>: <code>{escape(content['formula'])}</code></p>",
        f'<p class="small">{escape(content["source"])}; {content["points"]["count"]} points; '
        f"<code>{escape(predict(name, content))}</code></p>",
        table(("", "value", f"{level} from", "to", ""), rows, frozenset({1, 2, 3})),
    ]
    if content["future"]:
        parts += [paragraph("Leave-future-out: fitted on budgets up to one, held against what lies beyond it."),
                  _future(content["future"])]  # fmt: skip
    parts += [f'<p class="small">{escape(note)}.</p>' for note in content["notes"]]
    return [*parts, f"<details><summary>All of it</summary><pre>{escape(text.fit(content))}</pre></details>"]


def predict(name: str, content: dict[str, Any]) -> str:
    """The command that asks a fit file for twice its largest point; it is for the study's own directory."""
    law, columns = LAWS[content["law"]], content["points"]["columns"]
    sizes = ("flops", "params", "tokens")
    # Of a law that knows the best size of a budget, the budget is enough.
    asked = ["flops", *(each for each in law.uses if each not in sizes)] if law.optimum else [*law.uses]
    words = ["blobjax", "laws", "predict", f"fit-{name}.json"]
    for each in asked:
        largest = max(columns[each]) if each in columns else 6 * max(columns["params"]) * max(columns["tokens"])
        value = f"{2 * largest:.3g}"
        words += [f"--{each}", value] if each in sizes else ["--at", f"{each}={value}"]
    return shlex.join(words)


def _future(rows: list[dict[str, Any]]) -> str:
    columns = {"fitted up to": "up_to", "points": "points", "predicted at": "at", "measured": "measured",
               "predicted": "predicted"}  # fmt: skip
    lines = [[*(escape(text.number(row[name])) for name in columns.values()), f"{row['error']:+.2%}"] for row in rows]
    return table((*columns, "error"), lines, frozenset(range(len(columns) + 1)))


def worth(found: dict[str, Worth]) -> list[str]:
    """What was varied, in equivalent compute.

    Returns:
      The section's HTML; nothing where nothing was held against a baseline.
    """
    if not found:
        return []
    rows = []
    for name, each in found.items():
        interval = f"{text.number(each.low)} to {text.number(each.high)}" if each.multiplier else ""
        words = escape(f"not known: {each.refused}") if each.refused else ""
        value = text.number(each.multiplier) if each.multiplier else ""
        numbers = (f"{each.flops:.3g}", f"{each.loss:.4f}", text.number(each.equivalent) if each.equivalent else "")
        rows.append([escape(name), *numbers, value, interval, words])
    head = ("", "FLOPs", "loss", "baseline's FLOPs", "multiplier", "interval", "")
    explained = (
        "How many times its own compute the baseline would have needed for the same loss, read off the baseline's "
        "fitted law between the budgets it was measured at. Above 1 is better than the baseline; a dash is an end "
        "that the law leaves open."
    )
    return [section("Worth in compute", paragraph(explained), table(head, rows, frozenset(range(1, 6))))]
