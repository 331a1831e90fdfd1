"""A study's page: one HTML file that holds all of it, pictures too, and works without a network."""

import base64
from html import escape
from typing import Any

from blobjax.config.diff import config_diff
from blobjax.studies import confirmation, law_sections
from blobjax.studies.finding import Finding
from blobjax.studies.html import number, paragraph, section, table
from blobjax.studies.results import Result
from blobjax.studies.study import Plan

_CSS = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 58rem; color: #1a1a1a; background: #fff;
  font: 1.05rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .3rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
p { margin: .5rem 0; max-width: 48rem; }
.kind { color: #555; margin: 0; }
.verdict { display: inline-block; padding: .15rem .6rem; border: 1.5px solid; border-radius: .3rem; font-weight: 600; }
.true { color: #00604a; } .partly { color: #8a5a00; } .false { color: #a3320b; } .null { color: #555; }
figure { margin: 1.4rem 0; max-width: 48rem; } img { max-width: 100%; height: auto; display: block; }
figcaption, .small { font-size: .9rem; color: #444; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #e4e4e4; }
th { color: #444; font-weight: 600; white-space: nowrap; } td.n, th.n { text-align: right; }
code, pre { font: .88em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: #f5f5f5; padding: .7rem .9rem; overflow-x: auto; white-space: pre-wrap; }
td code { display: block; overflow-wrap: anywhere; padding-left: 1em; text-indent: -1em; }
td:last-child:has(code) { min-width: 13rem; }
@media (max-width: 40rem) { body { font-size: 1rem; } h1 { font-size: 1.4rem; }
  td code { white-space: nowrap; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } .wide { overflow: visible; } }
"""

_VERDICTS = {True: "reproduced", "partly": "partly reproduced", False: "did not reproduce", None: "no verdict"}


def page(
    plan: Plan,
    results: list[Result],
    summary: dict[str, Any],
    finding: Finding,
    tested: confirmation.Tested | None,
    pictures: list[tuple[str, bytes]],
) -> str:
    """The page.

    Args:
      summary: as in summary.json.
      tested: the finding's prediction and what came of it.
      pictures: the finding's, caption and PNG of each.
    """
    study = plan.study
    kind = {True: "true", False: "false", None: "null"}.get(summary["reproduced"], "partly")
    parts = [
        f'<p class="kind">Study <code>{escape(plan.name)}</code></p><h1>{escape(study.title)}</h1>',
        f'<p><span class="verdict {kind}">{_VERDICTS[summary["reproduced"]]}</span></p>',
        section("Question", paragraph(study.question)),
        section("Expected", paragraph(study.expected), f'<p class="small">{escape(study.source)}</p>'),
        section("Found", *(paragraph(words) for words in summary["found"])),
        *(_figure(caption, png) for caption, png in pictures),
        *law_sections.laws(finding.laws),
        *confirmation.html(tested),
        *law_sections.worth(finding.worth),
        section("Numbers", _numbers(summary["numbers"])),
        section("Cells", _cells_note(summary), _cells(plan, results)),
        section("Run it again", f"<pre>{escape(summary['command'])}</pre>", _provenance(summary)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(study.title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _figure(caption: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _numbers(numbers: dict[str, Any]) -> str:
    """Numbers by name; those that come as dicts of one set of labels share a table with a column for each label."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for name, value in numbers.items():
        labels = tuple(value) if isinstance(value, dict) else ("",)
        values = list(value.values()) if isinstance(value, dict) else [value]
        tables.setdefault(labels, []).append([escape(name.replace("_", " ")), *(escape(number(v)) for v in values)])
    html = []
    for labels, rows in tables.items():
        if len(labels) > 8:  # too wide for a page: turned on its side
            rows = [list(row) for row in zip(["", *map(escape, labels)], *rows, strict=True)]
            html.append(table(rows[0], rows[1:], frozenset(range(1, len(rows[0])))))
        else:
            html.append(table(["", *map(escape, labels)], rows, frozenset(range(1, len(labels) + 1))))
    return "\n".join(html)


def _cells_note(summary: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in summary["cells"].items())
    return (
        f'<p class="small">{escape(counts)}. Final loss: mean cross-entropy of the last 5% of the training steps, nats '
        "per token. Held out: bits per byte, the mean over the domains.</p>"
    )


def _cells(plan: Plan, results: list[Result]) -> str:
    axes = list(plan.study.grid)
    head = [*axes, "status", "final loss", "held out", "seconds", "config against the base"]
    rows = []
    for result in results:
        status = escape(result.status) + (
            f'<br><span class="small">{escape(result.reason)}</span>' if result.reason else ""
        )
        held_out = [value for name, value in result.held_out.items() if name.endswith("/bits_per_byte")]
        diff = [
            line
            for line in config_diff(plan.base, result.cell.config)
            if not line.startswith(("name:", "logging.run_dir:"))
        ]
        rows.append(
            [
                *(escape(result.label(axis)) for axis in axes),
                status,
                f"{result.final_loss:.3f}",
                f"{sum(held_out) / len(held_out):.3f}" if held_out else "",
                f"{result.wall_seconds:.1f}",
                "".join(f"<code>{escape(line)}</code>" for line in diff) or "the base itself",
            ]
        )
    first = len(axes) + 1
    return table(map(escape, head), rows, frozenset(range(first, first + 3)))


def _provenance(summary: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return f'<p class="small">{escape(summary["date"])} · {escape(versions)} · {escape(summary["machine"])}</p>'
