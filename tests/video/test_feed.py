"""Frames of files and live sources as they come: losses, stalls, damage, sizes, what is dropped."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from stan_infer.errors import InputError
from stan_infer.video import feed as feed_module
from stan_infer.video import feed_child
from stan_infer.video.address import Source, parse_source, without_secrets
from stan_infer.video.feed import QUEUE, Feed, FeedFrame, FeedOptions, FrameQueue, Lost
from tests.video.broken_videos import make_clip
from tests.video.live_server import STALL, damaged, streaming, transport_stream

av = pytest.importorskip("av")

ONCE = FeedOptions(stall_s=60, reconnect=1)  # the second loss in a row is the end


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch):
    monkeypatch.setattr(feed_module, "FIRST_WAIT_S", 0.01)


@pytest.fixture(scope="module")
def ts(tmp_path_factory):
    """Two seconds of 25 frames each, a key frame every 0.4 s."""
    return transport_stream(tmp_path_factory.mktemp("ts") / "a.ts")


def read(source, interval=0.04, options=None, lines=None):
    """All items of a feed, its counts, and the error that ended it."""
    found, error = [], None
    lines = [] if lines is None else lines
    with Feed(source, interval, options, say=lines.append) as feed:
        try:
            while items := feed.take():
                found += items
        except InputError as e:
            error = str(e)
    return found, feed.counts, error


def frames_of(items):
    return [i for i in items if isinstance(i, FeedFrame)]


def seen(data, tmp_path, interval=0.04, name="a.ts"):
    path = tmp_path / name
    path.write_bytes(data)
    return read(str(path), interval)


def test_a_file_gives_the_frames_of_its_grid(ts, tmp_path):
    found, counts, error = seen(ts, tmp_path, interval=0.2)
    assert error is None and [f.time for f in found] == pytest.approx(np.arange(10) * 0.2)
    assert counts.decoded == 50 and counts.skipped == 40 and counts.dropped == 0
    with av.open(str(tmp_path / "a.ts")) as container:
        wanted = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)][::5]
    close = [np.abs(f.pixels.astype(int) - w).mean() for f, w in zip(found, wanted, strict=True)]
    assert max(close) < 3  # another converter


def test_a_file_is_read_at_the_speed_of_who_takes(ts, tmp_path):
    path = tmp_path / "a.ts"
    path.write_bytes(ts)
    with Feed(str(path), 0.04) as feed:
        items = []
        while more := feed.take():
            assert len(more) <= QUEUE
            items += more
            time.sleep(0.01)
    assert len(items) == 50 and feed.counts.dropped == 0


def test_frames_that_are_skipped_are_not_converted(tmp_path, monkeypatch):
    path = tmp_path / "fast.ts"
    transport_stream(path, 240, rate=240)
    converted, real = [], feed_child.upright_rgb
    monkeypatch.setattr(feed_child, "upright_rgb", lambda *a: converted.append(1) or real(*a))
    asked = {
        "interval": 0.25,
        "last": None,
        "start_s": 0,
        "stall_s": 9,
        "realtime": False,
    }
    told = []
    reader = feed_child._Reader(parse_source(str(path)), asked, lambda m, d=b"": told.append(m))
    assert reader.run() is None
    assert len(converted) == 4 == sum(m["status"] == "frame" for m in told)
    assert reader.counts["decoded"] == 240 and reader.counts["skipped"] == 236


def test_a_size_that_changes(ts, tmp_path):
    other = transport_stream(tmp_path / "b.ts", size=(96, 80))
    found, counts, error = seen(ts + other, tmp_path)
    assert error is None and counts.resized == 1
    assert {f.pixels.shape for f in found} == {(48, 64, 3), (96, 80, 3)}


def test_stamps_that_are_set_back(ts, tmp_path):
    found, counts, error = seen(ts + ts, tmp_path)
    assert error is None and counts.jumps == 1 and len(found) > 95
    times = [f.time for f in found]
    assert (np.diff(times) > 0).all() and times[-1] == pytest.approx(4, abs=0.2)


def test_damage_costs_the_frames_up_to_the_next_key_frame(ts, tmp_path):
    found, counts, error = seen(damaged(ts, 0.3, 0.4), tmp_path)
    assert error is None and counts.corrupt > 0
    assert 25 <= len(found) < 50 and counts.decoded == len(found)
    assert found[-1].time == pytest.approx(49 * 0.04)
    whole, _, _ = seen(ts, tmp_path)
    right = {round(f.time, 3): f.pixels for f in whole}
    wrong = [np.abs(f.pixels.astype(int) - right[round(f.time, 3)]).max() for f in found]
    assert max(wrong) == 0  # what is left is as it was encoded


@pytest.mark.parametrize("rtsp", [False, True], ids=["http", "rtsp"])
def test_a_stream_that_breaks_and_comes_back(ts, rtsp):
    lines = []
    with streaming([ts], [ts], rtsp=rtsp) as address:
        found, counts, error = read(address, options=ONCE, lines=lines)
    frames = frames_of(found)
    assert len(frames) > 2 * QUEUE or counts.dropped > 0
    assert counts.decoded >= 90 and counts.reconnects == 1 and counts.lost == 2
    assert sum(isinstance(i, Lost) for i in found) >= 1
    assert (np.diff([f.time for f in frames]) > 0).all()
    assert "was not there again after 1 tries" in error and "--reconnect" in error
    assert any("is there again" in line for line in lines), lines
    assert sum("was lost (" in line and "; try 1 of 1 in 0.01 s" in line for line in lines) == 2, (
        lines
    )


def test_a_stream_that_stalls_is_lost_and_counted(ts):
    lines = []
    with streaming([ts, STALL], [ts]) as address:
        options = FeedOptions(stall_s=2, reconnect=1)
        _, counts, _ = read(address, options=options, lines=lines)
    assert counts.stalls >= 1 and any("no data for 2 s" in line for line in lines), lines


def test_the_first_connection_must_be_there():
    with streaming() as address:
        _, counts, error = read(address, options=FeedOptions())
    assert error.startswith(f"cannot open {address}") and counts.lost == 0


def test_an_address_of_a_recording_is_read_as_a_file(tmp_path):
    path = make_clip(tmp_path / "a.mp4", frames=50, muxer={"movflags": "faststart"})
    data = path.read_bytes()
    with streaming([data], length=len(data)) as address:
        found, counts, error = read(address)
    assert error is None and len(found) == 50 and counts.dropped == counts.lost == 0
    with streaming([data[: len(data) * 2 // 3]], length=len(data)) as address:
        found, counts, error = read(address)
    assert 10 < len(found) < 50 and "cannot be read to its end" in error and counts.lost == 0


def test_what_is_no_video_is_told(tmp_path):
    with streaming([b"<html>a page</html>" * 100]) as address:
        _, _, error = read(address)
    assert "nothing came that is read as a video" in error


def test_a_playlist_opens_no_file_and_no_other_address(ts, tmp_path):
    """By any name, and one that a server says is a video."""
    (tmp_path / "a.ts").write_bytes(ts)
    with streaming([ts]) as other:
        for place in (tmp_path / "a.ts", f"file://{tmp_path}/a.ts", other):
            text = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{place}\n#EXT-X-ENDLIST\n"
            concat = f"ffconcat version 1.0\nfile {place}\n"
            for body in (text, concat):
                with streaming([body.encode()]) as address:
                    found, _, error = read(address)
                assert not found and error
        found, counts, _ = read(other, options=FeedOptions(stall_s=60, reconnect=0))
        assert counts.decoded == 50  # nobody had fetched it


def test_live_frames_that_nobody_takes_are_dropped_oldest_first(ts):
    held = threading.Event()
    with streaming([ts, held]) as address, Feed(address, 0.04, ONCE) as feed:
        while feed.counts.decoded < 40:  # the last ones are in the decoder until more comes
            time.sleep(0.01)
        items = feed.take()
        held.set()
    assert len(items) <= QUEUE
    # The newest, one grid time after the other.
    assert np.diff([i.time for i in items]) == pytest.approx(0.04)
    assert feed.counts.dropped >= 40 - QUEUE


def test_a_queue_is_bounded_by_bytes_too():
    queue = FrameQueue()
    large = np.broadcast_to(np.uint8(0), (4096, 4096, 3))
    assert [queue.put(FeedFrame(i, large), drops=True) for i in range(4)] == [0, 0, 1, 1]
    assert [item.time for item in queue.take()] == [2, 3]


def test_a_queue_keeps_what_marks_a_loss():
    queue, small = FrameQueue(), np.zeros((2, 2, 3), np.uint8)
    for reason in ("a", "b"):  # lost again before anybody looked
        queue.put(Lost(reason), drops=True)
    dropped = sum(queue.put(FeedFrame(i, small), drops=True) for i in range(20))
    first, *frames = queue.take()
    assert first == Lost("b") and dropped == 20 - QUEUE
    assert [f.time for f in frames] == list(range(20 - QUEUE, 20))


def test_a_queue_says_its_error_after_what_it_holds():
    queue = FrameQueue()
    queue.put(Lost("x"), drops=False)
    queue.end(InputError("over"))
    queue.end()  # the first end holds
    assert queue.take() == [Lost("x")]
    with pytest.raises(InputError, match="over"):
        queue.take()


def test_a_full_queue_waits_for_room():
    queue, small = FrameQueue(), np.zeros((2, 2, 3), np.uint8)

    def fill():
        for i in range(3 * QUEUE):
            assert queue.put(FeedFrame(i, small), drops=False) == 0
        queue.end()

    thread = threading.Thread(target=fill)
    thread.start()
    found = []
    while items := queue.take():
        assert len(items) <= QUEUE
        found += [i.time for i in items]
    thread.join()
    assert found == list(range(3 * QUEUE))


def test_a_child_that_dies_is_a_loss(ts, monkeypatch):
    """As FFmpeg may, on what a stranger sends."""
    held, lines = threading.Event(), []
    with (
        streaming([ts, held], [ts]) as address,
        Feed(address, 0.04, ONCE, say=lines.append) as feed,
    ):
        while not feed.counts.decoded:
            time.sleep(0.01)
        feed._child._process.kill()
        held.set()
        with pytest.raises(InputError):
            while feed.take():
                pass
    assert any("the decoder crashed (signal 9)" in line for line in lines), lines
    assert feed.counts.reconnects == 1


def test_a_closed_feed_leaves_no_process_and_no_thread(ts):
    held = threading.Event()
    with streaming([ts, held]) as address:
        feed = Feed(address, 0.04)
        while not feed.counts.decoded:
            time.sleep(0.01)
        feed.close()
        held.set()
    assert not feed._thread.is_alive() and not feed._child.runs and feed.take() is not None


def test_in_real_time_a_file_is_live(ts, tmp_path):
    path = tmp_path / "a.ts"
    path.write_bytes(ts[: len(ts) // 2])
    begin = time.monotonic()
    with Feed(str(path), 0.2, FeedOptions(realtime=True)) as feed:
        items = []
        while more := feed.take():
            items += more
    assert feed.live and time.monotonic() - begin >= 0.8  # it lasts about 1 s
    assert len(items) + feed.counts.dropped >= 5 and feed.counts.lost == 0


BAD = [
    ("/dev/video77", "no such camera: /dev/video77"),
    ("/dev/null", "no camera"),
    ("absent.mp4", "no such video file, camera or address"),
    (".", "is a folder"),
    ("file:///a.mp4", "give the path alone"),
    ("ftp://host/a", "ftp is no protocol that is watched"),
    ("htp://host/a", "did you mean 'http'"),
    ("rtsp:///a", "names no host"),
    ("rtsp://[/a", "cannot be read"),
    ("http://host/a b", "names no host"),
    ("https://host/live/index.m3u8?key=1", "is a playlist"),
    ("concat:a|b", "no such video file"),
    ("s3://bucket/a.mp4", "s3 is no protocol"),
]


@pytest.mark.parametrize(("source", "message"), BAD)
def test_what_is_no_source(source, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        parse_source(source)


def test_secrets_of_an_address_are_not_shown():
    source = parse_source("rtsp://admin:pass%20word@cam:554/stream?token=abc#x")
    assert source.kind == "stream" and source.shown == "rtsp://cam:554/stream"
    text = f"cannot open {source.name}: 'pass%20word' and token=abc"
    assert without_secrets(text, source) == "cannot open rtsp://cam:554/stream: '***' and ***"
    with pytest.raises(InputError) as e:
        parse_source("htp://admin:secret@cam/a?token=abc")
    assert "secret" not in str(e.value) and "abc" not in str(e.value)


def test_no_protocol_reaches_a_file():
    from stan_infer.video.address import PROTOCOLS

    allowed = {p for names in PROTOCOLS.values() for p in names.split(",")}
    assert not allowed & {"file", "pipe", "fd", "data", "concat", "subfile", "crypto", "cache"}
    assert not {"hls", "dash", "concat", "image2"} & set(feed_child._LIVE_FORMATS.split(","))


def test_values_that_cannot_be(tmp_path):
    for wrong in ({"stall_s": 0}, {"reconnect": -1}, {"stall_s": float("nan")}):
        with pytest.raises(InputError):
            FeedOptions(**wrong)
    with pytest.raises(InputError, match="realtime is about files"):
        Feed("rtsp://host/x", 1.0, FeedOptions(realtime=True))
    with pytest.raises(InputError, match="reconnect is about what is live"):
        Feed(str(make_clip(tmp_path / "a.mp4")), 1.0, FeedOptions(reconnect=1))


def test_a_protocol_that_this_pyav_has_not(monkeypatch):
    def refuse(name, **options):
        raise av.error.ProtocolNotFoundError(1, "Protocol not found", name)

    monkeypatch.setattr(av, "open", refuse)
    source = parse_source("srt://host:5?passphrase=secret")
    asked = {"interval": 1, "last": None, "start_s": 0, "stall_s": 1, "realtime": 0}
    last = feed_child._read({"source": dataclasses.asdict(source), **asked}, print)
    assert last["status"] == "missing" and "built without srt" in last["message"]
    assert "ffmpeg -i srt://host:5 -c copy" in last["message"] and "secret" not in last["message"]


def test_a_file_without_times(ts, tmp_path):
    raw = tmp_path / "a.h264"
    with av.open(str(raw), "w", format="h264") as out:
        stream = out.add_stream("libx264", rate=25, options={"threads": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(5):
            out.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        out.mux(stream.encode())
    _, _, error = read(str(raw))
    assert "does not say when its frames are shown" in error


def test_the_child_ends_with_its_parent():
    """Also while it waits for a server."""
    with streaming([STALL]) as address:
        child = feed_module.Child(feed_module._COMMAND)
        assert feed_module.receive(child.output)["status"] == "ready"
        asked = {"source": dataclasses.asdict(Source("stream", address, address))}
        asked |= {
            "interval": 1,
            "last": None,
            "start_s": 0,
            "stall_s": 600,
            "realtime": False,
        }
        feed_module.send(child.input, asked)
        child.input.close()
        child._process.wait()
