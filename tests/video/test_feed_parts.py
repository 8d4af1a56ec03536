"""The parts of a feed: how it goes on behind a loss, what damage costs, what it says."""

import dataclasses
import errno
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from stan_infer.errors import InputError
from stan_infer.video import feed as feed_module
from stan_infer.video import feed_child
from stan_infer.video.address import parse_source
from stan_infer.video.feed import Feed, FeedCounts, FeedOptions, Lost
from stan_infer.video.timeline import Timeline
from tests.video.live_server import transport_stream

av = pytest.importorskip("av")
ASKED = {"interval": 0.04, "last": None, "start_s": 0.0, "stall_s": 9.0, "realtime": False}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """1.2 seconds of 25 frames each."""
    path = tmp_path_factory.mktemp("film") / "a.ts"
    transport_stream(path, 30)
    return path


def reader(source, tell=lambda message, data=b"": None, **asked):
    return feed_child._Reader(parse_source(str(source)), ASKED | asked, tell)


def times_of(source, **asked):
    told = []
    made = reader(source, lambda message, data=b"": told.append(message), **asked)
    made.run()
    return [m["time"] for m in told if m["status"] == "frame"], made.counts, told


def test_a_connection_goes_on_with_the_clock_and_the_grid(film):
    """As behind a loss: the clock of the feed, not that of the connection."""
    real = {"realtime": True, "interval": 0.5}
    times, _, told = times_of(film, last=100.0, start_s=103.2, **real)
    assert times[0] >= 103 and times[0] % 0.5 == 0 and np.diff(times) == pytest.approx(0.5)
    assert told[0] == {"status": "opened", "live": True, "hdr": None, "length_s": None}
    times, *_ = times_of(film, last=200.0, start_s=195.0, **real)  # what was shown came in a burst
    assert times == [200.5, 201.0] or times == [200.5, 201.0, 201.5]
    times, counts, _ = times_of(film, last=100.0, start_s=100.0, realtime=True, interval=10.0)
    assert times == [] and counts["skipped"] == 30  # its time of the grid has a frame


def test_a_file_says_how_long_it_lasts(film):
    _, counts, told = times_of(film)
    assert told[0]["length_s"] == pytest.approx(1.2, abs=0.1) and not told[0]["live"]
    assert counts["resized"] == 0
    with Feed(str(film), 0.5) as feed:
        while feed.take():
            pass
        assert feed.length_s == told[0]["length_s"]


def test_frames_that_are_left_out_keep_the_source_alive(film, monkeypatch):
    monkeypatch.setattr(feed_child, "ALIVE_S", -1.0)
    _, _, told = times_of(film, interval=1000.0)
    alive = [m for m in told if m["status"] == "alive"]
    assert len(alive) > 10 and alive[-1]["counts"]["decoded"] > 10


def test_a_large_picture_is_refused(film, monkeypatch):
    monkeypatch.setattr(feed_child, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(InputError, match="a frame of 64x48 is too large; at most 3071 pixels"):
        times_of(film)


def test_late_frames_are_counted_as_late(film, monkeypatch):
    made, timeline = reader(film), Timeline(False)
    monkeypatch.setattr(made, "_converted", lambda frame: np.zeros((1, 1, 3), np.uint8))
    for stamp in (1.0, 2.0, 1.9, 2.0, 2.01, 2.1):
        made._frame(None, stamp, timeline)
    assert (made.counts["late"], made.counts["skipped"], made.counts["decoded"]) == (2, 1, 6)


WHOLE, KEY = {"is_corrupt": False, "key_frame": False}, {"is_corrupt": False, "key_frame": True}
BAD = {"is_corrupt": True, "key_frame": False}
DAMAGE = [
    # (packet is corrupt, its frames or None for data that is none, which of them are whole)
    ("none", [(False, [KEY], 1), (False, [WHOLE, WHOLE], 2)], 0),
    (
        "a packet",
        [(True, [WHOLE], 0), (False, [WHOLE], 0), (False, [KEY], 1), (False, [WHOLE], 1)],
        2,
    ),
    ("a key frame", [(True, [KEY], 0), (False, [WHOLE], 0), (False, [KEY], 1)], 2),
    ("a frame", [(False, [WHOLE, BAD, WHOLE], 1), (False, [KEY, WHOLE], 2)], 2),
    ("no data", [(False, None, 0), (False, [WHOLE], 0), (False, [KEY], 1)], 2),
]


@pytest.mark.parametrize(("name", "packets", "corrupt"), DAMAGE, ids=[d[0] for d in DAMAGE])
def test_what_damage_costs(film, name, packets, corrupt):
    made = reader(film)
    for is_corrupt, frames, whole in packets:

        def decode(frames=frames):
            if frames is None:
                raise av.error.InvalidDataError(1, "Invalid data")
            return [SimpleNamespace(**f) for f in frames]

        packet = SimpleNamespace(is_corrupt=is_corrupt, decode=decode)
        assert len(made._decoded(av, packet)) == whole
    assert made.counts["corrupt"] == corrupt


def test_a_stream_without_key_frames_is_right_again_after_a_while(film, monkeypatch):
    made, now = reader(film), [50.0]
    monkeypatch.setattr(feed_child.time, "monotonic", lambda: now[0])
    for seconds, is_corrupt, whole in ((0, True, 0), (9, False, 0), (2, False, 1), (0, False, 1)):
        now[0] += seconds
        packet = SimpleNamespace(is_corrupt=is_corrupt, decode=lambda: [SimpleNamespace(**WHOLE)])
        assert len(made._decoded(av, packet)) == whole


def breaking(error):
    def demux(stream):
        raise error

    return SimpleNamespace(
        demux=demux, duration=None, format=SimpleNamespace(flags=0),
        streams=None,
    )  # fmt: skip


STREAM = SimpleNamespace(codec_context=SimpleNamespace(color_trc=2))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (av.error.ExitError(1, "Immediate exit"), "no data for 9 s"),
        (av.error.FFmpegError(errno.EIO, "Input/output error"), "it broke off"),
        (av.error.FFmpegError(errno.EPIPE, "no pass at token=abc"), "no *** at ***"),
    ],
)
def test_why_a_source_was_lost(error, said):
    made = reader("rtsp://me:pass@host/x?token=abc")
    assert made._frames(av, breaking(error), STREAM, live=True) == said
    with pytest.raises(InputError, match="cannot be read to its end"):
        made._frames(av, breaking(error), STREAM, live=False)


def test_stamps_that_a_format_makes_up_are_not_taken(monkeypatch):
    made, stamps = reader("udp://host:5000"), []
    monkeypatch.setattr(made, "_frame", lambda frame, stamp, timeline: stamps.append(stamp))
    frame = SimpleNamespace(time=5.0, **KEY)
    packet = SimpleNamespace(is_corrupt=False, decode=lambda: [frame])
    for flags in (feed_child._NO_TIMES, 0):
        container = breaking(None)
        container.demux, container.format.flags = lambda stream: [packet], flags
        assert made._frames(av, container, STREAM, live=True) == "the stream ended"
    assert stamps == [None, 5.0]


def test_no_secret_is_in_an_error(monkeypatch):
    def run(self):
        raise InputError("no pass at token=abc")

    monkeypatch.setattr(feed_child._Reader, "run", run)
    source = parse_source("rtsp://me:pass@host/x?token=abc")
    last = feed_child._read({"source": dataclasses.asdict(source), **ASKED}, print)
    assert last == {"status": "input", "message": "no *** at ***"}


def test_rtsp_comes_over_tcp():
    source = parse_source("rtsp://host/x")
    asked = feed_child._options(av, source, 3.0)
    assert asked["timeout"] == 3.0 and asked["container_options"]["rtsp_flags"] == "prefer_tcp"


RUN = Feed._run


@pytest.fixture
def feed(monkeypatch):
    """A feed that does not run; lines: what it says."""
    monkeypatch.setattr(Feed, "_run", lambda self: None)
    lines = []
    with Feed("rtsp://host/x", 0.1, FeedOptions(stall_s=3), say=lines.append) as feed:
        feed.lines = lines
        yield feed


def test_it_waits_longer_and_longer(feed):
    waited = []
    feed._closed = SimpleNamespace(wait=waited.append, set=lambda: None)
    for tries in range(1, 9):
        feed._wait("x", tries)
    assert waited == [1, 2, 4, 8, 16, 30, 30, 30]
    assert feed.lines[2] == "rtsp://host/x was lost (x); try 3 in 4 s"


def test_tries_in_a_row_begin_anew_with_a_frame(feed, monkeypatch):
    """A loss is one, however often it is tried to come back from it."""
    left, tries = [(5, "a"), (0, "b"), (0, "c"), (3, "d"), (0, "e"), (2, None)], []
    feed._was_there = True

    def connection():
        decoded, reason = left.pop(0)
        feed.counts.decoded += decoded
        return reason

    monkeypatch.setattr(feed, "_connection", connection)
    monkeypatch.setattr(feed, "_wait", lambda reason, number: tries.append(number))
    RUN(feed)
    assert tries == [1, 2, 3, 1, 2] and feed.counts.lost == 2
    assert feed._queue.take() == [Lost("e")] and feed._queue.take() == []


def test_hdr_is_said_once(feed):
    message = {"live": True, "length_s": None, "hdr": "PQ"}
    for _ in range(2):  # connections
        feed._opened(message)
    assert feed.lines == ["note: rtsp://host/x is HDR (PQ); its values are taken as stored"]


class Child:
    """Says what it is told to; None: it hangs, until it is ended."""

    def __init__(self, feed, monkeypatch, messages):
        self.asked, self.input, self.output = [], None, None
        left = [{"status": "ready"}, *messages]

        def following(child, seconds):
            message = left.pop(0)
            feed._expired = message is None
            self.seconds = seconds
            return message

        monkeypatch.setattr(feed, "_next", following)
        monkeypatch.setattr(feed_module, "send", lambda to, asked: self.asked.append(asked))


def counts(**own):
    return dict.fromkeys(("decoded", "skipped", "late", "jumps", "corrupt", "resized"), 0) | own


OPENED = {"status": "opened", "live": True, "hdr": None, "length_s": None}


def test_a_driver_that_hangs_is_a_stall(feed, monkeypatch):
    child = Child(feed, monkeypatch, [OPENED, None])
    with pytest.raises(InputError, match="rtsp://host/x: nothing came for 3 s"):
        feed._read(child, FeedCounts())
    assert feed.counts.stalls == 1 and child.seconds == 8  # FFmpeg's own limit comes before


def test_the_end_says_whether_it_was_a_stall(feed, monkeypatch):
    for reason, stalls in (("no data for 3 s", 1), ("the stream ended", 1), (None, 1)):
        end = {"status": "end", "message": reason, "counts": counts(decoded=2)}
        child = Child(feed, monkeypatch, [OPENED, end])
        assert feed._read(child, FeedCounts(decoded=5)) == reason
        assert (feed.counts.stalls, feed.counts.decoded) == (stalls, 7)


def test_what_another_connection_is_told(feed, monkeypatch):
    monkeypatch.setattr(feed_module, "receive_bytes", lambda source, count: bytes(count))
    child_class = SimpleNamespace(deadline=lambda seconds: threading.Lock())
    for last, time in ((None, 7.5), (7.5, 9.0)):
        frame = {"status": "frame", "time": time, "size": (2, 4), "counts": counts(decoded=1)}
        end = {"status": "end", "message": None, "counts": counts(decoded=1)}
        child = Child(feed, monkeypatch, [OPENED, frame, end])
        child.deadline = child_class.deadline
        feed._zero -= 5
        feed._read(child, dataclasses.replace(feed.counts))
        (asked,) = child.asked
        assert asked["last"] == last and asked["interval"] == 0.1 and asked["stall_s"] == 3
        assert asked["start_s"] >= 5
    assert feed.counts.decoded == 2
    items = feed._queue.take()
    assert [i.time for i in items] == [7.5, 9.0] and items[0].pixels.shape == (2, 4, 3)


def test_all_that_are_dropped_are_counted(feed, monkeypatch):
    monkeypatch.setattr(feed_module, "receive_bytes", lambda source, count: bytes(count))
    frames = [
        {"status": "frame", "time": float(i), "size": (1, 1), "counts": counts(decoded=i)}
        for i in range(12)
    ]
    end = {"status": "end", "message": None, "counts": counts(decoded=12)}
    child = Child(feed, monkeypatch, [OPENED, *frames, end])
    child.deadline = lambda seconds: threading.Lock()
    feed._read(child, FeedCounts())
    assert feed.counts.dropped == 4 and [i.time for i in feed._queue.take()] == list(range(4, 12))


def test_of_a_file_nothing_is_tried_again(film, monkeypatch):
    """Where the process that decodes it dies."""
    with Feed(str(film), 0.04) as feed:
        while not feed.counts.decoded:
            threading.Event().wait(0.01)
        feed._child._process.kill()
        with pytest.raises(InputError, match="the decoder crashed"):
            while feed.take():
                pass
        assert feed.counts.lost == 0
