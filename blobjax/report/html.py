"""How pages are made: one HTML file each, pictures in it, without scripts, read offline, on a phone and on paper."""

import base64
import math
import re
from collections.abc import Iterable
from html import escape
from typing import Any

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
.card { display: grid; grid-template-columns: repeat(auto-fill, minmax(15.5rem, 1fr)); gap: .7rem; margin: 1rem 0;
  padding: 0; list-style: none; }
.card li { border: 1px solid #ccc; border-radius: .4rem; padding: .6rem .8rem; }
.card h3 { font-size: .9rem; margin: 0; color: #444; } .card strong { font-size: 1.15rem; display: block; }
.card p { font-size: .9rem; line-height: 1.4; margin: .2rem 0 0; color: #333; overflow-wrap: anywhere; }
.bar { display: inline-block; height: .7rem; background: #0072B2; vertical-align: baseline; min-width: 1px; }
td.watch { color: #8a5a00; } td.turbulent, td.stagnant { color: #a3320b; font-weight: 600; }
figure { margin: 1.4rem 0; max-width: 48rem; } img { max-width: 100%; height: auto; display: block; }
figcaption, .small { font-size: .9rem; color: #444; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #e4e4e4; }
th { color: #444; font-weight: 600; white-space: nowrap; } td.n, th.n { text-align: right; white-space: nowrap; }
code, pre { font: .88em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: #f5f5f5; padding: .7rem .9rem; overflow-x: auto; white-space: pre-wrap; }
td code { display: block; overflow-wrap: anywhere; padding-left: 1em; text-indent: -1em; }
td:last-child:has(code) { min-width: 13rem; }
@media (max-width: 40rem) { body { font-size: 1rem; } h1 { font-size: 1.4rem; }
  td code { white-space: nowrap; } }
@media print { body { print-color-adjust: exact; max-width: none; padding: 0; font-size: 10pt; }
  figure, tr, li { break-inside: avoid; }
  h2 { break-after: avoid; } .wide { overflow: visible; } }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page.

    Args:
      title: as text.
      parts: of the body, HTML.
    """
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )
    # Half a surrogate pair, as a damaged file may hold, is not text that can be written.
    return page.encode(errors="replace").decode()


def number(value: Any) -> str:
    """A number as it is read best, text as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and value == round(value)):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def human(value: float) -> str:
    """A count in three figures: 950, 12.3k, 1.54M, 8.03B, 2.8e17."""
    if not math.isfinite(value):
        return str(value)
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if size <= value < 1000 * size:
            # Not 1.5e+03: at 999.6 three figures round to four.
            return f"{float(f'{value / size:.3g}'):g}{letter}"
    return short(float(f"{value:.3g}"))


def short(value: float) -> str:
    """A number as it is typed: 0.001, 3e-5, 1e10."""
    return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].removeprefix('+')}{m[2]}", f"{value:.6g}")


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it."""
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part)


def paragraph(text: str, small: bool = False) -> str:
    """Text as a paragraph."""
    return f"<p>{escape(text)}</p>" if not small else f'<p class="small">{escape(text)}</p>'


def figure(caption: str, png: bytes, seen: str = "") -> str:
    """A picture.

    Args:
      caption: stands below it.
      seen: what it shows, for those who do not see it; the caption by default.
    """
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(seen or caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]], numeric: frozenset[int] = frozenset()) -> str:
    """A table of cells that are HTML already; the columns in `numeric` are set to the right.

    A cell may bring its own tag (`<td class="watch">…</td>`).
    """

    def row(cells: Iterable[str], tag: str) -> str:
        marks = (' class="n"' if n in numeric else "" for n in range(1000))
        made = (
            c if c.startswith("<td") else f"<{tag}{mark}>{c}</{tag}>" for c, mark in zip(cells, marks, strict=False)
        )
        return "<tr>" + "".join(made) + "</tr>"

    header = row(head, "th").replace("<th", '<th scope="col"')
    body = "\n".join(row(cells, "td") for cells in rows)
    return f'<div class="wide" tabindex="0"><table><thead>{header}</thead><tbody>\n{body}\n</tbody></table></div>'
