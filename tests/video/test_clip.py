"""Sampling, sizes and pixels against the authors' pipeline; odd, broken and hostile files."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stan_infer.errors import InputError, MissingError
from stan_infer.video import clip as clip_module
from stan_infer.video import pyav_reader
from stan_infer.video.find import list_videos
from stan_infer.video.pyav_reader import read_pyav
from stan_infer.video.resize import resize_and_crop, resized_size
from stan_infer.video.spec import ClipSpec

av = pytest.importorskip("av")
from tests.video import broken_videos as make  # noqa: E402 (after importorskip)

SPARSE, DENSE = "keyint=999:scenecut=0", "keyint=6:scenecut=0:bframes=2"
OPEN = "open-gop=1:keyint=8:bframes=3:b-adapt=0:scenecut=0"


def chosen(path, numbers):
    return read_pyav(Path(path), lambda total: np.array(numbers, np.int64), lambda image: image)


def assert_every_frame(path, expected):
    """Each frame alone, and a few sets of them, equal the reference."""
    for i in range(len(expected)):
        found = chosen(path, [i])
        assert found.total_frames == len(expected)
        np.testing.assert_array_equal(found.images[i], expected[i], err_msg=f"frame {i}")
    for step in (1, 3, 7):
        numbers = list(range(0, len(expected), step))
        images = chosen(path, numbers).images
        assert all(np.array_equal(images[i], expected[i]) for i in numbers)


def fails(path, *words, **options):
    with pytest.raises(InputError) as e:
        clip_module.read_clip(path, 4, short_side=32, crop=32, **options)
    assert Path(path).name in str(e.value)
    for word in words:
        assert word in str(e.value)


# Sampling and sizes


def test_sampling_equals_the_authors(golden):
    z = np.load(golden / "sampling.npz")
    for frames in z["T"].tolist():
        for total, expected in zip(z["total_frames"].tolist(), z[f"inds_T{frames}"], strict=True):
            np.testing.assert_array_equal(clip_module.sample_indices(total, frames), expected)
    for total, expected in zip(z["total_frames"].tolist(), z["two_clips_T8"], strict=True):
        found = [clip_module.sample_indices(total, 8, clip, 2) for clip in range(2)]
        np.testing.assert_array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("size", [(90, 160), (160, 90), (91, 91), (75, 301)])
def test_views_are_clips_by_crops_of_the_resized_frames(tmp_path, size):
    path = make.make_clip(tmp_path / "a.mkv", frames=23, size=size, codec="ffv1", pix_fmt="bgr0")
    clip = clip_module.read_clip_info(
        path, ClipSpec(frames=4, short_side=50, crop=48, views=(2, 3))
    )
    plain = clip_module.read_clip_info(path, ClipSpec(frames=4, short_side=50, crop=48))
    assert clip.pixels.shape == (6, 4, 48, 48, 3) and clip.indices.shape == (6, 4)
    height, width = resized_size(*size, 50)
    top, left = (height - 48) // 2, (width - 48) // 2
    along = [(top, 0), (top, left), (top, 2 * left)]
    if height > width:
        along = [(0, left), (top, left), (2 * top, left)]
    for c in range(2):
        indices = clip_module.sample_indices(23, 4, c, 2)
        images = [make.picture(i, *size) for i in indices]
        whole = [cv2.resize(x, (width, height), interpolation=cv2.INTER_LINEAR) for x in images]
        for v, (y, x) in enumerate(along):
            expected = np.stack([w[y : y + 48, x : x + 48] for w in whole])
            np.testing.assert_array_equal(clip.pixels[3 * c + v], expected)
            np.testing.assert_array_equal(clip.indices[3 * c + v], indices)
    one = clip_module.read_clip_info(path, ClipSpec(frames=4, short_side=50, crop=48, views=(1, 1)))
    np.testing.assert_array_equal(one.pixels, plain.pixels[None])


def test_sizes_equal_the_authors(golden):
    z = np.load(golden / "resize_sizes.npz")
    for short in (224, 256, 336):
        for (h, w), expected in zip(z["hw"].tolist(), z[f"resized_hw_short{short}"], strict=True):
            assert resized_size(h, w, short) == tuple(expected)


@given(st.integers(1, 10**7), st.integers(1, 64))
def test_indices_are_sorted_and_in_range(total, frames):
    indices = clip_module.sample_indices(total, frames)
    assert indices.shape == (frames,) and indices.dtype == np.int64
    assert (np.diff(indices) >= 0).all() and indices[0] >= 0 and indices[-1] < total


def test_few_frames():
    assert clip_module.sample_indices(1, 5).tolist() == [0] * 5
    assert clip_module.sample_indices(9, 1).tolist() == [4]
    assert len(set(clip_module.sample_indices(3, 8).tolist())) <= 3


@pytest.mark.parametrize(("total", "frames"), [(0, 8), (-1, 8), (10, 0), (10, 65)])
def test_sampling_refuses(total, frames):
    with pytest.raises(InputError, match="at least 1|1 to 64|from 0 on"):
        clip_module.sample_indices(total, frames)


# Pixels against the authors' pipeline


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_crops_equal_the_authors(golden, decoder):
    if decoder == "decord":
        pytest.importorskip("decord")
    z = np.load(golden / "video_crops.npz")
    jobs = json.loads(str(z["jobs_json"]))
    assert any("rot90" in key for key in jobs) and len(jobs) > 10
    for key, job in jobs.items():
        frames, short, crop = (int(part[1:]) for part in key.rsplit("_", 3)[1:])
        clip = clip_module.read_clip_info(
            golden / "clips" / f"{Path(job['clip']).stem}.mp4",
            ClipSpec(frames=frames, short_side=short, crop=crop, decoder=decoder),
        )
        np.testing.assert_array_equal(clip.indices, z[f"{key}_inds"], err_msg=key)
        expected = z[f"{key}_crops"].transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(clip.pixels, expected, err_msg=key)
        assert clip.total_frames == job["total_frames"] and clip.decoder == decoder
        assert list(clip.source_size) == list(job["decoded_hw"])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_equals_decord(tmp_path, degrees):
    decord = pytest.importorskip("decord")
    plain = make.make_clip(tmp_path / "plain.mp4", frames=4, size=(90, 160))
    path = make.turn(plain, tmp_path / "turned.mp4", degrees)
    found = chosen(path, [0, 3])
    expected = decord.VideoReader(str(path), num_threads=1).get_batch([0, 3]).asnumpy()
    assert found.size == expected.shape[1:3] == ((90, 160) if degrees % 180 == 0 else (160, 90))
    np.testing.assert_array_equal(np.stack([found.images[0], found.images[3]]), expected)


CLIPS = {
    "sparse.mp4": {"x264": SPARSE},
    "dense.mp4": {"x264": DENSE},
    "pyramid.mkv": {"x264": "keyint=10:bframes=3:b-pyramid=normal:scenecut=0"},
    "open.mkv": {"x264": OPEN},
    "variable.mp4": {"x264": DENSE, "times": [i + i * i // 5 for i in range(30)]},
    "mpeg4.mp4": {"codec": "mpeg4", "gop": 7, "b_frames": 2},
    "mpeg4.avi": {"codec": "mpeg4", "gop": 7, "b_frames": 2},
    "h264.avi": {"x264": DENSE},
    "vp9.webm": {"codec": "libvpx-vp9", "gop": 8, "options": {"cpu-used": "8"}},
    "vp8.webm": {"codec": "libvpx", "gop": 8},
    "hevc.mp4": {
        "codec": "libx265",
        "options": {"x265-params": "log-level=none:keyint=8:bframes=3:open-gop=1"},
    },
    "wmv2.wmv": {"codec": "wmv2"},
}
ONLY_PYAV = {  # decord loses the first group of MPEG-TS and does not count raw or GIF files right
    "open.ts": {"x264": OPEN},
    "mpeg2.ts": {"codec": "mpeg2video", "gop": 6, "b_frames": 2},
    "raw.h264": {"x264": DENSE, "container": "h264"},
    "plain.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


@pytest.mark.parametrize("name", [*CLIPS, *ONLY_PYAV])
def test_every_frame_is_the_nth_decoded_one(tmp_path, name):
    options = {**CLIPS, **ONLY_PYAV}[name]
    if options.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {options.get('codec', 'libx264')}")
    path = make.make_clip(tmp_path / name, **options)
    expected = make.straight(path)
    assert len(expected) == 30
    assert_every_frame(path, expected)
    if name in CLIPS:
        reader = pytest.importorskip("decord").VideoReader(str(path), num_threads=1)
        np.testing.assert_array_equal(reader.get_batch(range(30)).asnumpy(), np.stack(expected))


def test_only_needed_groups_are_decoded(tmp_path, monkeypatch):
    path = make.make_clip(tmp_path / "a.mp4", x264=DENSE)
    fed = make.packets_fed(monkeypatch)
    chosen(path, [1, 20])
    assert len(fed) < 15


def test_cut_starts(tmp_path):
    """A recording that starts within a group: frames count from the first one that decodes."""
    source = make.make_clip(tmp_path / "a.ts", x264=OPEN)
    keys = [i for i, (_, _, key) in enumerate(make.packets(source)) if key]
    for skip in (3, keys[1], keys[1] + 1):
        path = make.remux(source, tmp_path / f"cut{skip}.mkv", skip=skip)
        with av.open(str(path)) as container:
            first = next(i for i, p in enumerate(container.demux(video=0)) if p.is_keyframe)
        assert first == (min(k for k in keys if k >= skip) - skip)
        whole = make.straight(source)
        last = len(whole) - 1
        total = chosen(path, [0]).total_frames
        np.testing.assert_array_equal(chosen(path, [total - 1]).images[total - 1], whole[last])
        np.testing.assert_array_equal(chosen(path, [0]).images[0], whole[len(whole) - total])


def test_edit_list_hides_frames(tmp_path):
    source = make.make_clip(tmp_path / "a.mp4", x264=SPARSE)
    path = make.remux(source, tmp_path / "edit.mp4", earlier=512 * 10)
    expected = make.straight(path)
    assert 0 < len(expected) < 30
    assert_every_frame(path, expected)


def test_vp8_pictures_that_are_never_shown(tmp_path):
    source = make.make_clip(tmp_path / "a.webm", codec="libvpx", gop=99)
    path = make.hide_vp8_picture(source, tmp_path / "hidden.webm", 10)
    expected = make.straight(path)
    assert len(expected) == 29
    assert_every_frame(path, expected)


# Options


def test_shapes_and_options(tmp_path):
    path = make.make_clip(tmp_path / "a.mp4", frames=3)
    for frames in (1, 3, 64):
        pixels = clip_module.read_clip(path, frames, short_side=40, crop=32)
        assert pixels.shape == (frames, 32, 32, 3)
    clip = clip_module.read_clip_info(str(path), ClipSpec(short_side=32, crop=32))
    assert clip.decoder == "pyav" and clip.total_frames == 3 and clip.source_size == (48, 64)
    for wrong, word in [
        ({"decoder": "decrod"}, "did you mean 'decord'"),
        ({"crop": 40}, "crop is 40"),
        ({"crop": 0}, "crop is 0"),
        ({"short_side": 10**6}, "short_side"),
        ({"frames": 65}, "from 1 to 64"),
    ]:
        with pytest.raises(InputError, match=word):
            ClipSpec(**{"short_side": 32, "crop": 32, **wrong})


def test_missing_package_names_the_command(tmp_path, monkeypatch):
    path = make.make_clip(tmp_path / "a.mp4", frames=2)
    for module in ("decord", "av"):
        with monkeypatch.context() as m:
            m.setitem(sys.modules, module, None)
            with pytest.raises(MissingError, match="pip install"):
                clip_module.read_clip(path, 2, short_side=32, crop=32, decoder="decord")


def test_a_very_long_frame_costs_no_more_than_its_crop():
    assert clip_module.resize_crop(np.full((1, 1, 60000, 3), 7, np.uint8), 224, 224).mean() == 7


@pytest.mark.parametrize("crop", [63, 48, 1])
def test_pictures_of_the_right_size_stay_as_they_are(crop):
    image = np.random.default_rng(0).integers(0, 256, (63, 81, 3), np.uint8)
    (found,) = clip_module.resize_crop([image], 63, crop)
    whole = cv2.resize(image, (81, 63), interpolation=cv2.INTER_LINEAR)
    top, left = (63 - crop) // 2, (81 - crop) // 2
    np.testing.assert_array_equal(found, whole[top : top + crop, left : left + crop])
    assert not np.shares_memory(resize_and_crop(image, 63, crop), image)  # else it stays in memory


def test_resize_crop_refuses():
    with pytest.raises(InputError, match="uint8"):
        clip_module.resize_crop(np.zeros((1, 8, 8, 3), np.float32), 8, 8)


# Broken and hostile files


def test_not_videos(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    (tmp_path / "zeros.mp4").write_bytes(bytes(9999))
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    png = make.make_png(tmp_path / "a.png").rename(tmp_path / "png.mp4")
    for decoder in ("pyav", "decord"):
        if decoder == "decord":
            pytest.importorskip("decord")
        fails(tmp_path / "empty.mp4", "empty", decoder=decoder)
        fails(tmp_path / "text.mp4", "not a video", decoder=decoder)
        fails(tmp_path / "zeros.mp4", "not a video", decoder=decoder)
        fails(tmp_path / "folder.mp4", "folder", decoder=decoder)
        fails(tmp_path / "pipe.mp4", "pipe", decoder=decoder)
        fails(png, "picture", decoder=decoder)
        fails(tmp_path / "nowhere.mp4", "No such file", decoder=decoder)
        fails(make.make_audio(tmp_path / "sound.mp4"), "only audio", decoder=decoder)


def test_files_that_name_other_files(tmp_path):
    secret = make.make_clip(tmp_path / "secret.ts")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\n{secret.name}\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(playlist)
    (tmp_path / "list.mp4").write_text(playlist)
    (tmp_path / "script.mp4").write_text(f"ffconcat version 1.0\nfile {secret.name}\n")
    with av.open(str(tmp_path / "script.mp4")) as container:  # else the test would prove nothing
        assert container.format.name == "concat"
    for name in ("list.m3u8", "list.mp4", "script.mp4"):
        fails(tmp_path / name, "not a video")


def test_huge_frames_are_refused_before_decoding(tmp_path, monkeypatch):
    path = make.make_clip(tmp_path / "a.mp4", frames=2)
    monkeypatch.setattr("stan_infer.video.pyav_reader.MAX_PIXELS", 64 * 48 - 1)
    fails(path, "64x48", "too large")


def test_odd_names(tmp_path, monkeypatch):
    path = make.make_clip(tmp_path / "a.mp4", frames=3)
    monkeypatch.chdir(tmp_path)
    expected = clip_module.read_clip(path, 2, short_side=32, crop=32)
    for name in (
        os.fsdecode(b"\xff.mp4"),
        "film.txt",
        "concat:a|b.mp4",
        "http:x.mp4",
        "%03d 100%.mp4",
        "ö\n.mp4",
        "-i.mp4",
    ):
        Path(name).write_bytes(path.read_bytes())
        np.testing.assert_array_equal(
            clip_module.read_clip(name, 2, short_side=32, crop=32), expected, err_msg=name
        )


def test_damaged_middle(tmp_path):
    source = make.make_clip(
        tmp_path / "a.mp4", size=(96, 128), x264="keyint=10:scenecut=0:bframes=0"
    )
    expected = make.straight(source)
    path = make.damage(source, tmp_path / "damaged.mp4", 15)
    for number in (0, 14, 20, 29):  # before it, or in groups that do not build on it
        np.testing.assert_array_equal(chosen(path, [number]).images[number], expected[number])
    for number in (15, 16, 19):
        with pytest.raises(InputError, match=r"damaged\.mp4: frame 15 of 30 is damaged"):
            chosen(path, [number])


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_cut_off_files_whose_index_lists_more(tmp_path, name):
    codec = "libx264" if name == "a.mp4" else "mpeg4"
    source = make.make_clip(
        tmp_path / name, codec=codec, size=(96, 128), muxer={"movflags": "faststart"}
    )
    path = make.cut_off(source, tmp_path / f"cut_{name}", 0.8)
    fails(path, "cut off", "of the 30 frames")


@pytest.mark.parametrize(
    ("name", "muxer"), [("a.flv", {}), ("a.mp4", {"movflags": "dash+frag_keyframe+global_sidx"})]
)
def test_cut_off_files_that_state_a_longer_duration(tmp_path, name, muxer):
    source = make.make_clip(tmp_path / name, frames=100, x264=DENSE, muxer=muxer)
    assert chosen(source, [0]).total_frames == 100
    for fraction in (0.3, 0.5, 0.55, 0.6, 0.65):
        path = make.cut_off(source, tmp_path / f"cut_{name}", fraction)
        fails(path, "is cut off: it ends within a packet after", "of 4.")


def test_a_first_picture_that_is_behind_every_frame(tmp_path, monkeypatch):
    """Seen in a file with random bytes: its only picture was later than all that are shown."""
    source = make.make_clip(tmp_path / "a.mp4", frames=6, x264=DENSE)
    scan = pyav_reader.scan

    def odd(*given):
        index = scan(*given)
        time = index.time.copy()
        time[1:] = time[0] - np.arange(len(time) - 1, 0, -1)
        return replace(index, time=time, order=np.arange(1, len(time)), anew=False)

    monkeypatch.setattr(pyav_reader, "scan", odd)
    fails(source, f"{source}: no frame of it can be decoded; fetch it again")


def test_cut_off_files_without_index(tmp_path):
    for name in ("a.mkv", "a.ts"):
        source = make.make_clip(tmp_path / name, x264=DENSE)
        path = make.cut_off(source, tmp_path / f"cut_{name}", 0.7)
        expected = make.straight(source)
        found = chosen(path, [3])
        assert 3 < found.total_frames < 30
        np.testing.assert_array_equal(found.images[3], expected[3])
    no_index = make.make_clip(tmp_path / "plain.mp4")  # the index is at the end
    fails(make.cut_off(no_index, tmp_path / "cut_plain.mp4"), "not a video, or is cut off")


def test_containers_that_lie(tmp_path):
    source = make.make_clip(tmp_path / "a.mp4", x264="keyint=6:scenecut=0:bframes=0")
    expected = make.straight(source)
    keys = [i for i, (_, _, key) in enumerate(make.packets(source)) if key]
    assert keys[1] == 6
    assert_every_frame(make.lie_duration(source, tmp_path / "long.mp4"), expected)
    assert_every_frame(make.lie_times(source, tmp_path / "times.mp4"), expected)
    # Of H.264 and VP9 FFmpeg looks into the packets for itself.
    mpeg4 = make.make_clip(tmp_path / "mpeg4.mp4", codec="mpeg4", gop=6)
    lied = make.lie_keys(mpeg4, tmp_path / "keys.mp4", 9)
    assert [i for i, (_, _, key) in enumerate(make.packets(lied)) if key][1] == 9
    assert_every_frame(lied, make.straight(mpeg4))
    for count in (1000, 2**20):
        fails(make.lie_count(source, tmp_path / f"count{count}.mp4", count))


# Folders


def test_list_videos(tmp_path):
    names = ["b/z.MKV", "a.mp4", "b/a.webm", "c.txt", ".hidden.mp4", "b/.x/y.mp4"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "out.mp4").touch()
    inside = tmp_path / "in"
    (inside / "linked.mp4").symlink_to(tmp_path / "out.mp4")
    (inside / "within.mp4").symlink_to(inside / "a.mp4")
    (inside / "loop").symlink_to(inside)
    listed = list_videos([inside / "c.txt", inside])
    assert [p.relative_to(inside).as_posix() for p in listed] == [
        "c.txt",
        "a.mp4",
        "b/a.webm",
        "b/z.MKV",
        "linked.mp4",
        "within.mp4",
    ]
    (tmp_path / "none").mkdir()
    for path, word in [(tmp_path / "none", "no video"), (tmp_path / "nowhere", "no such")]:
        with pytest.raises(InputError, match=word):
            list_videos([path])


def test_a_title_that_is_not_utf8(tmp_path):
    """PyAV before 19 refuses it unless told otherwise; 19 has no such option."""
    path = make.make_clip(tmp_path / "a.mp4", frames=1, title="a cafe here")
    data = path.read_bytes()
    assert b"a cafe here" in data
    path.write_bytes(data.replace(b"a cafe here", "a caf\xe9 here".encode("latin-1")))
    assert clip_module.read_clip(path, 1, short_side=64, crop=64).shape == (1, 64, 64, 3)
