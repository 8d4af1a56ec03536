"""Parts of long videos: which frames they have, and that they are read as files cut there."""

from contextlib import closing

import numpy as np
import pytest

from stan_infer.errors import InputError
from stan_infer.video.clip import read_clip_info
from stan_infer.video.decode_pool import read_all_windows
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import (
    Window,
    Windows,
    cut,
    parse_windows,
    plan_windows,
    read_windows,
)

av = pytest.importorskip("av")
from tests.video import broken_videos as make  # noqa: E402 (after importorskip)

SPEC = ClipSpec(frames=4, short_side=32, crop=32)
TEN = np.arange(200) / 10  # 20 s


def spans(*given, **options):
    return [(w.start_s, round(w.end_s, 6)) for w in cut(*given, Windows(**options))]


def test_windows_cover_the_stretch_and_all_have_the_full_length():
    assert spans(TEN) == [(0.0, 20.0)]
    assert spans(TEN, seconds=10) == [(0, 10), (10, 20)]
    assert spans(TEN, seconds=10, stride=5) == [(0, 10), (5, 15), (10, 20)]
    assert spans(TEN, seconds=8) == [(0, 8), (8, 16), (12, 20)]  # the last one is moved back
    assert spans(TEN, seconds=30) == spans(TEN, seconds=20) == [(0, 20)]
    assert spans(TEN, seconds=2, stride=8) == [(0, 2), (8, 10), (16, 18)]  # with gaps: none added
    assert spans(TEN, seconds=5, start=3, end=14) == [(3, 8), (8, 13), (9, 14)]
    assert spans(TEN, start=3) == [(3, 20)] and spans(TEN, end=99) == [(0, 20)]
    assert spans(np.zeros(1)) == spans(np.zeros(1), seconds=9) == [(0, 0)]


def test_frames_belong_to_the_window_in_which_they_begin():
    assert [w[2:] for w in cut(TEN, Windows(seconds=7))] == [(0, 70), (70, 70), (130, 70)]
    still = np.array([0.0, 1.0, 9.0, 10.0])  # a picture that is shown for 8 s
    found = cut(still, Windows(seconds=2, end=10))
    assert [w[2:] for w in found] == [(0, 2), (1, 1), (1, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize("rate", [24000 / 1001, 29.97, 25, 12.5, 60])
@pytest.mark.parametrize("seconds, stride", [(10, 10), (10, 5), (3, 1.5), (0.5, 0.1), (1, 7)])
def test_no_frame_is_lost_between_windows(rate, seconds, stride):
    times = np.arange(3001) / rate
    found = cut(times, Windows(seconds=seconds, stride=stride))
    seen = np.zeros(len(times), bool)
    for w in found:
        own = times[w.first : w.first + w.frames]
        assert own[0] >= w.start_s - 1e-6 and own[-1] < w.end_s
        assert w.end_s - w.start_s == pytest.approx(seconds)
        seen[w.first : w.first + w.frames] = True
    assert seen.all() or stride > seconds


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seconds": 0}, "length of windows is 0 s"),
        ({"seconds": float("nan")}, "length of windows"),
        ({"seconds": 5, "stride": -1}, "stride of windows is -1"),
        ({"seconds": 5, "stride": 1e-6}, "stride of windows is 1e-06 s; give 0.01 to 1e.09 s"),
        ({"seconds": 1e300, "grid": True}, r"length of windows is 1e\+300"),
        ({"seconds": 5, "stride": 1e300, "grid": True}, r"stride of windows is 1e\+300"),
        ({"start": -1}, "--start -1"),
        ({"start": 5, "end": 5}, "--end 5 is not after --start 5"),
        ({"start": 20}, "it lasts 20.000 s"),
        ({"seconds": 0.02, "stride": 0.01, "end": 1e9}, None),
    ],
)
def test_bad_windows(options, says):
    if says is None:
        with pytest.raises(InputError, match="allowed are 100000"):
            cut(np.arange(30_000) / 10, Windows(**options))
        return
    with pytest.raises(InputError, match=says):
        cut(TEN, Windows(**options))


def test_words():
    for text, options in (
        ("10", {"seconds": 10.0}),
        ("2.5:.5", {"seconds": 2.5, "stride": 0.5}),
        ("8:2:grid", {"seconds": 8.0, "stride": 2.0, "grid": True}),
        ("8:grid", {"seconds": 8.0, "grid": True}),
    ):
        assert parse_windows(text) == Windows(**options)
    assert parse_windows("8:2:grid", start=3, end=9).end == 9
    assert str(parse_windows("8:.5:grid")) == "8:0.5:grid"
    for text in ("", "x", "1:", "1:2:3", "10s", "grid", ":grid", "1:2:3:grid", "1:grid:2"):
        with pytest.raises(InputError, match="SECONDS"):
            parse_windows(text)


def copied(path, target, first, last):
    """The packets `first` to `last` of a file as a file of their own."""
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for number, packet in enumerate(p for p in source.demux(stream) if p.size):
            if first <= number <= last:
                packet.stream = copy
                out.mux(packet)
    return target


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """20 s, 25 frames a second, a group of pictures each second; no picture is reordered."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return make.make_clip(path, frames=500, gop=25, x264="scenecut=0:bframes=0")


def test_windows_are_as_files_cut_there(long, tmp_path):
    plan = plan_windows(long, Windows(seconds=4, stride=2))
    assert plan.total_frames == 500 and len(plan.windows) == 9
    clips = read_windows(long, SPEC, 500, plan.windows)
    for i, (window, clip) in enumerate(zip(plan.windows, clips, strict=True)):
        name = tmp_path / f"{i}.mp4"
        copied(long, name, window.first, window.first + window.frames - 1)
        alone = read_clip_info(name, SPEC)
        np.testing.assert_array_equal(clip.pixels, alone.pixels)
        np.testing.assert_array_equal(clip.indices, alone.indices + window.first)
        assert clip.seconds == (2 * i, 2 * i + 4) and clip.gap_s == 1
        assert (clip.total_frames, alone.total_frames) == (500, 100)


def test_a_group_is_decoded_once_and_only_where_it_is(long, monkeypatch):
    fed = make.packets_fed(monkeypatch)
    plan = plan_windows(long, Windows(seconds=2, stride=1, start=10, end=14))
    fed.clear()
    read_windows(long, SPEC, 500, plan.windows)
    assert len(plan.windows) == 3 and min(fed) == 250 and max(fed) < 350
    assert len(fed) <= 100 + 3  # each packet once, and the ends of ranges


def test_all_windows_of_all_videos_in_order(long, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    paths = [long, bad, long, tmp_path / "none.mp4"]
    options = Windows(seconds=8, stride=4)
    with closing(read_all_windows(paths, SPEC, options, workers=2)) as readings:
        found = list(readings)
    assert [p for p, _ in found] == [long] * 4 + [bad] + [long] * 4 + [paths[3]]
    errors = [isinstance(r, InputError) for _, r in found]
    assert errors == [False] * 4 + [True] + [False] * 4 + [True]
    here = read_windows(long, SPEC, 500, plan_windows(long, options).windows)
    for (_, there), clip in zip(found, here, strict=False):
        np.testing.assert_array_equal(there.pixels, clip.pixels)
        assert there.seconds == clip.seconds
    with pytest.raises(InputError, match="workers is 0"):
        read_all_windows(paths, SPEC, options, workers=0)


def test_groups_hold_a_bounded_number_of_pixels():
    plan = plan_of(1000)
    groups = list(plan.groups(ClipSpec()))  # 12 frames of 224 pixels
    assert [w for g in groups for w in g] == plan.windows
    assert {len(g) for g in groups[:-1]} == {16}
    assert len(next(plan.groups(ClipSpec(frames=64, short_side=2000, crop=2000)))) == 1


def plan_of(count):
    from stan_infer.video.windows import Plan

    return Plan(9, [Window(0.0, 1.0, 0, 9)] * count)


def test_damage_costs_its_windows_only(long, tmp_path):
    hurt = tmp_path / "hurt.mp4"
    make.damage(long, hurt, packet=260)
    plan = plan_windows(hurt, Windows(seconds=2))
    found = read_windows(hurt, SPEC, plan.total_frames, plan.windows)
    wrong = [i for i, clip in enumerate(found) if isinstance(clip, InputError)]
    assert 1 <= len(wrong) <= 3
    whole = read_windows(long, SPEC, 500, plan.windows)
    for i, clip in enumerate(found):
        if i not in wrong:
            np.testing.assert_array_equal(clip.pixels, whole[i].pixels)


def test_kinds_of_files(tmp_path):
    options = Windows(seconds=2)
    for name in ("a.avi", "a.mkv", "a.ts"):
        path = make.make_clip(tmp_path / name, frames=100, codec="mpeg4", gop=25)
        plan = plan_windows(path, options)
        assert [w[2:] for w in plan.windows] == [(0, 50), (50, 50)], name
    raw = make.make_clip(tmp_path / "raw.m4v", container="m4v", frames=50, codec="mpeg4")
    with pytest.raises(InputError, match="does not say when its frames are shown.*ffmpeg -r 25"):
        plan_windows(raw, options)
    with pytest.raises(InputError, match="--start 60 is not in it: it lasts 4.000 s"):
        plan_windows(path, Windows(start=60))


def test_decord_reads_the_same(long):
    pytest.importorskip("decord")
    plan = plan_windows(long, Windows(seconds=4, start=8, end=16))
    spec = ClipSpec(frames=4, short_side=32, crop=32, decoder="decord")
    ours = read_windows(long, SPEC, 500, plan.windows)
    for a, b in zip(ours, read_windows(long, spec, 500, plan.windows), strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        assert b.decoder == "decord"


def test_views_and_windows_do_not_go_together(long):
    spec = ClipSpec(frames=4, short_side=32, crop=32, views=(2, 1))
    with pytest.raises(InputError, match="several views"):
        read_windows(long, spec, 500, [Window(0.0, 1.0, 0, 9)])


def test_windows_are_written_as_they_are_read():
    for text in ("10", "10:5", "8:2:grid", "10:grid", "0.6666666666666666:0.3333333333333333:grid"):
        assert str(parse_windows(text)) == text
