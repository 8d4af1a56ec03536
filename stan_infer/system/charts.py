"""Charts: figures of matplotlib, as SVG text for an HTML page, or as PNG and SVG files.

On a page they take its text colour; an SVG file is light or dark as its reader prefers; a PNG is
light. Names in them may be a stranger's: they are no formulas, and control characters are escaped.
"""

from __future__ import annotations

import io
import re
import unicodedata
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
# Stand for the colours of text and of the background, which the reader's preference decides.
INK, _PAPER = "#010203", "#fffefd"
_FILE_STYLE = (
    "<style>svg{color:#1b1b1b;background:#fff}.paper{fill:#fff}"
    "@media (prefers-color-scheme:dark)"
    "{svg{color:#e8e8e8;background:#141414}.paper{fill:#141414}}</style>"
)
MAX_NAMES = 40  # beside a heat map; of more classes the numbers stand there
_MAX_CELLS = 200  # of a heat map's side, so that one of them is seen
_MAX_NUMBERS = 12  # classes up to which the percentage stands in its cell
_NAME_SIZE = 9  # points
_LONGEST_NAME = 24  # columns of a name beside a heat map; wide characters take two
# Fonts of common systems for what matplotlib's own lacks; those that are there are used in a PNG.
_MORE_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR"),
    *("Droid Sans Fallback", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Microsoft YaHei"),
    *("Yu Gothic", "Malgun Gothic", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai"),
    *("Nirmala UI", "Tahoma"),
)
# Inches; at 72 pixels each as wide as a phone's screen, with letters of 10 to 12 pixels.
_SIZE = (5.2, 3.7)
# From so many seconds on, an axis shows hours, and minutes.
_HOUR, _MINUTE = 3600.0, 120.0
_ROUND_TIMES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
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
) -> Any:
    """Draw one line (or, without `lines`, points) per series; return matplotlib's figure.

    names: of all series of a page; the place of a name in it decides its colour. Axes start at zero
    unless logarithmic. Up to eight x values are the ticks. Raises MissingError without matplotlib.
    """
    figure, axes = _chart(title, x, y)
    order = list(dict.fromkeys([*names, *series]))
    for name, points in series.items():
        colour, marker = look(order.index(name))
        # A marker at the end of an axis is drawn whole.
        style: dict[str, Any] = {"color": colour, "marker": marker, "clip_on": False}
        style["linestyle"] = "-" if lines else ""
        axes.plot(*zip(*points, strict=True), label=name, **style)
    every = np.array([p for points in series.values() for p in points], float)
    ticks = np.unique(every[:, 0])
    if lines and len(ticks) <= 8:
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xlim(0, 1.08 * every[:, 0].max())
    if log_y:
        axes.set_yscale("log")
        axes.set_ylim(every[:, 1].min() / 3, 3 * every[:, 1].max())
    else:
        axes.set_ylim(0, 1.08 * every[:, 1].max() or 1)
    legend(figure)
    return figure


def bar_chart(
    values: Mapping[str, float],
    title: str,
    x: str,
    *,
    line: float | None = None,
    names: Sequence[str] = (),
) -> Any:
    """Draw one horizontal bar per value, from the top down, and a vertical line at `line`.

    The values stand in a column at the right, where no bar and no line crosses them. names: see
    line_chart. Returns matplotlib's figure.
    """
    figure, axes = _chart(title, x, "", (_SIZE[0], 1.5 + 0.34 * max(len(values), 3)))
    order = list(dict.fromkeys([*names, *values]))
    numbers, places = list(values.values()), range(len(values))
    axes.barh(places, numbers, height=0.6, color=[look(order.index(n))[0] for n in values])
    axes.set_yticks(places, list(values))
    axes.set_ylim(max(len(values), 3) - 0.4, -0.6)  # a single bar is no thicker than one of three
    axes.set_xlim(0, 1.05 * max([*numbers, line or 0]) or 1)
    axes.grid(visible=False, axis="y")
    right = axes.secondary_yaxis("right")
    right.set_yticks(places, [f"{n:.3g}" for n in numbers])
    right.set_facecolor("none")
    right.tick_params(colors=INK, length=0)
    right.spines["right"].set_visible(False)
    if line is not None:
        axes.axvline(line, color=INK, linewidth=1, linestyle="--")
    return figure


def histogram(counts: Mapping[str, int], title: str, x: str, y: str) -> Any:
    """Draw one column per name, with its number above, and return matplotlib's figure."""
    figure, axes = _chart(title, x, y, _SIZE if len(counts) <= 8 else (7.0, _SIZE[1]))
    bars = axes.bar(list(counts), list(counts.values()), color=COLOURS[0])
    axes.bar_label(bars, padding=2, color=INK, fontsize=10)
    axes.grid(visible=False, axis="x")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(-0.7, max(len(counts), 8) - 0.3)  # few columns are no wider than eight
    axes.set_ylim(0, 1.12 * max(1, *counts.values()))
    if len(counts) > 8:
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")
    return figure


def heat_map(
    shares: NDArray[np.float64],
    names: Sequence[str],
    numbers: Sequence[int],
    words: Mapping[str, str],
) -> Any:
    """Draw shares [n, n] between 0 and 1, rows from the top, and return matplotlib's figure.

    names: of the rows and columns, shown up to MAX_NAMES; numbers: shown where there are more.
    words: "title", "x", "y", and "unit", which stands beside the key. The colour goes by the square
    root, so that one in a hundred is seen, too; 0 is transparent.
    """
    require("matplotlib", "drawing plots", "report")
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.ticker import MaxNLocator

    n, is_named = len(shares), len(shares) <= MAX_NAMES
    shown = [_short(name) for name in names] if is_named else []
    cells = min(max(2.6, 0.25 * n), 9.0) if is_named else 7.0  # inches
    room = max(map(_width, shown), default=0.4)  # inches for the names
    pooled, step = _pooled(100 * shares)
    title = words["title"] + (f" (a square: the highest of {step} x {step})" if step > 1 else "")
    left, below, right, above = room + 0.45, room + 0.5, 1.1, 0.35
    size = (left + cells + right, below + cells + above)
    figure, axes = _chart(title, words["x"], words["y"], size)
    figure.set_layout_engine("none")
    axes.set_position((left / size[0], below / size[1], cells / size[0], cells / size[1]))
    colour = np.array([int(COLOURS[0][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    colours = LinearSegmentedColormap.from_list("", [(*colour, 0.0), (*colour, 1.0)])
    style = {"cmap": colours, "norm": PowerNorm(0.5, 0, 100), "interpolation": "none"}
    end = step * len(pooled) - 0.5
    axes.imshow(pooled, extent=(-0.5, end, end, -0.5), **style)
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5))
    if _MAX_NUMBERS < n <= MAX_NAMES:
        axes.grid(alpha=0.15, linewidth=0.5, color=INK)
    else:
        axes.grid(visible=False)
    if n <= _MAX_NUMBERS:
        for row, column in zip(*np.nonzero(shares), strict=True):
            share = shares[row, column]
            text = axes.text(column, row, f"{100 * share:.0f}", fontsize=9, ha="center")
            text.set(va="center", color="white" if share > 0.8 else INK)
    _key(axes, cells, style, words["unit"])
    if is_named:
        _name_ticks(axes, shown)
    else:
        places = [int(p) for p in MaxNLocator(8, integer=True).tick_values(0, n) if 0 <= p < n]
        for set_ticks in (axes.set_xticks, axes.set_yticks):
            set_ticks(places, [str(numbers[p]) for p in places])
    return figure


def _pooled(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Values [n, n] as [m, m], m at most _MAX_CELLS: the largest of step x step values each."""
    step = -(-len(values) // _MAX_CELLS)
    padded = np.pad(values, (0, -len(values) % step))
    m = len(padded) // step
    return padded.reshape(m, step, m, step).max((1, 3)), step


def _key(axes: Any, height: float, style: Mapping[str, Any], unit: str) -> None:
    """Draw the colours of 0 to 100 percent beside a heat map that is so many inches high."""
    bar = axes.inset_axes((1 + 0.15 / height, 0.0, 0.13 / height, 1.0))
    # One step of colour after another: polygons of transparent colours would show their seams.
    steps = 100 * np.linspace(0, 1, 128)[:, None] ** 2
    bar.imshow(steps, origin="lower", aspect="auto", extent=(0, 1, 0, 1), **style)
    ticks = (0, 1, 5, 10, 25, 50, 75, 100)
    bar.set_yticks([(t / 100) ** 0.5 for t in ticks], [f"{t} %" for t in ticks])
    bar.set_xticks([])
    bar.yaxis.set_ticks_position("right")
    bar.yaxis.set_label_position("right")
    bar.set_ylabel(unit, color=INK)
    bar.tick_params(colors=INK, labelsize=9)
    bar.patch.set_visible(False)
    for spine in bar.spines.values():
        spine.set(color=INK, linewidth=0.6)


def _name_ticks(axes: Any, names: Sequence[str]) -> None:
    """Put names beside the rows and columns."""
    from matplotlib.font_manager import fontManager

    there = {font.name for font in fontManager.ttflist}
    fonts = ["sans-serif", *(name for name in _MORE_FONTS if name in there)]
    style = {"fontsize": _NAME_SIZE, "parse_math": False, "fontfamily": fonts}
    axes.set_xticks(range(len(names)), names, **style)
    axes.set_yticks(range(len(names)), names, **style)
    upright(axes)


def upright(axes: Any) -> None:
    """Turn the names of columns, each of which ends at its tick however wide a font draws it."""
    for label in axes.get_xticklabels():
        label.set(rotation=90, ha="right", va="center", rotation_mode="anchor")


def _width(name: str) -> float:
    """Inches of a name, whatever font draws what is neither Latin nor Greek nor Cyrillic."""
    from matplotlib.textpath import TextPath

    shown = "".join(c if ord(c) < 0x530 and c != "$" else "\u2014" for c in name)
    return TextPath((0, 0), shown, size=_NAME_SIZE).get_extents().width / 72 if name else 0.0


def _short(name: str) -> str:
    """The name in at most _LONGEST_NAME columns, without its middle if need be."""
    name = printable(name)
    widths = [1 + (unicodedata.east_asian_width(c) in "WF") for c in name]
    if sum(widths) <= _LONGEST_NAME:
        return name
    begin = int((np.cumsum(widths) <= 14).sum())
    end = int((np.cumsum(widths[::-1]) <= 9).sum())
    return f"{name[:begin]}\u2026{name[len(name) - end :]}"


def look(place: int) -> tuple[str, str]:
    """The colour and the marker of the series at a place, different for the first 49."""
    turn, i = divmod(place, len(COLOURS))
    return COLOURS[i], MARKERS[(i + turn) % len(MARKERS)]


def legend(figure: Any) -> None:
    """Put the names of the series below the chart, where they hide nothing."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        found |= {label: h for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    style = {"frameon": False, "labelcolor": INK, "fontsize": 10, "loc": "outside lower center"}
    letters = int(figure.get_figwidth() * 12)
    columns = min(max(letters // (max(map(len, found)) + 6), 1), len(found))
    if sum(len(name) + 6 for name in found) <= letters:
        columns = len(found)
    figure.legend(list(found.values()), list(found), ncols=columns, **style)


def _chart(title: str, x: str, y: str, size: tuple[float, float] = _SIZE) -> tuple[Any, Any]:
    figure = new_figure(size)
    axes = figure.add_subplot()
    axes.set_title(title, color=INK, fontsize=12, loc="left")
    styled(axes, x, y)
    return figure, axes


def new_figure(size: tuple[float, float]) -> Any:
    """Return an empty figure of this size in inches. Raises MissingError without matplotlib."""
    require("matplotlib", "drawing plots", "report")
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def styled(axes: Any, x: str, y: str) -> None:
    """Give axes their labels and our looks."""
    axes.set_facecolor("none")
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(which="both", colors=INK)
    axes.grid(alpha=0.25, color=INK, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def time_axis(axes: Any, words: str, low: float, high: float) -> None:
    """Let x reach from `low` to `high` seconds, with round times as ticks. words: its label."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    if high >= _HOUR:
        unit, show = "h:min:s", lambda x: f"{int(x // 3600)}:{int(x // 60) % 60:02}:{x % 60:02.0f}"
    elif high >= _MINUTE:
        unit, show = "min:s", lambda x: f"{int(x // 60)}:{x % 60:02.0f}"
    else:
        unit, show = "s", lambda x: f"{x:g}"
    axes.set_xlabel(f"{words} ({unit})", color=INK)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MultipleLocator(_round_time(high - low)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: show(x)))


def _round_time(seconds: float) -> float:
    """Seconds between two ticks of an axis of this length, a round time, for at most 7 ticks."""
    days = (14400, 21600, 43200, *(86400 * 2**n for n in range(20)))
    return next((t for t in (*_ROUND_TIMES, *days) if seconds / t <= 6.01), seconds)


def image_files(figure: Any, title: str) -> dict[str, bytes]:
    """Return the figure as {"svg": ..., "png": ...}, the same bytes each time.

    The SVG is dark where its reader prefers that, and the PNG has a white ground.
    """
    svg = _svg(figure, title, facecolor=_PAPER)
    svg = svg.replace(f'style="fill: {_PAPER}"', 'class="paper"')
    svg = re.sub(r"(<svg\b[^>]*>)", rf"\1{_FILE_STYLE}", svg, count=1)
    packed = io.BytesIO()
    with _settings(title):
        figure.savefig(
            packed, format="png", dpi=110, facecolor="white", metadata={"Software": None}
        )
    return {"svg": svg.encode(), "png": packed.getvalue()}


def inline_svg(figure: Any, title: str) -> str:
    """Return the figure as SVG text without a size or colour of its own, for a page."""
    svg = _svg(figure, title, transparent=True)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # The page's style sets the size.
    return re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)


def _svg(figure: Any, title: str, **style: Any) -> str:
    text = io.StringIO()
    with _settings(title):
        figure.savefig(text, format="svg", metadata={"Date": None}, **style)
    return text.getvalue().replace(INK, "currentColor")


@contextmanager
def _settings(title: str) -> Iterator[None]:
    """What a figure is saved with. title: of the chart, different from others on its page."""
    import matplotlib

    # Charts on one page must not share identifiers, so the hash that makes them takes the title.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield
