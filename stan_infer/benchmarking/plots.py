"""Charts as SVG text for an HTML page; text and axes have the page's text colour."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stan_infer.system.packages import require

# Okabe and Ito's colours, which colour-blind readers can tell apart, on white and on near-black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A")
MARKERS = "osD^vPX"
_INK = "#010203"  # is replaced by the page's text colour (currentColor)
Points = Sequence[tuple[float, float]]


def line_chart(
    series: Mapping[str, Points],
    title: str,
    x: str,
    y: str,
    *,
    log_y: bool = False,
    lines: bool = True,
    names: Sequence[str] = (),
) -> str:
    """Draw one line (or, without `lines`, points) per series; return SVG text.

    names: of all series of a page; the place of a name in it decides its colour. Axes start at zero
    unless logarithmic. Up to eight x values are the ticks. Raises MissingError without matplotlib.
    """
    figure, axes = _axes(title, x, y)
    order = list(dict.fromkeys([*names, *series]))
    for name, points in series.items():
        i = order.index(name)
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axes.plot(*zip(*points, strict=True), linestyle="-" if lines else "", label=name, **style)
    ticks = sorted({p[0] for points in series.values() for p in points})
    if lines and len(ticks) <= 8:
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    if log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    if not lines:
        axes.set_xlim(left=0)
    axes.legend(frameon=False, labelcolor=_INK, fontsize=10)
    return _svg(figure, title)


def bar_chart(values: Mapping[str, float], title: str, x: str, *, line: float | None = None) -> str:
    """Draw one horizontal bar per value, from the top down, and a vertical line at `line`."""
    figure, axes = _axes(title, x, "")
    names, numbers = list(values), list(values.values())
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
    bars = axes.barh(names, numbers, color=colours)
    axes.bar_label(bars, labels=[f"{n:.3g}" for n in numbers], padding=3, color=_INK, fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, max([*numbers, line or 0]) * 1.15)
    if line is not None:
        axes.axvline(line, color=_INK, linewidth=1, linestyle="--")
    return _svg(figure, title)


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    require("matplotlib", "drawing plots", "report")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, color=_INK, fontsize=12, loc="left")
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.tick_params(colors=_INK)
    axes.grid(alpha=0.25, color=_INK, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    import matplotlib

    text = io.StringIO()
    # Charts on one page must not share identifiers, so the hash that makes them takes the title.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The page's style sets the size.
    return re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
