"""The plot of a watch: values over time of each text, its events shaded; PNG, SVG or a page."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError, printable
from stan_infer.system import earlier_result
from stan_infer.system.atomic import Sources, check_file, new_file
from stan_infer.system.charts import (
    INK,
    image_files,
    inline_svg,
    legend,
    look,
    new_figure,
    styled,
    time_axis,
)
from stan_infer.system.html_page import escaped, html_charts, html_page, html_table
from stan_infer.system.packages import require
from stan_infer.watch.events import Event
from stan_infer.watch.watch import Watch

SUFFIXES = (".png", ".svg", ".html")
MAX_CURVES = 7  # of a plot: so many colours can be told apart
_MAX_ROWS = 500  # events in the table of a page
_LONGEST = 60  # characters of a text in the legend
_MAKER = "stan-infer watch"
_SIZE = (9.0, 3.6)  # inches of a file
_PAGE_SIZE = (5.2, 3.9)  # as wide as a phone's screen, as charts are
_MARK = b"Software\0" + _MAKER.encode()


def check_plot(path: Path, *, sources: Sources = ()) -> None:
    """Refuse a plot that cannot be written, before the work; see system.atomic.check_file.

    Raises InputError also for another suffix than SUFFIXES, MissingError without matplotlib.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--plot {path}: give a name that ends in {', '.join(SUFFIXES)}")
    require("matplotlib", "drawing plots", "report")
    check_file(path, _keep(path), sources=sources)


def write_plot(path: Path, watch: Watch, *, sources: Sources = ()) -> None:
    """Write the plot of what was watched, a file that an earlier one of ours may be replaced by.

    path: its suffix says which form. Raises what check_plot raises.
    """
    check_plot(path, sources=sources)
    kind = path.suffix.lower().removeprefix(".")
    if kind == "html":
        data = _page(watch).encode()
    else:
        title = _title(watch)
        data = image_files(figure_of(watch, _SIZE, title), title)[kind]
        data = _marked_png(data) if kind == "png" else _marked_svg(data)
    with new_file(path, _keep(path), sources=sources) as made:
        made.write_bytes(data)


def figure_of(watch: Watch, size: tuple[float, float], title: str = "") -> Any:
    """Return the plot as matplotlib's figure, `size` in inches."""
    figure = new_figure(size)
    axes = figure.add_subplot()
    axes.set_title(title, color=INK, fontsize=12, loc="left", parse_math=False)
    times, values = watch.curve.times, watch.curve.values
    low, high = _span(times, watch)
    since = watch.clock(0.0)
    start = f"time since {since:%Y-%m-%d %H:%M:%S}" if since else "time in the video"
    styled(axes, "", _measure(watch))
    time_axis(axes, start, low, high)
    shown = _shown(values, watch)
    for place, i in enumerate(shown):
        colour, marker = look(place)
        many = len(times) > 60
        width = 1.0 if len(times) > 600 else 1.6
        style: dict[str, Any] = {"color": colour, "linewidth": width, "clip_on": False}
        style |= {} if many else {"marker": marker, "markersize": 4}
        style |= {} if i < watch.watched else {"linestyle": ":"}
        axes.plot(times, values[:, i], label=_label(watch.texts[i]), **style)
    for event in watch.curve.events:
        if (i := watch.texts.index(event.text)) in shown:
            colour, alpha = look(shown.index(i))[0], 0.16
            axes.axvspan(event.start_s, event.end_s, color=colour, alpha=alpha, linewidth=0)
    rule = watch.rule
    for value, style_of in ((rule.on, "--"), (rule.off, ":")):
        axes.axhline(value, color=INK, linewidth=0.9, linestyle=style_of, alpha=0.7)
    right = axes.secondary_yaxis("right")
    ends = {rule.on: "on", rule.off: "off"} if rule.on > rule.off else {rule.on: "on, off"}
    right.set_yticks(list(ends), list(ends.values()))
    right.set_facecolor("none")
    right.tick_params(colors=INK, length=0)
    right.spines["right"].set_visible(False)
    if watch.measure == "probability":
        axes.set_ylim(0, 1)
    legend(figure)
    for text in figure.legends[0].get_texts():
        text.set_parse_math(False)
    return figure


def _title(watch: Watch) -> str:
    name = watch.source if watch.live else Path(watch.source).name
    return printable(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}\u2026")


def _measure(watch: Watch) -> str:
    if watch.measure == "probability":
        return "probability among the texts"
    return "score (cosine)" if watch.head == "mean" else "Mug score"


def _label(text: str) -> str:
    """A text in the legend; matplotlib leaves out what begins with an underscore."""
    text = printable(text)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\u2026"
    return f" {text}" if text.startswith("_") else text


def _shown(values: NDArray[np.float64], watch: Watch) -> list[int]:
    """The texts that are drawn: those watched for first, then the highest ones."""
    peaks = np.nan_to_num(np.fmax.reduce(values, axis=0), nan=-np.inf)
    order = sorted(range(len(peaks)), key=lambda i: (i >= watch.watched, -peaks[i]))
    return sorted(order[:MAX_CURVES])


def _span(times: NDArray[np.float64], watch: Watch) -> tuple[float, float]:
    first = float(times[0]) - watch.stride_s / 2 if watch.live else 0.0
    return first, max(watch.end_s, first + watch.stride_s)


def _page(watch: Watch) -> str:
    title = f"Watched: {_title(watch)}"
    summary = watch.summary()
    svg = inline_svg(figure_of(watch, _PAGE_SIZE), title)
    kind = "live" if watch.live else "a recording"
    drawn = _shown(watch.curve.values, watch)
    parts = [
        f"<h1>{escaped(title)}</h1>",
        f"<p>{escaped(_sentence(summary))}</p>",
        html_charts([svg]),
        f"<p class=soft>Each point is a window of {summary['window_s']:g} s, drawn at its middle; "
        f"it stands for {watch.stride_s:.4g} s. An event, shaded, begins at {watch.rule.on:g} and "
        f"goes on while the {watch.measure} is at least {watch.rule.off:g}. Dotted curves are of "
        "texts that are only compared with.</p>",
    ]
    if len(drawn) < len(watch.texts):
        parts.append(
            f"<p class=soft>Drawn are the {len(drawn)} of {len(watch.texts)} texts that come "
            "highest.</p>"
        )
    parts += _events(watch.curve.events, watch)
    counts = {k: v for k, v in summary["frames"].items() if v}
    facts = {"source": summary["source"], "kind": kind, **counts, **summary["session"]}
    parts += ["<h2>How it was read</h2>", html_table(["", "value"], [*facts.items()])]
    return html_page(title, parts, maker=_MAKER)


def _sentence(summary: Mapping[str, Any]) -> str:
    events, windows = summary["events"], summary["windows"]
    return f"{events} event{'s' * (events != 1)} in {windows} windows, {summary['seconds']:.1f} s."


def _events(events: Sequence[Event], watch: Watch) -> list[str]:
    if not events:
        return ["<h2>Events</h2>", "<p>There is none.</p>"]

    def when(time: float | None) -> str:
        at = watch.clock(time)
        return f"{at:%Y-%m-%d %H:%M:%S}" if at else f"{time:.2f}"

    unit = "" if watch.live else ", s"
    head = ["text", f"from{unit}", f"to{unit}", "highest", f"at{unit}"]
    rows = [
        [e.text, when(e.start_s), when(e.end_s), f"{e.peak:.4g}", when(e.peak_s)]
        for e in list(events)[:_MAX_ROWS]
    ]
    more = len(events) - _MAX_ROWS
    note = [f"<p class=soft>and {more} more</p>"] if more > 0 else []
    return ["<h2>Events</h2>", html_table(head, rows, ("text",)), *note]


def _keep(path: Path) -> earlier_result.WhyKeep:
    if path.suffix.lower() == ".html":
        return earlier_result.page(_MAKER, f"{_MAKER} --plot")

    def why_keep(path: Path) -> str | None:
        with path.open("rb") as file:
            ours = _MAKER.encode() in file.read(300)
        return None if ours else f"it was not written by {_MAKER} --plot"

    return why_keep


def _marked_png(data: bytes) -> bytes:
    """The picture with a note of what made it, by which it may be replaced later."""
    end = 33  # of the signature and the header
    chunk = b"tEXt" + _MARK
    packed = struct.pack(">I", len(_MARK)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:end] + packed + data[end:]


def _marked_svg(data: bytes) -> bytes:
    head, end, rest = data.partition(b"?>")
    return head + end + b"\n<!-- " + _MAKER.encode() + b" -->" + rest
