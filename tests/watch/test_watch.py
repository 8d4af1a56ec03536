"""Watch: the scores of its windows, the events of a film, losses, what it refuses."""

import itertools
import threading
import time
from fractions import Fraction

import numpy as np
import pytest

import stan_infer as si
from stan_infer.errors import InputError
from stan_infer.video import feed as feed_module
from stan_infer.video.feed import FeedOptions
from stan_infer.watch.events import Event
from stan_infer.watch.plot import check_plot, write_plot
from stan_infer.watch.watch import ScoredWindow, Watch, WatchOptions
from tests.conftest import ROOT, relative_error
from tests.exported import exported
from tests.video.live_server import streaming, transport_stream

av = pytest.importorskip("av")
DEMO = ROOT / "examples" / "motion"
TEXTS = (DEMO / "labels.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def session():
    with si.open_session(DEMO / "motion.safetensors") as session:
        yield session


def make_film(path, left_out=()):
    """Three clips of the demo behind each other, 8 frames a second; left_out: no such numbers."""
    names = ("green_bar_grows", "green_square_moves_right", "blue_square_fades_in")
    with av.open(str(path), "w") as out:
        options = {"threads": "1", "crf": "12"}
        stream = out.add_stream("libx264", rate=8, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        number = itertools.count()
        for name in names:
            with av.open(str(DEMO / "clips" / f"{name}.mp4")) as clip:
                for frame in clip.decode(video=0):
                    frame.pts, frame.time_base = next(number), Fraction(1, 8)
                    if frame.pts not in left_out:
                        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """It grows, moves right, fades in; 2 s each."""
    return make_film(tmp_path_factory.mktemp("film") / "film.mp4")


def watched(session, source, texts, against=(), reading=None, say=lambda line: None, **options):
    with Watch(
        session, str(source), texts, against, WatchOptions(**options), reading, say=say
    ) as watch:
        found = [*watch]
    return watch, [x for x in found if isinstance(x, ScoredWindow)], [
        x for x in found if isinstance(x, Event)
    ]  # fmt: skip


def test_windows_have_the_scores_of_the_whole_network(session, film):
    watch, windows, _ = watched(session, film, TEXTS[:3], TEXTS[3:], seconds=2, stride=0.5)
    assert [w.start_s for w in windows] == pytest.approx(np.arange(9) * 0.5)
    assert [w.end_s - w.start_s for w in windows] == pytest.approx([2] * 9)
    with av.open(str(film)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    for i in (0, 3, 8):  # T = 8 frames 0.25 s apart, of a film with 8 a second
        clip = session.prepare(frames[4 * i : 4 * i + 16 : 2], sample=False)
        wanted = session.score(TEXTS, clip[None])[:, 0]
        assert np.abs(windows[i].scores - wanted).max() < 0.02  # another converter of colours
        tau = session.config.temperature
        soft = np.exp(windows[i].scores.astype(float) / tau)
        assert relative_error(windows[i].values, soft / soft.sum()) < 1e-6
    assert watch.summary()["frames"]["taken"] == 24


def test_events_of_a_film(session, film):
    texts = ["a shape grows", "a shape moves right", "a shape fades in"]
    against = [t for t in TEXTS if t not in texts]
    watch, _, events = watched(session, film, texts, against, seconds=2, stride=0.5)
    ended = [e for e in events if e.end_s is not None]
    assert watch.events == len(ended) == len(events) / 2
    assert {e.text for e in events} <= set(texts)
    for text, middle in zip(texts, (1, 3, 5), strict=True):
        assert any(e.text == text and e.start_s < middle < e.end_s for e in ended), ended
    assert [e.number for e in events if e.end_s is None] == [*range(1, len(ended) + 1)]


def test_a_folder_gives_the_same(session, film):
    model = si.load_model(DEMO / "motion.safetensors")
    wanted, *_ = watched(session, film, TEXTS, seconds=2, stride=1)
    for engine in ("ort", "openvino"):
        pytest.importorskip({"ort": "onnxruntime"}.get(engine, engine))
        with si.open_session(exported(model, split=True), engine=engine) as other:
            watch, *_ = watched(other, film, TEXTS, seconds=2, stride=1)
        assert relative_error(watch.curve.values, wanted.curve.values) < 1e-4


def test_what_is_against_shares_the_probability_and_has_no_events(session, film):
    watch, windows, events = watched(
        session, film, ["a shape blinks"], TEXTS[:4], seconds=2, on=0.0, off=0.0
    )
    assert {e.text for e in events} == {"a shape blinks"} and watch.events == 1
    assert windows[0].values.sum() == pytest.approx(1) and len(windows[0].values) == 5


def test_one_text_by_its_score(session, film):
    options = {"measure": "score", "seconds": 2, "stride": 0.5}
    _, windows, events = watched(session, film, ["a shape grows"], on=0.4, off=0.3, **options)
    assert windows[0].values[0] == windows[0].scores[0]
    assert events and events[-1].peak == max(w.values[0] for w in windows)


def test_a_stride_is_rounded_to_the_grid_and_said(session, film):
    lines = []
    watch, *_ = watched(session, film, TEXTS, say=lines.append, seconds=2, stride=0.6)
    assert watch.stride_s == 0.5 and "a window every 0.5 s, not 0.6 s" in lines[0]


def test_a_loss_ends_events_and_parts_the_curve(session, tmp_path, monkeypatch):
    monkeypatch.setattr(feed_module, "FIRST_WAIT_S", 0.01)
    data = transport_stream(tmp_path / "a.ts", 100)
    lines = []
    with streaming([data], [data]) as address:
        options = WatchOptions(seconds=0.5, stride=0.25, on=0.0, off=0.0)
        reading = FeedOptions(stall_s=60, reconnect=0)
        with Watch(session, address, ["a"], ["b"], options, reading, say=lines.append) as watch:
            with pytest.raises(InputError, match="was lost"):
                found = []
                for item in watch:
                    found.append(item)
            found += watch.finish()
    events = [x for x in found if isinstance(x, Event)]
    assert watch.live and watch.windows and events[-1].end_s is not None
    assert sum(e.end_s is None for e in events) == sum(e.end_s is not None for e in events)
    assert watch.clock(events[-1].end_s) > watch.clock(0.0) and watch.summary()["began"]


def test_the_date_of_a_live_event_does_not_follow_a_clock_that_is_set(
    session, tmp_path, monkeypatch
):
    held = threading.Event()
    data = transport_stream(tmp_path / "a.ts", 10)
    with streaming([data, held]) as address, Watch(session, address, ["a"], ["b"]) as watch:
        while watch._feed.live is None:
            time.sleep(0.01)
        before = watch.clock(5.0)
        monkeypatch.setattr("time.time", lambda: 0.0)
        assert watch.clock(5.0) == before
        held.set()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([],), "no text to watch for"),
        ((["a"],), "one text alone always has probability 1"),
        ((["a", "a"],), "'a' is there twice"),
        ((["a"], ["a"]), "'a' is there twice"),
    ],
)
def test_texts_that_cannot_be(session, film, given, message):
    with pytest.raises(InputError, match=message):
        Watch(session, str(film), *given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "cosine"}, "measure 'cosine' is unknown"),
        ({"measure": "score"}, "give --on and --off"),
        ({"measure": "score", "on": 0.3}, "give --on and --off"),
        ({"on": 1.5}, "probabilities lie in 0 to 1"),
        ({"on": 0.3, "off": 0.5}, "off must not be above on"),
        ({"seconds": 0}, "length of windows"),
        ({"stride": -1.0}, "stride of windows"),
        ({"frames": 65}, "frames is 65"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        WatchOptions(**options)


def test_one_threshold_takes_the_other_along():
    assert WatchOptions(on=0.3).rule.off == 0.3
    assert WatchOptions(off=0.8).rule.on == 0.8
    assert (WatchOptions().rule.on, WatchOptions().rule.off) == (0.6, 0.4)


def test_a_film_shorter_than_a_window(session, film):
    with (
        Watch(session, str(film), TEXTS) as watch,
        pytest.raises(InputError, match="is shorter than one window of 8 s: give --windows"),
    ):
        list(watch)


def test_a_folder_without_the_two_parts(film):
    folder = exported(si.load_model(DEMO / "motion.safetensors"))
    with (
        si.open_session(folder) as session,
        pytest.raises(InputError, match=r"stan-infer export CKPT -o .* --split"),
    ):
        Watch(session, str(film), TEXTS)


@pytest.fixture(scope="module")
def seen(session, film):
    texts = ["a shape grows", "_a shape $moves$ right"]
    return watched(session, film, texts, ["<b>a shape"], seconds=2, stride=0.5)[0]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_a_plot_is_written_and_replaced(seen, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    out = tmp_path / f"plot{suffix}"
    write_plot(out, seen)
    first = out.read_bytes()
    write_plot(out, seen)  # an earlier one of ours
    assert out.read_bytes() == first
    if suffix == ".png":
        from PIL import Image

        with Image.open(out) as picture:
            picture.verify()
            assert picture.info["Software"] == "stan-infer watch" and picture.width > 900
        return
    text = first.decode()
    for word in ("time in the video (s)", "probability among the texts", "a shape grows"):
        assert word in text
    assert "_a shape $moves$ right" in text and "&lt;b&gt;a shape" in text and "<b>a" not in text
    assert "prefers-color-scheme:" in text.replace(": dark", ":")
    if suffix == ".html":
        assert "width=device-width" in text and "<script" not in text and "<h2>Events" in text


def test_a_file_of_another_kind_is_not_replaced(seen, tmp_path):
    pytest.importorskip("matplotlib")
    for suffix in (".png", ".svg", ".html"):
        mine = tmp_path / f"mine{suffix}"
        mine.write_bytes(b"\x89PNG\r\n\x1a\n<svg><html> my own")
        with pytest.raises(InputError, match="was not written by stan-infer watch --plot"):
            check_plot(mine)
    with pytest.raises(InputError, match=r"ends in .png, .svg, .html"):
        check_plot(tmp_path / "plot.pdf")


def test_windows_in_a_gap_have_their_own_times(session, tmp_path):
    """The frame behind it stands for the times in it, so that the windows go on evenly."""
    path = make_film(tmp_path / "gap.mp4", left_out=range(19, 29))
    texts, options = ["a shape grows"], {"seconds": 2, "stride": 0.5, "on": 0.0, "off": 0.0}
    watch, windows, events = watched(session, path, texts, ["a shape blinks"], **options)
    assert watch.summary()["frames"]["repeated"] == 4 and watch.summary()["frames"]["gaps"] == 0
    assert [w.start_s for w in windows] == pytest.approx(np.arange(9) * 0.5)
    assert [e.start_s for e in events] == [0.75, 0.75] and events[-1].end_s == 5.25
    assert not np.isnan(watch.curve.values).any()


def test_behind_a_longer_gap_windows_begin_anew_and_the_curve_is_parted(session, tmp_path):
    path = make_film(tmp_path / "gap.mp4", left_out=range(17, 32))
    texts, options = ["a shape grows"], {"seconds": 1, "stride": 0.5, "frames": 4}
    options |= {"on": 0.0, "off": 0.0}
    watch, windows, events = watched(session, path, texts, ["a shape blinks"], **options)
    frames = watch.summary()["frames"]
    assert (frames["gaps"], frames["repeated"], frames["taken"]) == (1, 0, 17)
    assert [w.start_s for w in windows] == pytest.approx([0, 0.5, 1, 4, 4.5, 5])
    assert [(e.start_s, e.end_s) for e in events if e.end_s] == [(0.25, 1.75), (4.25, 5.75)]
    assert np.isnan(watch.curve.values[:, 0]).tolist() == [False] * 3 + [True] + [False] * 3
