"""Recordings that are joined, cut, or told wrongly by their container; where decoding starts.

The reference is the decoder's own order of all pictures, as the ffmpeg command line gives it.
"""

import threading
from dataclasses import replace

import numpy as np
import pytest

from stan_infer.errors import InputError
from tests.grids import once

av = pytest.importorskip("av")
from stan_infer.video import pyav_reader  # noqa: E402 (after importorskip)
from stan_infer.video.pictures import _complaints  # noqa: E402
from stan_infer.video.pyav_reader import read_pyav  # noqa: E402
from tests.video import broken_videos as make  # noqa: E402

CLOSED = "keyint=8:scenecut=0:bframes=2"
OPEN = "open-gop=1:keyint=12:bframes=3:b-pyramid=normal:scenecut=0:ref=4"
REFRESH = "intra-refresh=1:keyint=10:bframes=2:ref=3"
X265 = "log-level=none:keyint=8:min-keyint=8:bframes=3"


def read(path, numbers):
    return read_pyav(path, lambda total: np.array(numbers, np.int64), lambda image: image)


def read_all(path):
    found = read_pyav(path, lambda total: np.arange(total), lambda image: image)
    return [found.images[i] for i in range(found.total_frames)]


def assert_reads(path, expected, step=1):
    """All frames at once, and every step-th alone, are those expected."""
    np.testing.assert_array_equal(np.stack(read_all(path)), np.stack(expected))
    for i in range(0, len(expected), step):
        found = read(path, [i])
        assert found.total_frames == len(expected)
        np.testing.assert_array_equal(found.images[i], expected[i], err_msg=f"frame {i}")


@pytest.fixture
def fed(monkeypatch):
    """The numbers of all packets that are given to the decoder."""
    return make.packets_fed(monkeypatch)


# Joined

JOINED = {
    "closed.ts": {"x264": CLOSED},
    "open.ts": {"x264": OPEN},
    "mpeg2.ts": {"codec": "mpeg2video", "gop": 6, "b_frames": 2},
    "hevc.ts": {"codec": "libx265", "options": {"x265-params": X265}},
    "mpeg1.mpg": {"codec": "mpeg1video", "gop": 6, "b_frames": 2},
    "mpeg2.vob": {"codec": "mpeg2video", "gop": 6, "b_frames": 2},
    "closed.mkv": {"x264": CLOSED},
    "vp8.webm": {"codec": "libvpx", "gop": 8},
}


def join(target, *parts):
    target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target


@once(name=list(JOINED))
def test_parts_put_together_follow_each_other(tmp_path, name):
    options = {"size": (96, 128), **JOINED[name]}
    parts = [
        make.make_clip(  # pictures of one part lie between those of the other
            tmp_path / f"{i}{name}",
            frames=n,
            muxer={"output_ts_offset": str(1 + i * 0.02)},
            **options,
        )
        for i, n in enumerate((25, 20))
    ]
    path = join(tmp_path / name, *parts)
    expected = make.straight(path)
    alone = [picture for part in parts for picture in make.straight(part)]
    assert len(expected) == len(alone) == 45
    # The first pictures of the second part may build on the part before it.
    np.testing.assert_array_equal(np.stack(expected[:25]), np.stack(alone[:25]))
    np.testing.assert_array_equal(np.stack(expected[-10:]), np.stack(alone[-10:]))
    assert_reads(path, expected, step=4)


def test_parts_of_another_size_or_at_another_time(tmp_path):
    first = make.make_clip(tmp_path / "a.ts", size=(96, 128), x264=CLOSED)
    small = make.make_clip(tmp_path / "b.ts", frames=20, x264=CLOSED)
    found = read(join(tmp_path / "sizes.ts", first, small), [29, 30, 49])
    assert found.total_frames == 50
    assert [found.images[i].shape for i in (29, 30, 49)] == [(96, 128, 3), (48, 64, 3), (48, 64, 3)]
    for start in ("0.58", "9"):  # they overlap; the second is later, so that times tell the order
        part = make.make_clip(
            tmp_path / f"{start}.ts",
            frames=20,
            size=(96, 128),
            x264=CLOSED,
            muxer={"output_ts_offset": start},
        )
        path = join(tmp_path / f"at{start}.ts", first, part)
        assert_reads(path, make.straight(first) + make.straight(part), step=7)


def test_a_clock_that_wraps(tmp_path):
    """MPEG-TS counts 2^33 steps of 1/90000 s, then from 0."""
    for before in (0.5, 100):
        path = make.make_clip(
            tmp_path / f"{before}.ts",
            frames=60,
            x264=CLOSED,
            muxer={"output_ts_offset": str(2**33 / 90000 - before)},
        )
        expected = make.straight(path)
        assert len(expected) == 60
        assert_reads(path, expected, step=7)


# Cut, and complaints that concern no picture


@once(suffix=["ts", "mkv"], skip=[3, 17, 20, 26], x264=[OPEN, REFRESH])
def test_cuts_give_the_pictures_of_the_whole_file(tmp_path, suffix, skip, x264):
    """FFmpeg complains of cuts: "mmco: unref short failure"; what is shown is right."""
    source = make.make_clip(tmp_path / "a.ts", frames=60, size=(96, 128), x264=x264)
    path = tmp_path / f"cut.{suffix}"
    if suffix == "ts":
        data = source.read_bytes()
        path.write_bytes(data[len(data) * skip // 60 :])
    else:
        make.remux(source, path, skip=skip)
    whole, expected = make.straight(source), make.straight(path)
    assert 10 < len(expected) < 60
    np.testing.assert_array_equal(np.stack(expected), np.stack(whole[-len(expected) :]))
    assert_reads(path, expected, step=9)
    assert av.logging.get_level() is None  # what was set to hear the complaints


def test_a_complaint_does_not_cover_damage(tmp_path):
    source = make.make_clip(tmp_path / "a.ts", frames=60, size=(96, 128), x264=OPEN)
    cut = make.remux(source, tmp_path / "cut.mkv", skip=17)
    expected = make.straight(cut)
    keys = [i for i, (_, _, key) in enumerate(make.packets(cut)) if key]
    path = make.damage(cut, tmp_path / "damaged.mkv", keys[1] + 1)
    with pytest.raises(InputError, match=r"frame \d+ of 36 is damaged"):
        read_all(path)
    for number in (0, 35):
        np.testing.assert_array_equal(read(path, [number]).images[number], expected[number])


def test_a_slice_of_the_wrong_kind(tmp_path):
    """FFmpeg passes over it ("A non-intra slice in an IDR NAL unit"); what follows is right."""
    source = make.make_clip(tmp_path / "a.mp4", size=(96, 128), x264=CLOSED)
    expected = make.straight(source)
    data, number = bytearray(source.read_bytes()), 13
    payload = make.packets(source)[number][0]
    assert payload[4] & 31 == 1
    data[data.find(payload) + 4] += 4  # type 1 becomes 5
    path = tmp_path / "wrong.mp4"
    path.write_bytes(data)
    for i in (0, 7, 16, 29):
        np.testing.assert_array_equal(read(path, [i]).images[i], expected[i])
    with pytest.raises(InputError, match="frame 1[0-9] of 30 is damaged: A non-intra slice"):
        read_all(path)


def test_damage_before_the_first_picture_has_no_negative_number(tmp_path):
    """Frames of H.263 in AVI are counted as they decode, so that packets are named."""
    source = make.make_clip(tmp_path / "a.avi", size=(144, 176), codec="h263")
    path = make.damage(source, tmp_path / "b.avi", 0)
    with pytest.raises(InputError, match="the picture in packet 0 is damaged"):
        read_all(path)


# Where decoding starts

AVI = {
    "mpeg4": {"gop": 8},
    "mpeg4 with B": {"codec": "mpeg4", "gop": 8, "b_frames": 2},
    "mpeg2video": {"gop": 8, "b_frames": 2},
    "msmpeg4": {"gop": 8},
    "wmv1": {"gop": 8},
    "flv": {"gop": 8},
    "mjpeg": {"pix_fmt": "yuvj420p"},
    "libvpx": {"gop": 8},
    "huffyuv": {"pix_fmt": "yuv422p"},
    "ffv1": {"gop": 8},
}


@once(codec=list(AVI))
def test_avi_is_entered_at_a_key_frame(tmp_path, codec, fed):
    # So large that no packet is as short as a picture that is left out (coded_order).
    options = {"size": (96, 128), "codec": codec, **AVI[codec]}
    path = make.make_clip(tmp_path / "a.avi", frames=40, **options)
    expected = make.straight(path)
    found = read(path, [3, 39])
    assert 0 < len(fed) <= 14 and found.total_frames == len(expected) == 40
    assert_reads(path, expected, step=3)


@pytest.mark.parametrize("codec", ["msvideo1", "wmv2", "h263", "cinepak"])
def test_avi_whose_key_frames_are_not_sure(tmp_path, codec):
    """The index lies for cinepak; msvideo1 names no key frame; WMV2 may leave pictures out."""
    sizes = {"h263": (144, 176)}
    formats = {"msvideo1": "rgb555le", "cinepak": "rgb24"}
    path = make.make_clip(
        tmp_path / "a.avi",
        codec=codec,
        gop=8,
        size=sizes.get(codec, (48, 64)),
        pix_fmt=formats.get(codec, "yuv420p"),
    )
    expected = make.straight(path)
    assert len(expected) == 30
    assert_reads(path, expected, step=3)


def test_mpeg4_pictures_that_are_not_coded_are_counted_by_decoding(tmp_path):
    """A packet that repeats the picture before it ("N-VOP") shows nothing in FFmpeg."""
    source = make.make_clip(tmp_path / "a.avi", codec="mpeg4", gop=8)
    left_out = make.packets(source)[5][0][:5] + b"\x20\x00"
    path = tmp_path / "b.avi"
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        stream = container.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for i, packet in enumerate(p for p in container.demux(stream) if p.size):
            new = av.Packet(left_out) if i == 5 else packet
            new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
            new.stream = copy
            out.mux(new)
    expected = make.straight(path)
    assert len(expected) == 29
    assert read(path, [28]).total_frames == 29
    np.testing.assert_array_equal(read(path, [20]).images[20], expected[20])


def test_a_range_that_fails_is_decoded_from_a_key_frame_before(tmp_path, fed, monkeypatch):
    path = make.make_clip(tmp_path / "a.mp4", frames=200, x264=CLOSED)
    expected = make.straight(path)
    scan = pyav_reader.scan

    def lying(*args):
        index = scan(*args)
        key = index.key.copy()
        key[[106, 108, 109]] = True
        return replace(index, key=key)

    monkeypatch.setattr(pyav_reader, "scan", lying)
    images = read(path, [60, 110, 190]).images
    for i, image in images.items():
        np.testing.assert_array_equal(image, expected[i])
    assert min(n for n in fed if n > 64) >= 96 and 0 < len(fed) < 70


def test_streams_without_key_frames_are_decoded_from_the_start(tmp_path):
    """Marks in them say where pictures are nearly right: they are off by up to 5 of 255."""
    x264 = "intra-refresh=1:keyint=10:bframes=0"
    path = make.make_clip(tmp_path / "a.mp4", size=(96, 128), x264=x264)
    expected = make.straight(path)
    for i in range(10, 30):
        np.testing.assert_array_equal(read(path, [i]).images[i], expected[i])


CODECS = {
    "h264": {"x264": CLOSED},
    "open": {"x264": OPEN},
    "plain": {"x264": "keyint=8:scenecut=0:bframes=0"},
    "refresh": {"x264": REFRESH},
    "hevc": {"codec": "libx265", "options": {"x265-params": X265}},
    "hevcopen": {"codec": "libx265", "options": {"x265-params": f"{X265}:open-gop=1"}},
    "mpeg4": {"codec": "mpeg4", "gop": 8},
    "mpeg4b": {"codec": "mpeg4", "gop": 8, "b_frames": 2},
    "mpeg2": {"codec": "mpeg2video", "gop": 8},
    "mpeg2b": {"codec": "mpeg2video", "gop": 8, "b_frames": 2},
    "mpeg1b": {"codec": "mpeg1video", "gop": 8, "b_frames": 2},
    "msmpeg4": {"codec": "msmpeg4", "gop": 8},
    "msmpeg4v2": {"codec": "msmpeg4v2", "gop": 8},
    "wmv1": {"codec": "wmv1", "gop": 8},
    "wmv2": {"codec": "wmv2", "gop": 8},
    "flv1": {"codec": "flv", "gop": 8},
    "h263": {"codec": "h263", "gop": 8, "size": (144, 176)},
    "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "huffyuv": {"codec": "huffyuv", "pix_fmt": "yuv422p"},
    "ffv1": {"codec": "ffv1", "gop": 8},
    "dv": {"codec": "dvvideo", "size": (576, 720)},
    "raw": {"codec": "rawvideo"},
    "cinepak": {"codec": "cinepak", "pix_fmt": "rgb24", "gop": 8},
    "zmbv": {"codec": "zmbv", "pix_fmt": "bgr0", "gop": 8},
    "utvideo": {"codec": "utvideo"},
    "png": {"codec": "png", "pix_fmt": "rgb24"},
    "vp8": {"codec": "libvpx", "gop": 8},
    "vp9": {"codec": "libvpx-vp9", "gop": 8, "options": {"cpu-used": "8"}},
    "av1": {"codec": "libsvtav1", "gop": 8, "options": {"preset": "12"}},
    "svq1": {"codec": "svq1", "pix_fmt": "yuv410p", "gop": 8},
    "prores": {"codec": "prores", "pix_fmt": "yuv422p10le"},
    "snow": {"codec": "snow", "gop": 8},
    "gif": {"codec": "gif", "pix_fmt": "rgb8"},
}
CONTAINERS = {
    "mp4": "h264 open plain refresh hevc hevcopen mpeg4 mpeg4b mpeg2b mpeg1b mjpeg vp9 av1",
    "mkv": "h264 open plain hevc mpeg4b mpeg2 mpeg2b mpeg1b msmpeg4 mjpeg ffv1 vp8 vp9 av1 snow",
    "mov": "h264 mpeg4b mjpeg svq1 prores dv h263",
    "avi": "h264 open plain refresh mpeg4 mpeg4b mpeg2 mpeg2b mpeg1b msmpeg4 msmpeg4v2 wmv1 wmv2 "
    "flv1 h263 mjpeg huffyuv ffv1 dv raw cinepak zmbv utvideo png vp8 vp9 snow",
    "ts": "h264 open refresh hevc hevcopen mpeg2 mpeg2b mpeg1b mpeg4b",
    "m2ts": "open hevc",
    "mpg": "mpeg1b mpeg2 mpeg2b",
    "vob": "mpeg2b h264",
    "flv": "h264 plain flv1",
    "wmv": "msmpeg4 wmv1 wmv2",
    "webm": "vp8 vp9 av1",
    "nut": "h264 mpeg4b mpeg2b ffv1",
    "mxf": "mpeg2b",
    "3gp": "h263 h264 mpeg4",
    "ivf": "vp8 vp9 av1",
    "h264": "h264 open plain",
    "hevc": "hevc hevcopen",
    "m4v": "mpeg4 mpeg4b",
    "m2v": "mpeg2 mpeg2b",
    "gif": "gif",
    "ogv": "vp8",
    "obu": "av1",
}
PAIRS = [(suffix, codec) for suffix, codecs in CONTAINERS.items() for codec in codecs.split()]


@pytest.mark.skipif(len(make.cores()) < 2, reason="needs two cores")
@pytest.mark.parametrize("name", ["hevc.mp4", "mpeg4.mp4", "mjpeg.mp4", "vp8.ivf"])
def test_clips_are_the_same_on_every_number_of_cores(tmp_path, name):
    """Else a test that cuts a file, or counts its packets, may fail on another machine."""
    cores, made = make.cores(), []
    for count in (1, len(cores)):
        with make.on_cores(cores[:count]):
            path = make.make_clip(tmp_path / name, size=(96, 128), **CODECS[name.split(".")[0]])
        made.append(path.read_bytes())
    assert made[0] == made[1]


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "codec"), PAIRS, ids=lambda name: name)
def test_every_frame_is_that_of_decoding_all(tmp_path, suffix, codec):
    options = CODECS[codec]
    if options.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {options['codec']}")
    for frames in (12, 41) if suffix == "ts" else (3, 9, 41):  # FFmpeg opens no smaller TS
        path = make.make_clip(tmp_path / f"{frames}.{suffix}", frames=frames, **options)
        expected = make.straight(path)
        assert len(expected) == frames
        assert_reads(path, expected)


def test_other_threads_are_not_printed_while_a_decoder_is_listened_to(capfd, caplog):
    def other():
        av.logging.log(av.logging.ERROR, "decoder", "of another thread")

    with _complaints(av.logging.INFO) as log:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert not log and not caplog.records and "another" not in capfd.readouterr().err
