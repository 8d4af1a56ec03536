"""The frame of our HTML pages: one file without scripts that fetches nothing, light or dark."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from stan_infer.errors import printable

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #d0d0d0; --soft: #666; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #141414; --line: #3a3a3a; --soft: #a0a0a0; }
}
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
h1, p, li { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 1rem; }
figure { margin: 0; } svg { width: 100%; height: auto; }
p, li { max-width: 46rem; } .soft { color: var(--soft); }
"""


def html_page(title: str, parts: Sequence[str], style: str = "") -> str:
    """Return a page of these parts, which are HTML. style: CSS behind that of all pages."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{_STYLE}{style}</style></head>\n"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def html_table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table that scrolls where the screen is narrow."""
    top = "".join(f"<th>{escaped(cell)}</th>" for cell in head)
    lines = ["<tr>" + "".join(f"<td>{escaped(c)}</td>" for c in row) + "</tr>" for row in rows]
    return f"<div class=wide><table><tr>{top}</tr>{''.join(lines)}</table></div>"


def html_charts(charts: Sequence[str]) -> str:
    """Return charts (SVG text) beside each other, as many as fit."""
    return "<div class=plots>" + "".join(f"<figure>{c}</figure>" for c in charts) + "</div>"


def escaped(value: Any) -> str:
    """Return a value as text that is no HTML, whatever a stranger put into it."""
    return html.escape(printable(str(value)))
