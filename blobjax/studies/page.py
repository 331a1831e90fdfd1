"""A study's page: one HTML file that holds all of it, pictures too, and works without a network."""

import math
from html import escape
from typing import Any

from blobjax.report.html import document, figure, number, paragraph, section, table
from blobjax.report.prices import Prices
from blobjax.report.redaction import HIDDEN, changes, redacted
from blobjax.runs.mixture import HELD_OUT, held_out_loss
from blobjax.runs.outcome import DONE
from blobjax.studies import confirmation, law_sections, runs_table
from blobjax.studies.finding import Finding
from blobjax.studies.results import Result
from blobjax.studies.study import ResolvedStudy

_VERDICTS = {True: "reproduced", "partly": "partly reproduced", False: "did not reproduce", None: "cannot tell"}


def page(
    plan: ResolvedStudy,
    results: list[Result],
    summary: dict[str, Any],
    finding: Finding,
    tested: confirmation.Tested | None,
    pictures: list[tuple[str, bytes]],
    prices: Prices | None = None,
) -> str:
    """The page.

    Args:
      summary: as in summary.json; one without a command has the page not say how to run it again.
      tested: the finding's prediction and what came of it.
      pictures: the finding's, caption and PNG of each.
      prices: what time and energy come to.
    """
    study = plan.study
    kind = {True: "true", False: "false", None: "null"}.get(summary["reproduced"], "partly")
    verdict = _VERDICTS[summary["reproduced"]]
    if not finding.claims:
        verdict = "no verdict"
    if any(result.status not in (*DONE, "failed") for result in results):
        kind, verdict = "partly", "not finished"
    again = f"<pre>{escape(summary['command'])}</pre>" if summary["command"] else ""
    if "study.yaml" in summary["command"]:
        again += paragraph("In the directory of this page, which holds that file.", small=True)
    elif HIDDEN in summary["command"]:
        again += paragraph(
            f"{HIDDEN} stands for what a page does not tell, such as a path: put yours there.", small=True
        )
    parts = [
        f'<p class="kind">Study <code>{escape(plan.name)}</code></p><h1>{escape(study.title)}</h1>',
        f'<p><span class="verdict {kind}">{verdict}</span></p>',
        section("Question", paragraph(study.question)),
        section("Expected", paragraph(study.expected), f'<p class="small">{escape(study.source)}</p>'),
        section("Found", *(paragraph(words) for words in summary["found"])),
        *(figure(caption, png) for caption, png in pictures),
        *law_sections.laws(finding.laws),
        *confirmation.html(tested),
        *law_sections.worth(finding.worth),
        section("Numbers", _numbers_note(summary), _numbers(summary["numbers"])) if summary["numbers"] else "",
        section("Cells", _cells_note(summary, results), _cells(plan, results)),
        section("What the runs took", runs_table.html(results, prices or Prices())),
        section("Run it again" if again else "Made with", again, _provenance(summary)),
    ]
    return document(study.title, parts)


def _numbers(numbers: dict[str, Any]) -> str:
    """Numbers by name; those that come as dicts of one set of labels share a table with a column for each label.

    Args:
      numbers: as in summary.json.
    """
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for name, value in numbers.items():
        listed = isinstance(value, dict) and not _is_mean(value)
        labels = tuple(value) if listed else ("",)
        values = list(value.values()) if listed else [value]
        tables.setdefault(labels, []).append([escape(name.replace("_", " ")), *(escape(_entry(v)) for v in values)])
    html = []
    for labels, rows in tables.items():
        if len(labels) > 8:  # too wide for a page: turned on its side
            rows = [list(row) for row in zip(["", *map(escape, labels)], *rows, strict=True)]
            html.append(table(rows[0], rows[1:], frozenset(range(1, len(rows[0])))))
        else:
            html.append(table(["", *map(escape, labels)], rows, frozenset(range(1, len(labels) + 1))))
    return "\n".join(html)


def _is_mean(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"mean", "low", "high", "seeds"}


def _entry(value: Any) -> str:
    """A number, and the interval of one that is a mean over seeds."""
    if not _is_mean(value):
        return number(value)
    span = "" if value["low"] is None else f" ({number(value['low'])} to {number(value['high'])})"
    return f"{number(value['mean'])}{span}"


def _numbers_note(summary: dict[str, Any]) -> str:
    seeds = summary["seeds"]
    if len(seeds) < 2:
        return paragraph("One seed: no number here has an interval, and no claim about one can be made.", small=True)
    words = f"A number with an interval is {summary['interval']} ({len(seeds)} seeds)."
    return paragraph(words, small=True)


def _cells_note(summary: dict[str, Any], results: list[Result]) -> str:
    threads = " or ".join(f"{n}" for n in sorted({result.cell.config.compute.cpu_threads for result in results}))
    counts = ", ".join(f"{count} {status}" for status, count in summary["cells"].items())
    return (
        f'<p class="small">{escape(counts)}. On a CPU each is computed with {threads} '
        f"thread{'' if threads == '1' else 's'}, whatever runs it. Final loss: mean cross-entropy logged in the last "
        f"5% of the training steps, nats per token. Held out: {HELD_OUT}, nats per token.</p>"
    )


def _cells(plan: ResolvedStudy, results: list[Result]) -> str:
    axes = list(plan.study.grid)
    head = [*axes, "status", "final loss", "held out", "seconds", "config against the base"]
    rows = []
    for result in results:
        status = escape(result.status) + (
            f'<br><span class="small">{escape(redacted(result.reason))}</span>' if result.reason else ""
        )
        held_out = held_out_loss(result.cell.config, result.held_out)
        diff = changes(plan.base, result.cell.config)
        rows.append(
            [
                *(escape(result.label(axis)) for axis in axes),
                status,
                f"{result.final_loss:.3f}" if result.status not in ("waiting", "stopped") else "",
                "" if math.isnan(held_out) else f"{held_out:.3f}",
                f"{result.wall_seconds:.1f}",
                "".join(f"<code>{escape(line)}</code>" for line in diff) or "the base itself",
            ]
        )
    first = len(axes) + 1
    return table(map(escape, head), rows, frozenset(range(first, first + 3)))


def _provenance(summary: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return f'<p class="small">{escape(summary["date"])} · {escape(versions)} · {escape(summary["machine"])}</p>'
