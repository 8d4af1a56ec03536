"""Search in a library: every row is compared, options change nothing, strangers' files are safe."""

import dataclasses
import json
import math
import os
import random
import re
import shutil
import sqlite3
import time
from fnmatch import fnmatchcase
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import stan_infer as si
from stan_infer.engines.session import score_features
from stan_infer.library import blocks, nearest, row_videos
from stan_infer.library.contact_sheet import MAX_FRAMES, MAX_HITS, check_sheet, write_sheet
from stan_infer.library.database import PASSPORT, ROWS, VECTORS
from stan_infer.library.embed_library import embed_library
from stan_infer.library.library import open_library
from stan_infer.library.migrate_library import migrate_library
from stan_infer.library.query import Term, terms
from stan_infer.library.row_filter import RowFilter
from stan_infer.library.search import Hit, Searcher, SearchResult
from stan_infer.video.windows import Windows
from tests.conftest import edit_json, tiny_config
from tests.examples.chromium import Page, needs_browser
from tests.library.fake_stack import FakeSession
from tests.video.broken_videos import make_clip

MANY = 6
DAY = 86400


class Talking(FakeSession):
    """The same with texts: fixed random vectors of the token ids."""

    def _text(self, texts):
        ids = np.asarray(texts)
        table = np.random.default_rng(5).standard_normal((self.config.vocab_size, 24), np.float32)
        return table[ids].sum(1)


@pytest.fixture(scope="module", autouse=True)
def small_words():
    """Token ids of a small vocabulary: a text is the sum of its letters."""
    with pytest.MonkeyPatch.context() as patch:

        def token_ids(config, texts, vocabulary):
            row = [[1 + ord(c) % 120 for c in text[:10]] for text in texts]
            return np.array([r + [0] * (12 - len(r)) for r in row])

        patch.setattr("stan_infer.library.texts.token_ids", token_ids)
        patch.setattr("stan_infer.library.texts.cut_texts", lambda *given, **more: [])
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six videos of 8 to 13 frames (25 a second) in two folders, a day between their dates."""
    folder = tmp_path_factory.mktemp("search")
    for i in range(MANY):
        path = folder / "videos" / ("odd" if i % 2 else "even") / f"{i:02}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_clip(path, frames=8 + i, size=(32, 48))
        os.utime(path, (1_700_000_000 + i * DAY,) * 2)
    embed(folder, "library")
    return folder


@pytest.fixture
def place(made, tmp_path):
    """A copy of it."""
    shutil.copytree(made / "videos", tmp_path / "videos")
    embed(tmp_path, "library")
    return tmp_path


def embed(folder, name, **options):
    embed_library(Talking(), [folder / "videos"], folder / name, workers=1, **options)


def search(folder, texts="a dog", name="library", session=None, **options):
    return open_library(folder / name).search(texts, model=session or Talking(), **options)


def names(found):
    return [Path(hit.video).name for hit in found.hits]


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x)


def text_vector(text):
    from stan_infer.library import texts

    return unit(Talking()._text(texts.token_ids(None, [text], None))[0])


@pytest.mark.parametrize("cpus", [1, 3])
@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_every_row_is_compared(block, cpus, monkeypatch):
    monkeypatch.setattr(nearest, "BLOCK", block)
    monkeypatch.setattr(blocks, "usable_cpus", lambda: cpus)
    rng = np.random.default_rng(0)
    vectors, query = rng.standard_normal((500, 24), np.float32), rng.standard_normal(24)
    vectors[100:200] = vectors[:100]  # equal scores
    vectors[499] = 9 * unit(query)
    every = np.arange(500)
    scores = nearest.products(vectors, query, every)
    for ids in (every[:0], every[3::100], every[::2], every[1:]):
        np.testing.assert_allclose(nearest.products(vectors, query, ids), scores[ids], atol=1e-5)
    np.testing.assert_allclose(scores, vectors.astype(np.float64) @ query, atol=1e-4)
    for count in (1, 2, 10, 499, 500, 9999):
        order = sorted(range(500), key=lambda i: (-scores[i], i))[:count]
        assert nearest.largest(scores, count).tolist() == order
    assert nearest.largest(scores, 1).tolist() == [499]
    order = sorted(range(500), key=lambda i: (-scores[i], i))
    assert [*nearest.best_first(scores, scores.__getitem__, 3)] == order
    assert nearest.largest(np.zeros(9, np.float32), 3).tolist() == [0, 1, 2]
    assert nearest.largest(scores[:0], 3).tolist() == []


def test_opening_and_searching_read_no_path_but_those_shown(made, monkeypatch):
    """A million rows are opened in half a second because no work is done for each."""
    read = []
    path_of = row_videos.path_of
    monkeypatch.setattr(row_videos, "path_of", lambda p: read.append(p) or path_of(p))
    library = open_library(made / "library")
    assert read == [] and len(library.videos) == MANY == library.videos.files()
    library.search("a dog", model=Talking(), top=2)
    assert len(read) == 2
    assert len([*library.videos]) == MANY and len(read) == 2 + MANY
    assert library.videos[1:3] == [library.videos[1], library.videos[2]]
    with pytest.raises(IndexError):
        library.videos[MANY]


def test_files_that_go_after_opening_are_no_hits(place):
    library = open_library(place / "library")
    (place / "videos" / "even" / "02.mp4").unlink()
    (place / "videos" / "even" / "04.mp4").rename(place / "videos" / "even" / "05.mp4")
    embed(place, "library")
    found = names(library.search("a dog", model=Talking(), top=MANY))
    assert sorted(found) == ["00.mp4", "01.mp4", "03.mp4", "05.mp4", "05.mp4"]
    assert library.videos[1] == () and len(open_library(place / "library").ids) == MANY - 1


def test_a_library_that_took_the_place_is_not_mixed_in(place):
    library = open_library(place / "library")
    migrate_library(place / "library", Talking(seed=1), workers=1)
    with pytest.raises(si.InputError, match="was replaced since it was opened"):
        library.search("a dog", model=Talking(), top=1)


def test_scores_are_weighted_means_of_cosines(made):
    video = str(made / "videos" / "even" / "02.mp4")
    found = search(
        made, {"a dog": 2, "grass": 1.5}, without=["a cat", ("snow", 0.5)], like=video, top=MANY
    )
    library, session = open_library(made / "library"), Talking()
    example = session.embed_video(session.read_clip(video)[None])[0]
    asked = [text_vector(t) for t in ("a dog", "grass", "a cat", "snow")] + [unit(example)]
    weights = np.array([2, 1.5, -1, -0.5, 1])
    cosines = library.vectors.astype(np.float64) @ np.array(asked).T  # [n, Q]
    scores = cosines @ weights / 6
    order = np.argsort(-scores)
    assert [h.row for h in found.hits] == order.tolist()
    assert [h.rank for h in found.hits] == list(range(1, MANY + 1))
    np.testing.assert_allclose([h.score for h in found.hits], scores[order], atol=1e-6)
    np.testing.assert_allclose([h.cosines for h in found.hits], cosines[order], atol=1e-6)
    assert [t.sign for t in found.asked] == weights.tolist() and found.rows == MANY
    assert json.loads(json.dumps(found.to_dict()))["hits"][0]["video"] == found.hits[0].video
    assert str(found).startswith(f"6 of 6 rows of {made / 'library'}; 1. ")
    assert len(search(made, top=2).hits) == 2


def test_a_weight_of_one_text_changes_no_score(made):
    plain, heavy = search(made, "a dog"), search(made, {"a dog": 7})
    assert [h.score for h in plain.hits] == pytest.approx([h.score for h in heavy.hits])


def test_an_example_video_finds_itself(made):
    for row, video in enumerate(open_library(made / "library").videos):
        (hit,) = search(made, (), like=Path(video[0]), top=1).hits
        assert hit.row == row and hit.score == pytest.approx(1, abs=1e-6)


def test_an_example_frame_is_a_clip_that_stands_still(made, tmp_path):
    from PIL import Image

    session, video = Talking(), made / "videos" / "odd" / "03.mp4"
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "still@home.png")
    frames = {
        f"{video}@0.2": si.read_clip(video, 11, short_side=16, crop=16)[5],
        tmp_path / "still@home.png": session.prepare([pixels])[0],
    }
    for given, frame in frames.items():
        (hit, *_) = search(made, (), like_frame=[given], top=MANY).hits
        still = np.repeat(frame[None], session.config.frames, 0)
        vector = unit(session.embed_video(still[None])[0])
        wanted = float(vector @ open_library(made / "library").vectors[hit.row])
        assert hit.score == pytest.approx(wanted, abs=1e-6), given


@pytest.fixture
def utc(monkeypatch):
    """Days begin as in UTC, wherever the machine is."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()  # else the C library may keep the zone that it has read
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"path": "odd/*"}, {1, 3, 5}),
        ({"path": "*/0[45].mp4"}, {4, 5}),
        ({"path": "04.mp4"}, {4}),
        ({"path": "{folder}/videos/even/*"}, {0, 2, 4}),
        ({"path": "dd/*"}, set()),
        ({"path": "ev?n/[!0]*"}, set()),
        ({"path": "[a-e]ven/0[!2-9]*"}, {0}),
        ({"path": "even/0[4"}, set()),
        ({"path": "ODD/*"}, set()),
        ({"since": "2023-11-17T00:00:00+00:00"}, {3, 4, 5}),
        ({"before": "2023-11-16"}, {0, 1}),
        ({"since": "2023-11-16", "before": "2023-11-18", "path": "odd/*"}, {3}),
        ({"longer": 0.42}, {3, 4, 5}),
        ({"shorter": 0.36}, {0, 1}),
        ({"longer": 0.38, "shorter": 0.49, "path": "even/*"}, {2, 4}),
        ({"longer": 60}, set()),
        ({"added_since": "2020-01-01"}, {0, 1, 2, 3, 4, 5}),
        ({"added_before": "2020-01-01"}, set()),
        ({"added_since": "2020-01-01", "added_before": "9999-01-01", "path": "odd/*"}, {1, 3, 5}),
        ({"shorter": 0.36, "since": "2023-11-15T12:00:00+00:00"}, {1}),
    ],
    ids=str,
)
def test_filters(made, options, wanted, utc):
    filled = {k: v.format(folder=made) if k == "path" else v for k, v in options.items()}
    found = search(made, top=MANY, **filled)
    assert {int(name[:2]) for name in names(found)} == wanted
    everything = [name for name in names(search(made, top=MANY)) if int(name[:2]) in wanted]
    assert names(found) == everything, "the order is that of all"
    assert found.rows == len(wanted)


def test_a_pattern_is_that_of_fnmatch(made):
    """SQLite compares those without sets, which have other rules there."""
    rng, folder = random.Random(0), made / "library"
    library = open_library(folder)
    paths = [path for (path,) in library.videos]
    for _ in range(300):
        path = rng.choice(paths)
        start = rng.randrange(len(path))
        part = [c if rng.random() < 0.7 else rng.choice("?*[]!^") for c in path[start:]]
        pattern = "".join(part)
        found = RowFilter(path=pattern).rows(folder, library.ids)
        whole = pattern if pattern.startswith("/") else f"*/{pattern}"
        assert [paths[i] for i in found] == [p for p in paths if fnmatchcase(p, whole)], pattern


def test_a_pattern_of_a_name_that_is_no_utf_8(made, tmp_path):
    odd = os.fsencode(tmp_path) + b"/b\xff\xe4.mp4"
    shutil.copy(made / "videos" / "even" / "00.mp4", odd)
    run = {"workers": 1}
    si.embed_library(Talking(), [Path(os.fsdecode(odd)), made / "videos"], tmp_path / "lib", **run)
    library = open_library(tmp_path / "lib")
    for pattern in (b"b\xff*", b"b\xff[\xe4].mp4", b"b?\xe4.mp4"):
        (row,) = RowFilter(path=os.fsdecode(pattern)).rows(library.path, library.ids)
        assert odd in map(os.fsencode, library.videos[row])
    assert not RowFilter(path=os.fsdecode(b"\xff")).rows(library.path, library.ids).size


@pytest.mark.parametrize("pattern", ["a" * 4097, "a\0b", "a\ud800"])
def test_a_pattern_that_is_none(pattern):
    with pytest.raises(si.InputError, match=r"--path has \d+ characters; a pattern has at most"):
        RowFilter(path=pattern)


def test_weights_of_any_size(made):
    small, large = (search(made, {"a": scale, "b": 3 * scale}).hits for scale in (1e-300, 5e307))
    assert [h.score for h in small] == pytest.approx([h.score for h in large])
    assert [h.row for h in small] == [h.row for h in search(made, {"a": 1, "b": 3}).hits]


def test_a_library_without_lengths_is_refused(place):
    edit_json(place / "library" / PASSPORT, lambda p: p.update(schema="stan-infer/library/1"))
    with pytest.raises(si.InputError, match="stan-infer embed MODEL VIDEOS -o NEW"):
        open_library(place / "library")


def test_a_length_that_no_header_says(tmp_path):
    """A bare stream has none: filters by length leave it out."""
    (tmp_path / "videos").mkdir()
    make_clip(tmp_path / "videos" / "a.mp4", frames=9, size=(32, 48))
    make_clip(tmp_path / "videos" / "b.h264", frames=9, size=(32, 48), container="h264")
    for windows in (None, Windows(seconds=1.0)):
        out = f"library-{windows is None}"
        embed(tmp_path, out, windows=windows)
        assert len(search(tmp_path, name=out, path="*").hits) == (1 if windows else 2)
        assert names(search(tmp_path, name=out, longer=0.3, shorter=0.4)) == ["a.mp4"]
        assert names(search(tmp_path, name=out, longer=0)) == ["a.mp4"]
        assert names(search(tmp_path, name=out, shorter=0.3)) == []


def test_copies_and_files_that_are_gone(place):
    videos = place / "videos"
    shutil.copy(videos / "odd" / "01.mp4", videos / "even" / "again.mp4")
    (videos / "even" / "00.mp4").unlink()
    make_clip(videos / "even" / "00.mp4", frames=30, size=(32, 48))  # row 0 has no file any more
    embed(place, "library")
    library = open_library(place / "library")
    assert library.ids.tolist() == [1, 2, 3, 4, 5, 6]
    found = search(place, (), like=videos / "odd" / "01.mp4", top=MANY)
    assert names(found)[0] == "again.mp4"
    assert [Path(p).name for p in found.hits[0].copies] == ["01.mp4"]
    assert found.hits[0].row == 2 and library.ids[2] == 3
    only = search(place, (), like=videos / "odd" / "01.mp4", top=1, path="odd/*").hits[0]
    assert Path(only.video).name == "01.mp4" and not only.copies


def test_moments_have_times(tmp_path):
    (tmp_path / "videos").mkdir()
    make_clip(tmp_path / "videos" / "long.mp4", frames=60, size=(32, 48))
    embed(tmp_path, "parts", windows=Windows(seconds=1.0, stride=0.5))
    found = search(tmp_path, name="parts", overlapping=True)
    assert len(found.hits) == 4
    library = open_library(tmp_path / "parts")
    for hit in found.hits:
        assert (hit.start_s, hit.end_s) == (library.start[hit.row], library.end[hit.row])
        assert f"{hit.start_s:g} to {hit.end_s:g} s" in str(hit)
    wanted, moments = [], []
    for hit in found.hits:  # by hand: every part is 1 s long
        if all(abs(hit.start_s - start) > 0.5 + 1e-9 for start in moments):
            moments.append(hit.start_s)
            wanted.append(hit.row)
    assert 1 < len(wanted) < 4
    for options in ({}, {"longer": 1.0}, {"path": "long.mp4"}):
        distinct = search(tmp_path, name="parts", **options)
        assert [h.row for h in distinct.hits] == wanted and distinct.rows == 4
        assert [h.rank for h in distinct.hits] == [*range(1, len(wanted) + 1)]


def stored(library):
    """What a library holds; SQLite's files of readers, which are empty or hold locks, go aside."""
    wal = library / f"{ROWS}-wal"
    assert not wal.exists() or not wal.stat().st_size
    kept = (p for p in sorted(library.iterdir()) if p not in (wal, library / f"{ROWS}-shm"))
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in kept}


def test_a_search_changes_nothing_that_is_stored(place):
    before = stored(place / "library")
    video = place / "videos" / "odd" / "03.mp4"
    for options in (
        {},
        {"without": "a cat", "like": video, "like_frame": f"{video}@0.1"},
        {"path": "odd/*", "since": "2020-01-01", "longer": 0.1, "template": ["a {}", "the {}"]},
        {"top": 1, "session": Talking(engine="other")},
    ):
        found = search(place, **options)
        write_sheet(place / "page.html", open_library(place / "library"), found)
        assert stored(place / "library") == before, options


@pytest.mark.parametrize(
    ("texts", "options", "says"),
    [
        ("  ", {}, "blank"),
        ((), {}, "nothing to search for"),
        ((), {"without": "a cat"}, "--not only lowers scores"),
        ({"a dog": float("nan")}, {}, "weight of 'a dog' is nan"),
        ({"a dog": float("inf")}, {}, "weight of 'a dog' is inf"),
        ({"a dog": -1}, {}, "to avoid is given with --not"),
        ({"a dog": 0}, {}, "above 0"),
        ({"a dog": "2"}, {}, "weight of 'a dog' is '2'"),
        ([7], {}, "text is 7; give texts"),
        ("a dog", {"top": 0}, "top is 0; give a whole number from 1 to 10000"),
        ("a dog", {"top": 2.5}, "top is 2.5"),
        ("a dog", {"without": "a dog"}, "cancel each other"),
        (["x"] * 1001, {}, "allowed are 1000"),
        ("a dog", {"path": " "}, "--path is blank"),
        ("a dog", {"since": "yesterday"}, "'yesterday' is no date"),
        ("a dog", {"longer": float("nan")}, "--longer is nan; give a number from 0 on"),
        ("a dog", {"shorter": -1.0}, "--shorter is -1.0; give a number from 0 on"),
        ("a dog", {"like": "absent.mp4"}, "absent.mp4"),
        ("a dog", {"like_frame": "absent.png"}, "absent.png"),
        ("a dog", {"like_frame": "{video}"}, "of a video give VIDEO@SECONDS"),
        ("a dog", {"like_frame": "{video}@99"}, "99 is not in it"),
        ("a dog", {"template": "no braces"}, "{}"),
    ],
)
def test_bad_input_is_one_line(made, texts, options, says):
    video = made / "videos" / "odd" / "01.mp4"
    given = {k: v.format(video=video) if "frame" in k else v for k, v in options.items()}
    with pytest.raises(si.InputError, match=re.escape(says)) as caught:
        search(made, texts, **given)
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="there is no option tpo"):
        search(made, tpo=3)


def test_libraries_that_cannot_be_searched(place):
    for i in range(MANY):
        (place / "videos" / ("odd" if i % 2 else "even") / f"{i:02}.mp4").write_text("no video")
    embed_library(Talking(), [place / "videos"], place / "empty", workers=1)
    with pytest.raises(si.InputError, match="has no rows: embed videos into it first"):
        search(place, name="empty")
    with pytest.raises(si.InputError, match="is not a library"):
        search(place, name="videos")
    edit_json(place / "library" / PASSPORT, schema="stan-infer/library/9")
    with pytest.raises(si.InputError, match="is of schema 'stan-infer/library/9'"):
        search(place)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 50.0, 0.0])
def test_a_changed_vector_is_no_result(place, value):
    library = open_library(place / "library")
    best = search(place).hits[0].row
    with (place / "library" / VECTORS).open("r+b") as file:
        file.seek(int(library.ids[best]) * 24 * 4)
        vector = text_vector("a dog") * value if np.isfinite(value) else np.full(24, value)
        file.write(vector.astype("<f4").tobytes())
    with pytest.raises(si.CheckError, match="has not length 1"):
        search(place, top=MANY)


def test_another_model_is_refused_and_a_near_one_is_told(made):
    with pytest.raises(si.CheckError, match="another stack.*searching needs at least 0.99"):
        search(made, session=Talking(seed=1))
    said = []
    found = search(made, session=Talking(round_to=0.5), say=said.append)
    assert not found.stack.same and "not known whether this model made" in said[0]
    library = open_library(made / "library")
    fine = Searcher(library, Talking())
    assert fine.search("a dog").hits == search(made).hits
    with pytest.raises(si.InputError, match="opened for texts: give reads=True"):
        fine.search([Term("like", "x.mp4")])


def test_results_are_frozen_and_say_what_they_hold():
    for kind in (Hit, SearchResult, Term, RowFilter):
        assert kind.__dataclass_params__.frozen
        for field in dataclasses.fields(kind):
            assert re.search(rf"\b{field.name}\b[^:]*: |\b{field.name}: ", kind.__doc__), field
    assert terms("text", "a") == [Term("text", "a", 1.0)]


# --- the Mug head ---


class Mug(Talking):
    """A Mug head: a vector for every frame and every token."""

    def __init__(self):
        super().__init__(config=tiny_config(head="mug"))
        self.videos = 0

    def _video(self, video):
        self.videos += len(video)
        frames = video.reshape(*video.shape[:2], -1).astype(np.float32) - 120
        return frames @ self._weights[: frames.shape[2]]

    def _text(self, texts):
        table = np.random.default_rng(5).standard_normal((self.config.vocab_size, 24), np.float32)
        return table[np.asarray(texts)]


def mug_score(session, text, video):
    from stan_infer.library import texts

    ids = texts.token_ids(None, [text], None)
    clip = session.embed_video(session.read_clip(video)[None])
    return float(score_features(session.config, session._text(ids), ids, clip)[0, 0])


def test_a_second_stage_gives_the_scores_of_the_mug_head(made, tmp_path, monkeypatch):
    session, videos = Mug(), tmp_path / "videos"
    shutil.copytree(made / "videos", videos)
    embed_library(session, [videos], tmp_path / "mug", workers=1)
    first = search(tmp_path, name="mug", session=session, top=MANY)
    said = []
    given = {"a dog": 2, "a cat": 1}
    found = search(
        tmp_path, given, name="mug", session=session, mug=True, top=MANY, say=said.append,
        like=videos / "odd" / "01.mp4",
    )  # fmt: skip
    scores = {}
    for path in videos.rglob("*.mp4"):
        by_text = [mug_score(session, text, path) for text in given]
        cosine = float(unit(vector(session, path)) @ unit(vector(session, videos / "odd/01.mp4")))
        scores[path.name] = (2 * by_text[0] + by_text[1] + cosine) / 4
    assert names(found) == sorted(scores, key=scores.get, reverse=True)
    np.testing.assert_allclose([h.score for h in found.hits], sorted(scores.values())[::-1], 1e-4)
    assert f"note: the videos of {MANY} rows were read again" in said[-1]
    # Only so many are read, the best of the first stage; one that is gone is left out.
    monkeypatch.setattr("stan_infer.library.search.FIRST", 3)
    searcher = Searcher(open_library(tmp_path / "mug"), session, reads=True, say=said.append)
    session.videos = 0
    found = searcher.search("a dog", top=2, mug=True)
    assert session.videos == 3 and len(found.hits) == 2
    assert {*names(found)} < {*names(first)[:3]}
    Path(first.hits[0].video).unlink()
    found = searcher.search("a dog", top=3, mug=True)
    assert len(found.hits) == 2 and names(first)[0] not in names(found)
    assert [s for s in said if "is left out: The file is not there any more" in s]
    with pytest.raises(si.InputError, match="a Mug head scores texts"):
        search(tmp_path, (), name="mug", session=session, mug=True, like=first.hits[1].video)
    with pytest.raises(si.InputError, match="no Mug head: its scores are exact"):
        search(made, mug=True)


def vector(session, path):
    return session.embed_video(session.read_clip(path)[None])[0].mean(0)


# --- the page ---

ODD = (
    "<img src=x onerror=document.title='owned'>\"'&\x1b[2J\n<script>document.title='owned'</script>"
)


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def hostile(place):
    """A library with a file of a hostile name, one that is gone, one that has changed, one that
    names a file of the user, and what was found in it for a hostile text."""
    videos = place / "videos"
    odd = videos / "odd" / (ODD.replace("/", "\\") + ".mp4")
    (videos / "odd" / "01.mp4").rename(odd)
    embed(place, "library")
    (videos / "even" / "00.mp4").unlink()
    shutil.copy(videos / "even" / "02.mp4", videos / "even" / "04.mp4")
    os.utime(videos / "odd" / "05.mp4", (1, 1))  # only its date: it is shown
    secret = place / "secret.mp4"
    make_clip(secret, frames=8, size=(32, 48))
    db = sqlite3.connect(place / "library" / ROWS)
    db.execute(
        "UPDATE files SET path = ? WHERE CAST(path AS TEXT) LIKE '%03.mp4'", (bytes(secret),)
    )
    db.commit()
    db.close()
    found = search(place, {"a dog": 1, ODD: 1e-9}, top=MANY)
    write_sheet(place / "page.html", open_library(place / "library"), found)
    return place / "page.html"


def test_strangers_names_are_text_on_the_page(hostile):
    page = Tags(hostile.read_text())
    kinds = {tag for tag, _ in page.found}
    assert kinds == {"html", "head", "meta", "title", "style", "body", "h1", "p", "b", "span",
                     "div", "img"}  # fmt: skip
    for tag, attributes in page.found:
        assert not [name for name in attributes if name.startswith("on")], attributes
        assert "href" not in attributes
        if tag == "img":
            assert re.fullmatch(r"data:image/jpeg;base64,[\w+/=]+", attributes["src"])
            assert {"width", "height", "alt"} <= set(attributes)
    assert "onerror=" in page.text and "\x1b" not in page.text
    assert page.text.count("The file is not there any more.") == 1
    assert page.text.count("The file has changed since it was embedded.") == 2
    images = [a for tag, a in page.found if tag == "img"]
    assert len(images) == 3 * 6, "frames of three videos; the user's own file is not shown"


def test_pages_are_bounded(made, tmp_path, monkeypatch):
    import base64
    import io

    from PIL import Image

    with pytest.raises(si.InputError, match="--html shows at most 200 rows"):
        check_sheet(tmp_path / "page.html", MAX_HITS + 1)
    monkeypatch.setattr("stan_infer.library.contact_sheet.MAX_FRAMES", 4)
    write_sheet(tmp_path / "p.html", open_library(made / "library"), search(made))
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', (tmp_path / "p.html").read_text())
    assert len(sources) == 4 * MANY and MAX_FRAMES == 16
    for source in sources:
        data = base64.b64decode(source)
        assert Image.open(io.BytesIO(data)).size == (96, 96) and len(data) < 20_000


def test_the_frames_are_those_of_the_row(tmp_path):
    (tmp_path / "videos").mkdir()
    make_clip(tmp_path / "videos" / "long.mp4", frames=60, size=(32, 48))
    embed(tmp_path, "parts", windows=Windows(seconds=1.0, stride=0.5))
    found = search(tmp_path, name="parts")
    write_sheet(tmp_path / "p.html", open_library(tmp_path / "parts"), found)
    shown = re.findall(r"alt=\"frame (\d+)\"", (tmp_path / "p.html").read_text())
    wanted = []
    for hit in found.hits:
        first = math.ceil(hit.start_s * 25 - 1e-6)
        wanted += (first + si.sample_indices(25, 6)).tolist()
    assert list(map(int, shown)) == wanted


def test_a_page_replaces_only_pages_of_search(made, tmp_path):
    library, found = open_library(made / "library"), search(made, top=1)
    write_sheet(tmp_path / "p.html", library, found)
    write_sheet(tmp_path / "p.html", library, found)
    (tmp_path / "mine.html").write_text("<!doctype html><title>mine</title>")
    with pytest.raises(si.InputError, match="not written by stan-infer search --html"):
        write_sheet(tmp_path / "mine.html", library, found)
    with pytest.raises(si.InputError, match="also read"):
        write_sheet(made / "library" / "p.html", library, found, sources=[made / "library"])


@needs_browser
def test_the_page_in_a_browser(hostile, tmp_path):
    with Page(tmp_path / "profile") as page:
        for width in (390, 1280):
            page.open(hostile.as_uri(), width)
            assert page.js("document.title").startswith("Search: a dog")
            assert page.js("document.documentElement.scrollWidth <= innerWidth")
            cut = (
                "[...document.querySelectorAll('.card')].filter(e => e.scrollWidth > e.clientWidth)"
            )
            assert page.js(f"{cut}.length") == 0
            least = "Math.min(...[...document.images].map(i => i.getBoundingClientRect().width))"
            assert page.js(least) > 60
            loaded = "[...document.images].every(i => i.complete && i.naturalWidth === 96)"
            assert page.js(loaded)
            colours = []
            for dark in (False, True):
                page.dark(dark=dark)
                light = "getComputedStyle(document.body).{}.match(/\\d+/g).map(Number)"
                colours.append([page.js(light.format(c))[0] for c in ("backgroundColor", "color")])
            assert colours[0][0] > 200 > 60 > colours[0][1]
            assert colours[1][0] < 60 < 200 < colours[1][1]
        asked = {a.partition(":")[0] for a in page.addresses()}
        assert asked <= {"file", "data", "about"}
        assert [a for a in page.addresses() if a.startswith("file")] == [hostile.as_uri()] * 2
