"""The frame of our HTML pages: one file without scripts that fetches nothing, light or dark."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Sequence
from typing import Any

from stan_infer.errors import printable

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #d0d0d0; --soft: #666; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #141414; --line: #3a3a3a; --soft: #a0a0a0; }
}
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
h1, p, li, dd { overflow-wrap: anywhere; }
.wide { overflow-x: auto; background:
  linear-gradient(to left, var(--paper) 40%, transparent) 100% 0 / 3rem 100% no-repeat local,
  linear-gradient(to left, rgb(128 128 128 / .55), transparent) 100% 0 / .9rem 100% no-repeat; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; }
.wide th:first-child, .wide td:first-child { position: sticky; left: 0; background: var(--paper); }
.wide .name { text-align: left; }
.long { white-space: normal; min-width: 10rem; max-width: 24rem; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr));
  gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: .4rem; padding: .7rem; min-width: 0;
  overflow-wrap: anywhere; font-size: .9rem; }
.card b { font-size: 1rem; } .card p { margin: .4rem 0 0; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem 2rem; margin-top: 1rem; }
figure { margin: 0; max-width: 100%; overflow-x: auto; } svg { width: 100%; height: auto; }
p, li, dl { max-width: 46rem; } .soft { color: var(--soft); } .whole { white-space: nowrap; }
details > summary { cursor: pointer; margin-top: .7rem; }
"""


# Options and names of figures are no words that a line may end in.
_WHOLE = re.compile(r"(?<![\w-])(--[a-z][\w-]*|top-\d+)(?=[^<>]*<)")
_LONG = 30  # characters of a cell that stays in one line
_CHART = 374.0  # pixels, as charts are wide


def html_page(title: str, parts: Sequence[str], style: str = "", *, maker: str = "") -> str:
    """Return a page of these parts, which are HTML. style: CSS behind that of all pages.

    maker: the command, where the page is a file that the next run of it replaces.
    """
    texts = re.split("(<svg.*?</svg>)", "".join(parts), flags=re.DOTALL)
    texts[::2] = [_WHOLE.sub(r"<span class=whole>\1</span>", text) for text in texts[::2]]
    return (
        f'<!doctype html>\n<html lang="en"><head>{made_by(maker) if maker else ""}'
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}{style}</style></head>\n"
        f"<body>{''.join(texts)}</body></html>\n"
    )


def made_by(maker: str) -> str:
    """The mark of a command in the head of its pages, by which it knows them."""
    return f'<meta name="generator" content="{escaped(maker)}">'


def html_table(
    head: Sequence[Any], rows: Sequence[Sequence[Any]], names: Collection[str] = ()
) -> str:
    """Return a table that scrolls where the screen is narrow. names: heads of columns of names."""

    def cells(tag: str, row: Sequence[Any]) -> str:
        found = []
        for column, cell in zip(head, row, strict=True):
            text = escaped(cell)
            kinds = ["name"] * (column in names) + ["long"] * (len(text) > _LONG)
            found.append(f'<{tag} class="{" ".join(kinds)}">{text}' if kinds else f"<{tag}>{text}")
        return "<tr>" + "".join(f"{cell}</{tag}>" for cell in found) + "</tr>"

    lines = "".join(cells("td", row) for row in rows)
    return f"<div class=wide><table>{cells('th', head)}{lines}</table></div>"


def html_charts(charts: Sequence[str], captions: Sequence[str] = ()) -> str:
    """Return charts (SVG text) beside each other, as many as fit. captions: HTML above each.

    Where the screen is so narrow that letters would get too small, a chart scrolls.
    """
    shown = []
    for svg, caption in zip(charts, captions or [""] * len(charts), strict=True):
        found = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
        width = float(found[1]) if found else _CHART
        least = f'<svg style="min-width:{0.85 * width:.0f}px"'
        style = f"flex:1 1 {1.3 * width:.0f}px;max-width:min(100%,{1.5 * width:.0f}px)"
        above = f"<figcaption>{caption}</figcaption>" if caption else ""
        shown.append(f'<figure style="{style}">{above}{svg.replace("<svg", least, 1)}</figure>')
    return f"<div class=plots>{''.join(shown)}</div>"


def escaped(value: Any) -> str:
    """Return a value as text that is no HTML, whatever a stranger put into it."""
    return html.escape(printable(str(value)))
