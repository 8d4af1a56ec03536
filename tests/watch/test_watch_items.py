"""What watch makes of the items of a feed, one by one."""

import datetime
from types import SimpleNamespace

import numpy as np
import pytest

import stan_infer as si
from stan_infer.errors import InputError
from stan_infer.text.templates import read_templates
from stan_infer.video.feed import FeedCounts, FeedFrame, Lost
from stan_infer.watch import watch as module
from stan_infer.watch.events import Event
from stan_infer.watch.watch import ScoredWindow, Watch, WatchOptions
from tests.conftest import ROOT, relative_error

DEMO = ROOT / "examples" / "motion"
ALWAYS = {"on": 0.0, "off": 0.0}


@pytest.fixture(scope="module")
def session():
    with si.open_session(DEMO / "motion.safetensors") as session:
        yield session


def frames(low, high, interval=0.25):
    """Frames of the grid, numbers low to high - 1, which no two are alike."""
    dice = np.random.default_rng(low)
    return [
        FeedFrame(i * interval, dice.integers(0, 256, (64, 64, 3), np.uint8))
        for i in range(low, high)
    ]


@pytest.fixture
def over(session, monkeypatch):
    """Watch lists of items as if a feed had given them; live: whether it is a live source."""

    def run(*taken, live=True, texts=("a", "b"), against=(), error=None, say=print, **options):
        left = [[*items] for items in taken]

        def take():
            if not left and error is not None:
                raise error
            return left.pop(0) if left else []

        counts = FeedCounts(decoded=40, skipped=20, dropped=3, lost=2, stalls=1, reconnects=1)
        feed = SimpleNamespace(
            take=take, live=live, counts=counts, length_s=9.0, close=lambda: None,
            source=SimpleNamespace(shown="here"),
        )  # fmt: skip
        asked = []
        monkeypatch.setattr(module, "Feed", lambda *given, **more: asked.append(given) or feed)
        given = {"seconds": 1, "stride": 0.5, "frames": 4} | options
        templates = given.pop("templates", None)
        watch = Watch(
            session, "x", texts, against, WatchOptions(**given), templates=templates, say=say
        )
        return watch, asked

    return run


def parted(items):
    """Windows, and (text, start, end) of the events that ended."""
    windows = [x for x in items if isinstance(x, ScoredWindow)]
    events = [x for x in items if isinstance(x, Event)]
    return windows, [(e.text, e.start_s, e.end_s) for e in events if e.end_s is not None]


def test_a_loss_ends_what_went_on_and_parts_the_curve(over):
    """Also one within a list, and one that lasts less than a window, behind which windows go on."""
    first, then, last = frames(0, 6), frames(6, 8), frames(20, 24)
    watch, _ = over([*first, Lost("x"), *then], [Lost("y")], last, texts=["a"], against=["b"],
                    **ALWAYS)  # fmt: skip
    items = [*watch]
    windows, events = parted(items)
    assert [w.end_s for w in windows] == [1.0, 1.5, 2.0, 6.0]
    assert events == [("a", 0.25, 1.25), ("a", 1.25, 1.75), ("a", 5.25, 5.75)]
    kinds = [type(x).__name__ if isinstance(x, ScoredWindow) else x.end_s for x in items]
    assert kinds == [
        *("ScoredWindow", None, "ScoredWindow", 1.25),  # told before what came behind the loss
        *("ScoredWindow", None, 1.75, "ScoredWindow", None, 5.75),
    ]
    assert np.isnan(watch.curve.values[:, 0]).tolist() == [False, False, True, False, True, False]
    assert [e.end_s for e in watch.curve.events] == [1.25, 1.75, 5.75]
    assert watch.finish() == []


def test_events_that_do_not_last_are_counted(over):
    for options in ({}, {"measure": "score", "on": -1.0, "off": -1.0}):
        given = ALWAYS | {"hold_s": 0.75} | options
        watch, _ = over(frames(0, 4), [Lost("x")], frames(10, 16), texts=["a"], against=["b"],
                        **given)  # fmt: skip
        _, events = parted([*watch])
        assert events == [("a", 2.75, 3.75)]
        assert watch.summary()["short"] == 1 and watch.rule.hold_s == 0.75


def test_the_summary(over):
    watch, asked = over(frames(0, 8), frames(9, 10), [Lost("x")], frames(40, 44), against=["c"],
                        on=0.9, off=0.1, hold_s=0.5, stride=0.6)  # fmt: skip
    assert asked[0][:2] == ("x", 0.25)
    list(watch)
    summary = watch.summary()
    assert summary.pop("session")["engine"] == "eager"
    assert datetime.datetime.fromisoformat(summary.pop("began")).tzinfo
    assert summary.pop("events") == watch.events and summary.pop("short") >= 0
    assert summary == {
        "source": "here",
        "live": True,
        "seconds": 11.0,
        "windows": 5,
        "window_s": 1,
        "stride_s": 0.5,
        "measure": "probability",
        **{"on": 0.9, "off": 0.1, "hold_s": 0.5},
        "texts": ["a", "b"],
        "against": ["c"],
        "frames": {
            **{"decoded": 40, "skipped": 20, "late": 0, "jumps": 0, "corrupt": 0, "resized": 0},
            **{"dropped": 3, "stalls": 1, "lost": 2, "reconnects": 1},
            **{"taken": 13, "repeated": 1, "gaps": 1},
        },
    }


def test_a_stride_is_at_least_a_frame_and_by_default_a_window(over):
    for stride, wanted in ((0.001, 0.25), (0.3, 0.25), (None, 1.0), (7.0, 7.0)):
        assert over(stride=stride)[0].stride_s == wanted


def test_values_are_those_of_the_measure_and_of_the_templates(over, session):
    clip = frames(0, 4)
    templates = read_templates("a video of {}")
    watch, _ = over(clip, templates=templates)
    (window,), _ = parted([*watch])
    video = session.prepare([f.pixels for f in clip], sample=False)[None]
    wanted = session.score(["a video of a", "a video of b"], video)[:, 0]
    assert relative_error(window.scores, wanted) < 1e-4
    soft = np.exp(window.scores.astype(float) / session.config.temperature)
    assert relative_error(window.values, soft / soft.sum()) < 1e-6
    watch, _ = over(clip, measure="score", on=0.9, off=0.8)
    (window,), _ = parted([*watch])
    assert window.values.tolist() == window.scores.astype(float).tolist()


def test_what_is_live_may_end_before_a_window(over):
    assert [*over(frames(0, 2))[0]] == []
    with pytest.raises(InputError, match="shorter than one window"):
        list(over(frames(0, 2), live=False)[0])
