"""The scores of windows over time on the page of a search."""

import re
import shutil
import sqlite3
from types import SimpleNamespace

import numpy as np
import pytest

import stan_infer as si
from stan_infer.library.contact_sheet import write_sheet
from stan_infer.library.database import ROWS
from stan_infer.library.over_time import MAX_POINTS, charts, scores_over_time
from stan_infer.library.search import Hit
from stan_infer.video.windows import Windows
from tests.examples.chromium import Page, needs_browser
from tests.library.test_search import ODD, Tags
from tests.video.broken_videos import make_clip

MODEL = "examples/motion/motion.safetensors"
TEXTS = {"a shape fades in": 1, "a bar": 0.5}
COLOUR = "getComputedStyle(document.querySelector('{}')).{}.match(/\\d+/g).map(Number)[0]"


@pytest.fixture(scope="module")
def session():
    with si.open_session(MODEL) as session:
        yield session


@pytest.fixture(scope="module")
def place(tmp_path_factory, session):
    """Three videos: of many windows, twice, and of one. The first has a hostile name."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("over-time")
    (folder / "videos").mkdir()
    make_clip(folder / "videos" / "a.mp4", frames=250, size=(64, 64))
    make_clip(folder / "videos" / "b.mp4", frames=100, size=(64, 64))
    make_clip(folder / "videos" / "short.mp4", frames=20, size=(64, 64))
    odd = folder / "videos" / (ODD.replace("/", "\\") + " $x_1$.mp4")
    (folder / "videos" / "a.mp4").rename(odd)
    shutil.copy(folder / "videos" / "b.mp4", folder / "videos" / "copy of b.mp4")
    windows = Windows(seconds=1, stride=0.5, grid=True)
    made = si.embed_library(session, [folder / "videos"], folder / "parts", windows=windows)
    assert made.rows == 19 + 7 + 1 and made.copies == 1
    return folder


def search(place, session, **options):
    library = si.open_library(place / "parts")
    return library, library.search(TEXTS, model=session, **options)


def test_curves_are_the_scores_of_all_windows(place, session):
    library, found = search(place, session, top=6)
    curves = [*scores_over_time(library, found)]
    assert sorted(len(c.times) for c in curves) == [7, 19]  # one window is no curve
    _, every = search(place, session, top=27, overlapping=True)
    for curve in curves:
        own = [h for h in every.hits if h.video == curve.hits[0].video]
        own.sort(key=lambda h: h.start_s)
        np.testing.assert_allclose(curve.times, [(h.start_s + h.end_s) / 2 for h in own])
        np.testing.assert_allclose(curve.values, [h.score for h in own], atol=1e-6)
        assert curve.end_s == own[-1].end_s
        for hit in curve.hits:
            at = np.flatnonzero(curve.times == (hit.start_s + hit.end_s) / 2)
            assert curve.values[at] == pytest.approx(hit.score, abs=1e-6)
    shown = [hit.rank for curve in curves for hit in curve.hits]
    assert sorted(shown) == [h.rank for h in found.hits if "short" not in h.video]
    assert "query" not in found.to_dict()


def test_the_page_shows_them_and_names_are_text(place, session, tmp_path):
    library, found = search(place, session, top=6)
    write_sheet(tmp_path / "p.html", library, found)
    text = (tmp_path / "p.html").read_text()
    page = Tags(text)
    assert text.count("<svg") == 2 and "Over time" in page.text and "Mug" not in page.text
    assert page.text.count("onerror=") > 1 and "\x1b" not in page.text
    for tag, attributes in page.found:
        assert tag not in ("script", "foreignobject", "a", "image"), tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        assert all(v.startswith("#") for k, v in attributes.items() if "href" in k)
    names = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL)
    assert len(names) == 2 and any("&lt;img src=x" in name for name in names)
    svgs = re.findall("<svg.*?</svg>", text, re.DOTALL)
    assert all(len(svg) < 30_000 for svg in svgs)
    ids = [i for svg in svgs for i in set(re.findall(r'<clipPath id="(.*?)"', svg))]
    assert len(ids) == len(set(ids)) > 0  # else one chart would be cut by another's frame
    whole = si.embed_library(session, [place / "videos" / "b.mp4"], tmp_path / "whole")
    found = si.open_library(whole.out).search("a bar", model=session)
    write_sheet(tmp_path / "w.html", si.open_library(whole.out), found)
    assert "<svg" not in (tmp_path / "w.html").read_text()


def test_with_a_mug_head_the_page_says_what_is_drawn(place, tmp_path):
    with si.open_session(MODEL, settings={"head": "mug"}) as session:
        windows = Windows(seconds=1, stride=0.5)
        si.embed_library(session, [place / "videos"], tmp_path / "mug", windows=windows)
        library = si.open_library(tmp_path / "mug")
        found = library.search(TEXTS, model=session, mug=True, top=3)
    write_sheet(tmp_path / "p.html", library, found)
    assert (
        "It is the cosine; the rows above have the score of the Mug head."
        in (tmp_path / "p.html").read_text()
    )


def library_of(start, end, vectors):
    every = np.arange(len(start))
    videos = SimpleNamespace(of_same_content=lambda rows: [every for _ in rows])
    start, end = np.array(start, float), np.array(end, float)
    return SimpleNamespace(ids=every, start=start, end=end, vectors=vectors, videos=videos)


def hit(row, start, end, rank=1):
    return Hit(rank=rank, score=0.5, video="v.mp4", start_s=start, end_s=end, copies=(), row=row,
               cosines=(0.5,))  # fmt: skip


def curve_of(library, *hits):
    query = np.zeros(library.vectors.shape[1])
    query[0] = 1
    found = SimpleNamespace(hits=hits or [hit(0, 0.0, 2.0)], query=query)
    return [*scores_over_time(library, found)]


def test_many_windows_share_points_and_the_highest_stays():
    n = 99_999
    vectors = np.zeros((n, 2), np.float32)
    vectors[77_777, 0] = 0.9
    (curve,) = curve_of(library_of(np.arange(n), np.arange(n) + 2.0, vectors))
    assert MAX_POINTS / 2 < len(curve.times) <= MAX_POINTS and np.isfinite(curve.values).all()
    assert curve.values.max() == np.float32(0.9) and (np.diff(curve.times) > 0).all()
    assert abs(curve.times[curve.values.argmax()] - 77_778) <= n / MAX_POINTS + 1
    (svg,) = charts([curve], "score")
    assert len(svg) < 40_000


def test_no_line_crosses_windows_that_are_missing():
    start = np.array([0, 1, 2, 3, 7, 8, 9])
    (curve,) = curve_of(library_of(start, start + 2, np.full((7, 1), 0.5, np.float32)))
    assert curve.times.tolist() == [1, 2, 3, 4, 8, 8, 9, 10]
    assert np.flatnonzero(np.isnan(curve.values)).tolist() == [4]


def test_what_a_stranger_wrote_is_left_out():
    nan, inf = np.nan, np.inf
    start = [0, 1, 2, nan, -5, 3, 4, 9, 5, 6]
    end = [2, 3, 4, 5, 1, inf, 1e300, 8, 7, nan]
    vectors = np.full((10, 1), 0.5, np.float32)
    vectors[1], vectors[2] = inf, -1e30
    (curve,) = curve_of(library_of(start, end, vectors), hit(0, 0.0, 2.0), hit(4, -5.0, 1e300, 2))
    assert curve.times[~np.isnan(curve.values)].tolist() == [1, 6] and curve.end_s == 7
    (svg,) = charts([curve], "score")
    assert "inf" not in svg and "nan" not in svg and "e+" not in svg
    assert curve_of(library_of([0], [1], vectors[:1])) == []
    assert curve_of(library_of([0, inf], [1, inf], vectors[:2])) == []
    vectors[:] = nan
    assert len([*charts(curve_of(library_of([0, 1], [1, 2], vectors[:2])), "score")]) == 1


def test_ranks_that_would_meet_are_left_out_behind_the_better():
    start = np.arange(100.0)
    library = library_of(start, start + 2, np.full((100, 1), 0.5, np.float32))
    (curve,) = curve_of(library, hit(3, 3.0, 5.0, 501), hit(5, 5.0, 7.0, 502), hit(50, 50, 52, 503))
    (svg,) = charts([curve], "score")
    assert re.findall(r">(50\d)</text>", svg) == ["501", "503"]


def test_rows_of_a_content_are_those_of_its_copies_and_of_nothing_else(place):
    library = si.open_library(place / "parts")
    of_all = library.videos.of_same_content(range(27))
    for row, places in enumerate(of_all):
        wanted = [i for i in range(27) if library.videos[i] == library.videos[row]]
        assert places.tolist() == wanted
    shutil.copytree(place / "parts", place / "changed")
    changed = si.open_library(place / "changed")
    db = sqlite3.connect(place / "changed" / ROWS)
    db.execute("DELETE FROM rows WHERE id IN (3, 5)")
    db.execute("INSERT INTO rows SELECT 100, clip, start_s, end_s, crc FROM rows WHERE id = 4")
    db.commit()
    db.close()
    gone, rest = changed.videos.of_same_content([3, 4])
    assert gone.size == 0 and rest.tolist() == [p for p in of_all[4] if p not in (3, 5)]


@needs_browser
def test_the_charts_in_a_browser(place, session, tmp_path):
    library, found = search(place, session, top=6)
    write_sheet(tmp_path / "p.html", library, found)
    with Page(tmp_path / "profile") as page:
        for width in (390, 1280):
            page.open((tmp_path / "p.html").as_uri(), width)
            assert page.js("document.documentElement.scrollWidth <= innerWidth")
            boxes = (
                "[...document.querySelectorAll('{}')].map(e => e.getBoundingClientRect().toJSON())"
            )
            svgs, names = page.js(boxes.format("svg")), page.js(boxes.format("figcaption"))
            assert all(s["width"] >= 310 and s["right"] <= width for s in svgs)
            assert all(n["bottom"] <= s["top"] + 1 for n, s in zip(names, svgs, strict=True))
            shades = []
            for dark in (False, True):
                page.dark(dark=dark)
                shades.append(page.js(COLOUR.format("svg text", "fill")))
            assert shades[0] < 60 and shades[1] > 200
        asked = [a for a in page.addresses() if not a.startswith(("data:", "about:"))]
        assert set(asked) == {(tmp_path / "p.html").as_uri()}
