"""Windows on a grid: which frames they have, and that each of these is read once."""

import os
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest

from stan_infer.errors import InputError, StanError
from stan_infer.video import grid
from stan_infer.video.clip import sample_indices
from stan_infer.video.decode_pool import read_grids
from stan_infer.video.grid import FramesRead, GridPlan, lay, plan_grid, read_frames, steps_of
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Windows, indexed, read_chosen

av = pytest.importorskip("av")
from tests.video import broken_videos as make  # noqa: E402 (after importorskip)

SPEC = ClipSpec(frames=4, short_side=32, crop=32)
TEN = np.arange(200) / 10  # 20 s


def on_grid(seconds, stride=None, **options):
    return Windows(seconds=seconds, stride=stride, grid=True, **options)


def frames_of(plan, window, count=4):
    return plan.frames[window.first : window.first + count]


def spans(plan):
    return [(round(w.start_s, 6), round(w.end_s, 6)) for w in plan.windows]


@pytest.mark.parametrize("rate", [25, 24000 / 1001, 29.97, 60, 1])
@pytest.mark.parametrize("unit", [None, 1e-3, 1 / 90_000])
def test_a_window_that_is_a_whole_video_has_the_frames_of_the_authors(rate, unit):
    """Where their rule takes every n-th frame; times are rounded as containers round them."""
    for frames in (1, 2, 8, 12, 32, 64):
        for every in (1, 2, 3, 4, 7, 20, 101):
            total = every * frames + 1
            seconds = np.arange(total) / rate
            if unit:
                seconds = np.round(seconds / unit) * unit
            plan = lay(seconds, on_grid((total - 1) / rate), frames)
            wanted = sample_indices(total, frames).tolist()
            assert plan.sampling == "grid" and wanted == [*range(every // 2, total - 1, every)]
            assert frames_of(plan, plan.windows[0], frames) == wanted


def test_frames_that_are_close_are_told_apart():
    seconds = np.arange(4001) / 4000
    plan = lay(seconds, on_grid(1), 8)
    assert plan.sampling == "grid" and plan.frames == sample_indices(4001, 8).tolist()


@pytest.mark.parametrize("rate", [24000 / 1001, 25, 29.97, 60])
def test_rounded_times_make_no_more_steps(rate):
    """Where a video is as long as a window, or ends in the middle of a step."""
    for total in range(50, 150):
        seconds, length = np.arange(total) / rate, total / rate
        assert lay(seconds, on_grid(length), 4).sampling == "clip"
        step = length / 12.5
        assert len(lay(seconds, on_grid(4 * step, step), 4).frames) == 12


def test_windows_share_the_frames_of_one_grid():
    plan = lay(TEN, on_grid(8, 2), 4)
    assert plan.frames == [*range(10, 200, 20)]  # the middle of every 2 s
    assert spans(plan) == [(2 * i, 2 * i + 8) for i in range(7)]
    assert [w.first for w in plan.windows] == [*range(7)]
    assert lay(TEN, on_grid(8, 4), 4).frames == plan.frames
    assert spans(lay(TEN, on_grid(8, 4), 4)) == [(0, 8), (4, 12), (8, 16), (12, 20)]


def test_the_last_window_has_the_last_steps():
    plan = lay(TEN, on_grid(8), 4)
    assert spans(plan) == [(0, 8), (8, 16), (12, 20)] and plan.windows[-1].first == 6
    plan = lay(TEN, on_grid(7, 3.5), 4)  # 11.4 steps of 1.75 s: the middle of the 12th is outside
    assert spans(plan) == [(0, 7), (3.5, 10.5), (7, 14), (10.5, 17.5), (12.25, 19.25)]
    plan = lay(TEN, on_grid(9, 4.5), 4)  # 8.9 steps of 2.25 s: that of the 9th is inside
    assert spans(plan)[-1] == (11.25, 20) and frames_of(plan, plan.windows[-1])[-1] == 191


def test_windows_with_gaps_read_nothing_between_them():
    plan = lay(TEN, on_grid(2, 8), 4)
    assert spans(plan) == [(0, 2), (8, 10), (16, 18)]
    assert plan.frames == [f + s for s in (0, 80, 160) for f in (2, 7, 12, 17)]
    assert [w.first for w in plan.windows] == [0, 4, 8]


def test_a_stretch_of_its_own_has_a_grid_of_its_own():
    plan = lay(TEN, on_grid(4, 1, start=3, end=9), 4)
    assert spans(plan) == [(3, 7), (4, 8), (5, 9)] and plan.frames == [35, 45, 55, 65, 75, 85]


@pytest.mark.parametrize("seconds", [20, 30])
def test_a_video_of_one_window_is_sampled_as_without_a_grid(seconds):
    plan = lay(TEN, on_grid(seconds), 12)
    assert plan.sampling == "clip" and plan.frames == sample_indices(200, 12).tolist()
    assert spans(plan) == [(0, 20)] and plan.windows[0][2:] == (0, 12)
    plan = lay(np.zeros(1), on_grid(seconds), 4)
    assert plan.frames == [0] * 4


def test_the_one_window_of_a_stretch_has_the_frames_of_the_stretch():
    plan = lay(TEN, on_grid(30, start=5, end=18), 4)
    assert plan.frames == (50 + sample_indices(130, 4)).tolist()
    assert plan.windows == [(5, 18, 0, 4)] and plan.sampling == "clip"


def test_what_a_clip_says_of_its_window():
    plan = lay(TEN, on_grid(8, 2), 4)
    read = FramesRead(np.zeros((4, 2, 2, 3), np.uint8), {}, "pyav", (48, 64), 33.0, "PQ")
    clip = plan.clip(plan.windows[3], read, read.pixels)
    assert clip.indices.tolist() == plan.frames[3:7] and clip.pixels is read.pixels
    assert (clip.seconds, clip.gap_s, clip.sampling) == ((6, 14), 2, "grid")
    assert (clip.total_frames, clip.decoder, clip.source_size) == (200, "pyav", (48, 64))
    assert (clip.length_s, clip.hdr) == (33.0, "PQ")


@pytest.mark.parametrize("seed", range(20))
def test_every_window_has_the_frames_that_its_times_say(seed):
    dice = np.random.default_rng(seed)
    frames, length = int(dice.integers(1, 20)), float(dice.uniform(1, 9))
    apart = int(dice.integers(1, 2 * frames + 1))
    seconds = np.cumsum(dice.uniform(0.01, 0.2, 1500)) - 0.005  # no even rate
    seconds -= seconds[0]
    start = float(dice.uniform(0, 20))
    windows = on_grid(length, apart * length / frames, start=start)
    plan = lay(seconds, windows, frames)
    step = length / frames
    for i, w in enumerate(plan.windows[:-1]):
        assert w.start_s == pytest.approx(start + i * apart * step)
        middles = w.start_s + (np.arange(frames) + 0.5) * step
        wanted = np.searchsorted(seconds, middles + 1e-3, side="right") - 1
        assert frames_of(plan, w, frames) == wanted.tolist()
    assert plan.windows[-1].first + frames == len(plan.frames)
    uncovered = seconds[-1] - plan.windows[-1].end_s
    assert uncovered < (apart * step if apart > frames else step)


@pytest.mark.parametrize(
    ("stride", "frames", "steps"), [(1, 8, 1), (1, 16, 2), (2, 12, 3), (8, 12, 12), (20, 4, 10)]
)
def test_steps(stride, frames, steps):
    assert steps_of(on_grid(8, stride), frames) == steps
    assert steps_of(on_grid(8), frames) == frames


@pytest.mark.parametrize("stride", [0.6667, 0.66667, 2 / 3])
def test_a_stride_may_be_rounded_as_people_write_it(stride):
    assert steps_of(on_grid(8, stride), 12) == 1


def test_what_is_refused():
    with pytest.raises(
        InputError,
        match=r"8 s / 12 frames = 0.6667 s; 1 s are 1.5 of them: give "
        r"--windows 8:0.6667:grid or --windows 8:1.3333:grid, or --frames 8 or 16$",
    ):
        steps_of(on_grid(8, 1), 12)
    with pytest.raises(
        InputError, match=r"0.5 of them: give --windows 8:2:grid, or --frames 8 or 16$"
    ):
        steps_of(on_grid(8, 1), 4)
    with pytest.raises(InputError, match="give --windows 0.1:0.010938:grid, or --frames"):
        steps_of(on_grid(0.1, 0.01), 64)  # what it says is not refused in turn
    for given in ({"grid": True}, {"grid": True, "start": 3.0}):
        with pytest.raises(InputError, match="a grid needs the length"):
            Windows(**given)
    with pytest.raises(InputError, match="allowed are 100000"):
        lay(np.arange(30_000) / 10, on_grid(0.02, 0.01), 2)
    with pytest.raises(InputError, match="frames on the grid; allowed are 500000"):
        lay(np.arange(30_000.0), on_grid(3, 3), 64)
    with pytest.raises(InputError, match=r"--start 60 is not in it: it lasts 20\.000 s"):
        lay(TEN, on_grid(4, 1, start=60), 4)


def test_a_frame_is_in_the_group_of_its_packet():
    index = SimpleNamespace(key=np.array([True, False, True, False]), order=np.array([0, 2, 1, 3]))
    assert grid._groups(index, [0, 1, 2, 3]).tolist() == [1, 2, 1, 2]


def test_pieces_end_between_groups_of_pictures_where_they_can():
    groups = np.repeat(np.arange(100), 10)
    ends = grid._ends(groups, 64)
    assert ends == [*range(60, 1000, 60), 1000]
    assert grid._ends(np.zeros(100, int), 64) == [64, 100]  # one group: it is decoded twice
    assert grid._ends(np.array([0] * 10 + [1] * 90), 64) == [64, 100]  # better than a short piece
    assert grid._ends(np.arange(3), 64) == [3]


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """20 s, 25 frames a second, a group of pictures each second; no picture is reordered."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return make.make_clip(path, frames=500, gop=25, x264="scenecut=0:bframes=0")


def small_pieces(monkeypatch, frames):
    monkeypatch.setattr(grid, "_MOST", frames)


def test_each_frame_is_read_and_each_packet_decoded_once(long, monkeypatch):
    small_pieces(monkeypatch, 10)
    plan = plan_grid(long, on_grid(2, 0.5), SPEC)
    assert plan.total_frames == 500 and len(plan.frames) == 40 and len(plan.ends) == 4
    fed = make.packets_fed(monkeypatch)
    pixels = [read_frames(long, SPEC, 500, piece).pixels for piece in plan.pieces()]
    assert len(fed) <= 500 + len(plan.ends)  # and the end of each
    whole = read_frames(long, SPEC, 500, range(500)).pixels
    np.testing.assert_array_equal(np.concatenate(pixels), whole[plan.frames])


def test_errors_name_the_video_and_views_are_refused(long):
    with pytest.raises(InputError, match=r"long\.mp4: --start 60 is not in it: it lasts 20\.000 s"):
        plan_grid(long, on_grid(2, start=60), SPEC)
    with pytest.raises(InputError, match="several views of windows are not read"):
        read_frames(long, ClipSpec(frames=4, short_side=32, crop=32, views=(2, 1)), 500, [0])


def test_a_video_that_was_replaced_is_indexed_anew(long, tmp_path):
    """By one of the same size, in the same place."""
    path = tmp_path / "a.mp4"
    path.write_bytes(long.read_bytes())
    kept = indexed(path)
    assert indexed(path) is kept
    os.utime(path, ns=(1, 1))
    assert indexed(path) is not kept


def test_a_piece_holds_a_bounded_number_of_pixels(long):
    spec = ClipSpec(frames=4, short_side=1024, crop=1024)
    pieces = plan_grid(long, on_grid(0.2, 0.05), spec).pieces()
    assert max(map(len, pieces)) == 5 and sum(map(len, pieces)) == 400
    assert max(map(len, plan_grid(long, on_grid(0.16), SPEC).pieces())) == 250


def test_all_videos_in_order_with_their_plans(long, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    paths = [long, bad, long, tmp_path / "none.mp4"]
    with closing(read_grids(paths, SPEC, on_grid(0.32, 0.08), workers=2)) as readings:
        found = list(readings)
    kinds = [(p, type(r)) for p, r in found]
    own = [(long, GridPlan), *[(long, FramesRead)] * 1]
    assert kinds == [*own, (bad, InputError), *own, (paths[3], InputError)]
    plan, read = found[0][1], found[1][1]
    here = read_frames(long, SPEC, 500, plan.frames)
    assert plan == plan_grid(long, on_grid(0.32, 0.08), SPEC)
    np.testing.assert_array_equal(read.pixels, here.pixels)
    assert read[1:] == here[1:] == ({}, "pyav", (48, 64), 20.0, None)
    with pytest.raises(InputError, match="workers is 0"):
        read_grids(paths, SPEC, on_grid(8), workers=0)


def test_damage_costs_its_frames_only(long, tmp_path):
    hurt = tmp_path / "hurt.mp4"
    make.damage(long, hurt, packet=260)
    numbers = [*range(0, 500, 4)]
    found = read_frames(hurt, SPEC, 500, numbers)
    wrong = {numbers[i] for i in found.errors}
    assert wrong and wrong <= {*range(260, 275)} and "damaged" in next(iter(found.errors.values()))
    good = [n for n in numbers if n not in wrong]
    whole = read_frames(long, SPEC, 500, good).pixels
    np.testing.assert_array_equal(found.pixels, whole)
    with pytest.raises(InputError, match="damaged"):
        read_frames(hurt, SPEC, 500, [260, 261])


def test_a_file_of_another_number_of_frames_is_not_read_again_and_again(long, monkeypatch):
    asked = []

    def noted(*given):
        asked.append(given)
        return read_chosen(*given)

    monkeypatch.setattr(grid, "read_chosen", noted)
    with pytest.raises(StanError, match="499 frames by its packets and 500 when decoded"):
        read_frames(long, SPEC, 499, [*range(64)])
    assert len(asked) == 1


def test_decord_reads_the_same(long):
    pytest.importorskip("decord")
    spec = ClipSpec(frames=4, short_side=32, crop=32, decoder="decord")
    ours, theirs = (read_frames(long, s, 500, [0, 7, 7, 300]) for s in (SPEC, spec))
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    assert theirs.decoder == "decord"
