"""The scores of a video's windows over time, and the chart of them for a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.library.nearest import products
from stan_infer.library.search import Hit, Rows, SearchResult
from stan_infer.system.charts import INK, inline_svg, look, new_figure, styled, time_axis

MAX_POINTS = 400  # of a chart, some 9 kB
_LATEST = 1e9  # seconds: a library may be a stranger's
_SIZE = (5.2, 2.3)  # inches, as wide as a phone's screen, as charts are
_FEW = 60  # points that have a marker
_APART = 0.05  # of the axis, between two ranks


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of a video's windows.

    hits: those that were found, of this video, best first. times: the middle of each window [n] in
    seconds, rising. values: the scores [n], NaN where the line is broken. end_s: of the last
    window.
    """

    hits: Sequence[Hit]
    times: NDArray[np.float64]
    values: NDArray[np.float64]
    end_s: float


def scores_over_time(library: Rows, found: SearchResult) -> Iterator[Scores]:
    """The scores of every video with at least two windows that was found, best first.

    The scores are products with found.query, also where a Mug head chose the hits. Of more than
    MAX_POINTS windows neighbours share a point, which has the highest of them.
    """
    parts = [hit for hit in found.hits if hit.start_s is not None]
    groups: dict[int, tuple[NDArray[np.int64], list[Hit]]] = {}
    rows = library.videos.of_same_content(hit.row for hit in parts)
    for hit, places in zip(parts, rows, strict=True):
        groups.setdefault(id(places), (places, []))[1].append(hit)
    for places, hits in groups.values():
        start, end = library.start[places], library.end[places]
        good = (start >= 0) & (end > start) & (end <= _LATEST)
        places, start, end = places[good], start[good], end[good]
        if len(places) < 2:
            continue
        order = np.argsort(start, kind="stable")
        values = products(library.vectors, found.query, library.ids[places])[order].astype(float)
        values[~(np.abs(values) < 1.001)] = np.nan  # no cosine: the vector was changed
        times, values = _points((start + end)[order] / 2, values)
        yield Scores(hits, times, values, float(end.max()))


def _points(
    times: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most MAX_POINTS of them, and a NaN where windows are missing between two."""
    apart = np.diff(times)
    missing = np.flatnonzero(apart > 1.5 * np.median(apart)) + 1
    size = -(-len(times) // MAX_POINTS)
    if size > 1:
        filled = np.pad(values, (0, -len(values) % size), constant_values=np.nan)
        values = np.fmax.reduce(filled.reshape(-1, size), axis=1)
        times, missing = times[::size], np.unique(-(-missing // size))
        missing = missing[missing < len(times)]
    return np.insert(times, missing, times[missing]), np.insert(values, missing, np.nan)


def charts(curves: Sequence[Scores], measure: str) -> Iterator[str]:
    """Charts as SVG text, whose scores have one scale. measure: what a score is.

    The windows that were found are shaded, with their ranks where these do not meet. Raises
    MissingError without matplotlib.
    """
    every = np.concatenate([c.values[np.isfinite(c.values)] for c in curves] or [np.zeros(1)])
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    room = max(high - low, 0.01) / 8
    for number, curve in enumerate(curves):
        figure = new_figure(_SIZE)
        axes = figure.add_subplot()
        styled(axes, "", measure)
        time_axis(axes, "time in the video", 0.0, curve.end_s)
        axes.set_ylim(low - room, high + 2 * room)
        style: dict[str, Any] = {"color": look(0)[0], "linewidth": 1.3}
        style |= {"marker": "o", "markersize": 3} if len(curve.times) <= _FEW else {}
        axes.plot(curve.times, curve.values, **style)
        ranks: list[float] = []  # where they stand
        for hit in curve.hits:
            start, end = hit.start_s, hit.end_s
            if start is None or end is None or not 0 <= start < end <= curve.end_s:
                continue
            # A line makes two seconds of an hour visible.
            axes.axvspan(start, end, color=look(1)[0], alpha=0.22, linewidth=0.8)
            middle = (start + end) / 2
            if all(abs(middle - rank) > _APART * curve.end_s for rank in ranks):
                ranks.append(middle)
                place = middle, high + 1.1 * room
                axes.text(*place, str(hit.rank), color=INK, fontsize=9, ha="center")
        yield inline_svg(figure, f"Scores over time {number}")
