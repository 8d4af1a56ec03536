"""decord gets no file that could open another, and no wrong frame of it passes for a right one."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from stan_infer.errors import InputError
from stan_infer.video import clip as clip_module
from stan_infer.video.decode_pool import read_clips
from stan_infer.video.decord_reader import read_decord
from stan_infer.video.pyav_reader import read_pyav
from stan_infer.video.rgb import upright_rgb
from stan_infer.video.spec import ClipSpec
from tests.traced import traced

av = pytest.importorskip("av")
decord = pytest.importorskip("decord")
from tests.video import broken_videos as make  # noqa: E402 (after importorskip)

X264 = "scenecut=0:b-adapt=0:keyint=8:"
CLOSED, OPEN, PLAIN = X264 + "bframes=2", X264 + "bframes=3:open-gop=1", X264 + "bframes=0"
X265 = "log-level=none:scenecut=0:b-adapt=0:keyint=8:bframes=3:open-gop="
# Files by (name, options of make_clip); True: decord's frames are right.
RIGHT = {
    "closed.mp4": {"x264": CLOSED}, "closed.mkv": {"x264": CLOSED}, "closed.flv": {"x264": CLOSED},
    "closed.mov": {"x264": CLOSED}, "plain.mp4": {"x264": PLAIN},
    "variable.mp4": {"x264": CLOSED, "times": [i + i * i // 5 for i in range(30)]},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": X265 + "0"}},
    "plain4.avi": {"codec": "mpeg4", "gop": 8}, "plain4.mp4": {"codec": "mpeg4", "gop": 8},
    "jpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, "ffv1.mkv": {"codec": "ffv1"},
    "wmv2.avi": {"codec": "wmv2", "gop": 8}, "msmpeg.avi": {"codec": "msmpeg4", "gop": 8},
    "vp8.webm": {"codec": "libvpx", "gop": 8}, "vp9.webm": {"codec": "libvpx-vp9", "gop": 8},
    "one.mp4": {"frames": 1, "x264": CLOSED}, "j.mov": {"codec": "mjpeg", "pix_fmt": "yuvj422p"},
}  # fmt: skip
WRONG = {
    "open.mp4": {"x264": OPEN}, "open.mkv": {"x264": OPEN}, "open.flv": {"x264": OPEN},
    "refresh.mkv": {"x264": PLAIN + ":intra-refresh=1"},
    "hevc.mkv": {"codec": "libx265", "options": {"x265-params": X265 + "1"}},
    "b4.mp4": {"codec": "mpeg4", "gop": 8, "b_frames": 2},
    "b4.avi": {"codec": "mpeg4", "gop": 8, "b_frames": 2},
    "b2.avi": {"codec": "mpeg2video", "gop": 8}, "h263.avi": {"codec": "h263p", "gop": 8},
    "h264.avi": {"x264": CLOSED}, "plain.avi": {"x264": PLAIN},
    "a.wmv": {"codec": "wmv2", "gop": 8, "frames": 120},
    "a.asf": {"codec": "msmpeg4", "gop": 8, "frames": 120},
    "a.ts": {"x264": CLOSED}, "a.mpg": {"codec": "mpeg2video", "gop": 8, "b_frames": 2},
    "a.nut": {"codec": "mpeg2video", "gop": 8, "b_frames": 2},
}  # fmt: skip


def read(path, numbers, **options):
    return read_decord(Path(path), lambda n: np.array(numbers, np.int64), lambda i: i, **options)


def found(path, numbers, **options):
    """The frames from a fresh reader each: decord goes wrong where it has to seek."""
    return np.stack([read(path, [n], **options).images[n] for n in numbers])


def made(folder, name, options):
    if options.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {options['codec']}")
    return make.make_clip(folder / name, **options)


def pyav(path, numbers):
    images = read_pyav(path, lambda n: np.array(numbers, np.int64), lambda i: i).images
    return np.stack([images[n] for n in numbers])


@pytest.mark.parametrize("name", RIGHT)
def test_right_frames(tmp_path, name):
    path = made(tmp_path, name, RIGHT[name])
    numbers = [n for n in (0, 3, 9, 10, 14, 23, 29) if n < RIGHT[name].get("frames", 30)]
    # Codecs with an inverse transform of their own rounding may differ by some levels.
    difference = np.abs(found(path, numbers).astype(int) - pyav(path, numbers))
    assert difference.max() <= (8 if "4." in name or "wmv" in name or "jpeg" in name else 0)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_frames_are_refused(tmp_path, name):
    path = made(tmp_path, name, WRONG[name])
    with pytest.raises(InputError, match=f"{name} than those asked for: .*decord-as-is"):
        read(path, [0])
    with pytest.raises(InputError, match="returns other frames"):
        clip_module.read_clip(path, 4, short_side=32, crop=32, decoder="decord")
    if name != "a.nut":
        numbers = list(range(0, WRONG[name].get("frames", 30), 3))
        try:
            images = found(path, numbers, as_is=True)
        except InputError:
            return  # and where decord gives nothing at all
        off = np.abs(images.astype(int) - pyav(path, numbers)).mean((1, 2, 3))
        assert off.max() > 5, "its frames are right: it should not be refused"


def test_what_a_container_hides_or_mirrors_is_refused(tmp_path):
    source = make.make_clip(tmp_path / "a.mp4", x264=CLOSED, size=(128, 64))
    cases = {
        "edit list": make.remux(source, tmp_path / "edit.mp4", earlier=512 * 10),
        "mirror pictures": make.orient(source, tmp_path / "mirrored.mp4", (-1, 0, 0, 1)),
        "times of decoding": make.remux(source, tmp_path / "dts.mkv", pts_is_dts=True),
        "hides": make.lie_times(source, tmp_path / "times.mp4"),
    }
    for words, path in cases.items():
        with pytest.raises(InputError, match=words):
            read(path, [0])
    for degrees in (90, 180, 270):  # which decord does
        path = make.turn(source, tmp_path / f"{degrees}.mp4", degrees)
        np.testing.assert_array_equal(found(path, [0, 12]), pyav(path, [0, 12]))


def test_pictures_that_jpeg_turns(tmp_path):
    """EXIF in a picture; PyAV before 19 does not know this kind of side data, but reads it."""
    if av.library_versions["libavcodec"] < (62,):
        pytest.skip("this FFmpeg does not read EXIF")
    path = make.make_exif(tmp_path / "a.avi", 6)
    with av.open(str(path)) as container:
        assert upright_rgb(next(container.decode(video=0)), path).shape == (64, 48, 3)
    assert read_pyav(path, lambda n: np.array([0]), lambda i: i).size == (64, 48)
    with pytest.raises(InputError, match="does not turn or mirror"):
        read(path, [0])


def test_as_is_is_named_in_the_result(tmp_path):
    path = make.make_clip(tmp_path / "a.avi", codec="mpeg4", gop=8, b_frames=2)
    spec = ClipSpec(frames=4, short_side=32, crop=32, decoder="decord-as-is")
    clip = clip_module.read_clip_info(path, spec)
    assert clip.decoder == "decord-as-is" and clip.pixels.shape == (4, 32, 32, 3)
    (_, result), = read_clips([path], spec)  # fmt: skip
    assert result.decoder == "decord-as-is"
    np.testing.assert_array_equal(result.pixels, clip.pixels)


# Files that name other files


def playlist(name):
    return (
        f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\n{name}\n#EXT-X-ENDLIST\n"
    ).encode()


@pytest.fixture
def secret(tmp_path):
    return make.make_clip(tmp_path / "secret.ts", x264=CLOSED)


def before(data, path, container):
    """Text before, or within the first packet of, a transport stream that is a good video."""
    text = data if container == "text first" else b"G\x1f\xff\x10\n" + data
    path.write_bytes(text.ljust(188 * (len(text) // 188 + 1), b"\xff") + TS[0])
    return path


TS = [b""]
HOSTILE = {
    "playlist": lambda s, p: before(playlist(s), p, "text first"),
    "script": lambda s, p: before(f"ffconcat version 1.0\nfile {s}\n".encode(), p, "text first"),
    "playlist within": lambda s, p: before(playlist(s), p, "within"),
    "session within": lambda s, p: before(b"\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 33\n", p, "in"),
    "internet shortcut": lambda s, p: before(b"[InternetShortcut]\nURL=" + s.encode(), p, "within"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("decoder", ["decord", "decord-as-is"])
def test_text_that_names_other_files_never_reaches_decord(
    tmp_path, secret, kind, decoder, monkeypatch
):
    TS[0] = secret.read_bytes()
    path = HOSTILE[kind](str(secret), tmp_path / "film.mp4")

    def never(*args, **options):
        raise AssertionError("decord opened it")

    monkeypatch.setattr(decord, "VideoReader", never)
    with pytest.raises(InputError, match=r"film\.mp4"):
        clip_module.read_clip(path, 4, short_side=32, crop=32, decoder=decoder)


READ = """import sys
from stan_infer.video.clip import read_clip
read_clip(sys.argv[1], 4, short_side=32, crop=32, decoder={decoder!r})"""
OPENED = "import decord, sys\ndecord.VideoReader(sys.argv[1])"


def opened(tmp_path, code, path):
    place = tmp_path / f"trace{len(list(tmp_path.iterdir()))}"
    place.mkdir()
    traced([sys.executable, "-P", "-c", code, path], place)
    return (place / "strace.txt").read_text(errors="replace")


def test_nothing_else_is_opened(tmp_path, secret):
    TS[0] = secret.read_bytes()
    path = HOSTILE["playlist"](str(secret), tmp_path / "film.mp4")
    log = opened(tmp_path, OPENED, path)
    assert 'secret.ts"' in log, "decord opens no other file: the test would prove nothing"
    for decoder in ("pyav", "decord", "decord-as-is"):
        log = opened(tmp_path, READ.format(decoder=decoder), path)
        assert 'film.mp4"' in log and "secret.ts" not in log


def test_tracks_that_lie_in_other_files_are_not_opened(tmp_path):
    source = make.make_clip(tmp_path / "a.mov", x264=CLOSED)
    path = make.refer(source, tmp_path / "refers.mov", tmp_path / "secret.mov")
    shutil.copy(source, tmp_path / "secret.mov")
    with av.open(str(path), container_options={"enable_drefs": "1", "use_absolute_path": "1"}) as c:
        assert len(list(c.demux(video=0))) > 1
    for decoder in ("pyav", "decord", "decord-as-is"):
        log = opened(tmp_path, READ.format(decoder=decoder), path)
        assert 'refers.mov"' in log and "secret.mov" not in log


def test_a_name_that_is_a_pattern_is_not_followed(tmp_path):
    """FFmpeg takes NAME%03d.png for a row of pictures, whatever the file holds."""
    path = make.make_clip(tmp_path / "a.mp4", x264=CLOSED).rename(tmp_path / "a%03d.png")
    make.make_png(tmp_path / "a001.png")
    log = opened(tmp_path, OPENED, path)
    assert 'a001.png"' in log, "decord follows no pattern: the test would prove nothing"
    for decoder in ("pyav", "decord"):
        log = opened(tmp_path, READ.format(decoder=decoder), path)
        assert "a%03d.png" in log and "a001.png" not in log
    with pytest.raises(InputError, match="looks like something else; rename it"):
        read(path, [0])


# Errors


@pytest.mark.parametrize("error", [RuntimeError, IndexError, OSError, decord.DECORDError, KeyError])
def test_whatever_decord_raises_is_an_error_of_one_file(tmp_path, monkeypatch, error):
    path = make.make_clip(tmp_path / "a.mp4", x264=CLOSED)

    def fail(name, **options):
        raise error(f"Error reading {name}...")

    monkeypatch.setattr(decord, "VideoReader", fail)
    with pytest.raises(InputError, match=r"decord cannot decode .*a\.mp4: .*Error reading a\.mp4"):
        read(path, [0])


def test_a_run_goes_on_after_a_file_that_decord_cannot_open(tmp_path):
    raw = make.make_clip(tmp_path / "raw.h264", x264=CLOSED, container="h264")
    good = make.make_clip(tmp_path / "a.mp4", x264=CLOSED)
    zeros = tmp_path / "zeros.mp4"
    zeros.write_bytes(good.read_bytes()[:40] + bytes(4000))
    spec = ClipSpec(frames=4, short_side=32, crop=32, decoder="decord")
    results = [r for _, r in read_clips([raw, zeros, good], spec)]
    assert [isinstance(r, InputError) for r in results] == [True, True, False]
    assert "raw.h264 is not given to decord" in str(results[0])
