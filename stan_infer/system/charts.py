"""Charts, as SVG text for an HTML page in that page's text colour, or as PNG and SVG files.

Names in them may be a stranger's: they are no formulas, and characters without a glyph are boxes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import printable
from stan_infer.system.packages import require

# Okabe and Ito's colours, which colour-blind readers can tell apart, on white and on near-black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A")
MARKERS = "osD^vPX"
_INK = "#010203"  # is replaced by the page's text colour (currentColor)
MAX_NAMES = 40  # beside a heat map
_LONGEST_NAME = 24  # characters there
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
    return inline_svg(figure, title)


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
    return inline_svg(figure, title)


def histogram(counts: Mapping[str, int], title: str, x: str, y: str) -> Any:
    """Draw one column per name, with its number above, and return matplotlib's figure."""
    figure, axes = _axes(title, x, y)
    bars = axes.bar(list(counts), list(counts.values()), color=COLOURS[0])
    axes.bar_label(bars, padding=2, color=_INK, fontsize=9)
    axes.grid(visible=False, axis="x")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.margins(y=0.12)
    if len(counts) > 8:
        axes.tick_params(axis="x", labelsize=8, rotation=30)
    return figure


def heat_map(values: NDArray[np.float64], names: Sequence[str], title: str, x: str, y: str) -> Any:
    """Draw values [n, n] between 0 and 1, rows from the top, and return matplotlib's figure.

    Names stand beside it if there are at most MAX_NAMES. 0 is transparent, 1 full colour.
    """
    side = min(max(5.0, 1.8 + 0.24 * len(names)), 11.0) if len(names) <= MAX_NAMES else 8.0
    figure, axes = _axes(title, x, y, (side, side))
    axes.grid(visible=False)
    image = np.empty((*values.shape, 4), np.float32)
    image[..., :3] = [int(COLOURS[0][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    image[..., 3] = values
    axes.imshow(image, interpolation="nearest")
    if len(names) <= MAX_NAMES:
        places, short = range(len(names)), [_short(n) for n in names]
        for set_ticks, turned in ((axes.set_xticks, 90), (axes.set_yticks, 0)):
            set_ticks(places, short, fontsize=9, rotation=turned, parse_math=False)
    return figure


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}\u2026"


def _axes(title: str, x: str, y: str, size: tuple[float, float] = (6.4, 3.8)) -> tuple[Any, Any]:
    require("matplotlib", "drawing plots", "report")
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
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


def image_files(figure: Any, title: str) -> dict[str, bytes]:
    """Return the figure on white as {"svg": ..., "png": ...}, the same bytes each time."""
    found = {}
    with _settings(title):
        for format, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            packed = io.BytesIO()
            figure.savefig(packed, format=format, dpi=110, facecolor="white", metadata=metadata)
            found[format] = packed.getvalue()
    return found


def inline_svg(figure: Any, title: str) -> str:
    """Return the figure as SVG text without a size or colour of its own, for a page."""
    text = io.StringIO()
    with _settings(title):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The page's style sets the size.
    return re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)


@contextmanager
def _settings(title: str) -> Iterator[None]:
    """What a figure is saved with. title: of the chart, different from others on its page."""
    import matplotlib

    # Charts on one page must not share identifiers, so the hash that makes them takes the title.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield
