"""Pieces of HTML that a study's page is put together from."""

import math
from collections.abc import Iterable
from html import escape
from typing import Any


def number(value: Any) -> str:
    """A number as it is read best, text as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and value == round(value)):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it, HTML already."""
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts)


def paragraph(text: str) -> str:
    """A paragraph of text."""
    return f"<p>{escape(text)}</p>"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], numeric: frozenset[int] = frozenset()) -> str:
    """A table of cells that are HTML already; the columns in `numeric` are set to the right."""

    def row(cells: Iterable[str], tag: str) -> str:
        marks = (' class="n"' if n in numeric else "" for n in range(1000))
        return "<tr>" + "".join(f"<{tag}{mark}>{c}</{tag}>" for c, mark in zip(cells, marks, strict=False)) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table><thead>{row(head, "th")}</thead><tbody>\n{body}\n</tbody></table></div>'
