"""Charts: nothing is cut or hidden, whatever is drawn and named; SVG files are light or dark."""

import io
import itertools
import re

import numpy as np
import pytest

from stan_infer.quantisation.sensitivity_plot import figure_of
from stan_infer.system.charts import (
    MAX_NAMES,
    bar_chart,
    heat_map,
    histogram,
    image_files,
    inline_svg,
    line_chart,
    new_figure,
    time_axis,
)
from tests.benchmarking.test_page import DARK, LIGHT, browser, needs_browser

ODD = ("$\\frac{", "<script>alert(1)</script>", "猫が走る" * 9, "x" * 10_000, "a\u202eb\x1b[2J\n")
WORDS = {"title": "Confusion of classes", "x": "answered class", "y": "right class", "unit": "%"}


def map_of(names, shares=None):
    n = len(names)
    return heat_map(np.eye(n) if shares is None else shares, names, range(n), WORDS)


def errors(layers, branch=0):
    """The same error of every linear, so that one would hide another."""
    trunk = [f"video/trunk/layer{i}/attention/{w}" for i in range(layers) for w in ("qkv", "out")]
    trunk += [f"video/trunk/layer{i}/mlp/{w}" for i in range(layers) for w in ("fc1", "fc2")]
    trunk += [f"video/branch/layer{i}/{w}" for i in range(branch)
              for w in ("temporal/single", "temporal/qkv", "spatial/qkv", "mlp/fc1")]  # fmt: skip
    return dict.fromkeys(trunk, 1e-3)


def sensitivity(layers, branch=0):
    found = errors(layers, branch)
    return figure_of(found, list(found)[::7], "Error of each linear alone in int8 (percentile)")


LINES = {f"engine-{i} precision": [(1, 0.5 * i), (4, i), (16, 3 * i)] for i in range(9)}
FIGURES = {
    "lines": lambda: line_chart(LINES, "Latency against batch", "batch", "ms"),
    "one point": lambda: line_chart({"a": [(1, 0.0)]}, "t", "x", "y", lines=False),
    "log": lambda: line_chart({"a": [(1, 1e-7)], "b": [(9, 0.1)]}, "t", "x", "y", log_y=True),
    "bars": lambda: bar_chart({"tensorrt-rtx fp16": 0.93, "b": 1.0}, "Speed", "times", line=1),
    "zero": lambda: bar_chart({"a": 0.0}, "Speed", "times"),
    "one column": lambda: histogram({"1": 7}, "Rank of the right class", "rank", "videos"),
    "columns": lambda: histogram(
        {f"{10**5 + i}-{10**6 + i}": 10**i for i in range(6)} | {str(i): i for i in range(10)},
        "Rank of the right class", "rank", "videos",
    ),
    **{f"{n} classes": lambda n=n: map_of([f"class {i}" for i in range(n)])
       for n in (1, 3, MAX_NAMES, MAX_NAMES + 1, 400, 1999)},
    "odd names": lambda: map_of(ODD),
    "wide names": lambda: map_of(["W" * 24] * 30),
    "2 blocks": lambda: sensitivity(2),
    "30 blocks": lambda: sensitivity(24, 2),
    "110 blocks": lambda: sensitivity(100, 5),
}  # fmt: skip


def texts_of(figure):
    """The texts that are drawn, with their places in pixels."""
    from matplotlib.text import Text

    drawn, draw = [], Text.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", lambda text, *given: (drawn.append(text), draw(text, *given)))
        figure.draw_without_rendering()
    shown = (t for t in drawn if t.get_visible() and t.get_text().strip())
    return {text: text.get_window_extent() for text in shown}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.filterwarnings("ignore:Glyph .* missing")
def test_no_text_leaves_its_figure(name):
    figure = FIGURES[name]()
    texts = texts_of(figure)
    assert texts
    for text, place in texts.items():
        assert place.x0 >= -1 and place.x1 <= figure.bbox.x1 + 1, text
        assert place.y0 >= -1 and place.y1 <= figure.bbox.y1 + 1, text


@pytest.mark.parametrize("name", ["lines", "one point", "log", "2 blocks", "110 blocks"])
def test_every_marker_is_whole(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    lines = [line for axes in figure.axes for line in axes.lines if line.get_label()[0] != "_"]
    assert lines
    for line in lines:
        x, y = line.axes.transData.transform(line.get_xydata()).T
        assert not line.get_clip_on()
        assert x.min() > 5 and x.max() < figure.bbox.x1 - 5
        assert y.min() > 5 and y.max() < figure.bbox.y1 - 5
        box = line.axes.get_window_extent()
        assert box.x0 - 1 <= x.min() and x.max() <= box.x1 + 1
        assert box.y0 - 1 <= y.min() and y.max() <= box.y1 + 1


def test_no_line_crosses_the_numbers_of_bars():
    figure = FIGURES["bars"]()
    texts = texts_of(figure)
    (end,) = [place for text, place in texts.items() if text.get_text() == "0.93"]
    assert end.x0 > figure.axes[0].get_window_extent().x1


@pytest.mark.parametrize("layers", [2, 40, 100])
def test_no_linear_hides_another_of_its_block(layers):
    figure = sensitivity(layers)
    figure.draw_without_rendering()
    assert len(figure.axes) == -(-layers // 26)
    for axes in figure.axes:
        own = ("qkv", "out", "fc1", "fc2")
        lines = [line for line in axes.lines if line.get_label() in own]
        assert len(lines) == len(own)
        places = [axes.transData.transform(line.get_xydata()) for line in lines]
        for one, other in itertools.combinations(np.concatenate(places)[:, 0], 2):
            assert abs(one - other) > 4


def test_series_differ_in_colour_or_marker():
    figure = line_chart({str(i): [(1, i)] for i in range(40)}, "t", "x", "y")
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == 40


@pytest.mark.parametrize("n", [3, MAX_NAMES, 400, 1999])
def test_one_mistake_is_seen_and_the_key_says_what_its_colour_means(n):
    shares = np.eye(n)
    shares[n - 1, 0], shares[n - 1, n - 1] = 0.01, 0.99
    figure = map_of([f"class {i}" for i in range(n)], shares)
    cells = np.asarray(figure.axes[0].images[0].get_array())
    assert len(cells) <= 200 and cells[-1, 0] == pytest.approx(1.0)
    assert np.asarray(figure.axes[0].images[0].to_rgba(cells))[-1, 0, 3] > 0.09
    shown = {t.get_text() for t in texts_of(figure)}
    assert {"0 %", "1 %", "50 %", "100 %", "%", "answered class", "right class"} <= shown
    assert ("1" in shown and "99" in shown) == (n == 3)


def test_names_are_harmless_and_both_ends_of_long_ones_are_shown():
    figure = map_of([*ODD, "the first of many long names, 1", "the first of many long names, 2"])
    for svg in (inline_svg(figure, "t"), image_files(figure, "t")["svg"].decode()):
        assert "<script" not in svg and "\x1b" not in svg and "\u202e" not in svg
        assert "a\\u202eb\\x1b[2J\\n" in svg and "xxxxxxxxxxxxxx\u2026xxxxxxxxx" in svg
        assert "long names, 1" not in svg and " names, 1<" in svg and " names, 2<" in svg
        assert len(svg) < 100_000


@pytest.mark.parametrize(
    "seconds, apart, shown",
    [(2.0, 0.5, "0.5"), (60, 10, "10"), (600, 120, "2:00"), (3600, 600, "0:10:00"),
     (5400, 900, "0:15:00"), (86400, 14400, "4:00:00"), (1e7, 86400 * 32, "768:00:00")],
)  # fmt: skip
def test_ticks_of_times_are_round(seconds, apart, shown):
    axes = new_figure((5, 2)).add_subplot()
    time_axis(axes, "time", 0.0, seconds)
    first, second = axes.get_xticks()[axes.get_xticks() >= 0][:2]
    assert (first, second) == (0, apart) and axes.xaxis.get_major_formatter()(apart) == shown


def test_the_png_is_light_and_the_svg_follows_its_reader():
    from PIL import Image

    for name in ("bars", "3 classes", "2 blocks"):
        files = image_files(FIGURES[name](), name)
        assert Image.open(io.BytesIO(files["png"])).convert("RGB").getpixel((2, 2)) == (255,) * 3
        svg = files["svg"].decode()
        assert "prefers-color-scheme:dark" in svg and svg.count('class="paper"') == 1
        assert "currentColor" in svg and not re.search("#010203|#fffefd", svg)
        assert not re.search("<path[^>]*fill: #ffffff", svg), "a white patch in the dark"


@needs_browser
@pytest.mark.parametrize(("scheme", "is_dark"), [(LIGHT, False), (DARK, True)])
def test_an_svg_file_is_dark_where_its_reader_wants_that(tmp_path, scheme, is_dark):
    from PIL import Image

    (tmp_path / "a.svg").write_bytes(image_files(FIGURES["2 blocks"](), "a")["svg"])
    shot = f"--screenshot={tmp_path / 'a.png'}"
    browser(tmp_path, *scheme, shot, "--window-size=900,500", f"file://{tmp_path / 'a.svg'}")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert pixels[-5, -5] == pixels[2, 2], "beside the picture as on it"
    paper, ink = (np.median(pixels), pixels.min() if not is_dark else pixels.max())
    assert (paper < 60 and ink > 180) if is_dark else (paper > 240 and ink < 60)
