"""Windows of odd lengths over odd videos: all frames exist, and every row is read again."""

import numpy as np
import pytest

from stan_infer.errors import InputError
from stan_infer.video.grid import plan_grid, read_frames
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Windows, plan_windows, read_windows

pytest.importorskip("av")
from tests.video import broken_videos as make  # noqa: E402 (after importorskip)

SPEC = ClipSpec(frames=8, short_side=32, crop=32)
UNEVEN = np.cumsum(np.random.default_rng(0).choice([1, 1, 3, 25, 60], 50)).tolist()  # in 1/25 s
WINDOWS = [  # seconds and stride; with 8 frames all strides are on the grid
    (0.01, 0.01),
    (0.04, 0.015),
    (1, 0.125),
    (0.5, 3),  # with gaps
    (0.5, 1e9),  # the second would begin after the end
    (100, 12.5),  # longer than all but one
    (1e9, None),
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """By name: the file, and how long it lasts."""
    folder = tmp_path_factory.mktemp("odd")
    kinds = {
        "one.mp4": {"frames": 1},
        "one.mkv": {"frames": 1},
        "one.ts": {"frames": 1},
        "two.mp4": {"frames": 2},
        "uneven.mkv": {"frames": 50, "times": UNEVEN},
        "pause.mkv": {"frames": 6, "times": [0, 1, 2, 1500, 1501, 1502]},
        "late.mkv": {"frames": 30, "times": range(25_000, 25_030)},
    }
    made = {name: make.make_clip(folder / name, **how) for name, how in kinds.items()}
    even = make.make_clip(folder / "even.mp4", frames=30)
    made["early.mp4"] = make.remux(even, folder / "early.mp4", earlier=10 * 512)
    early = {"avoid_negative_ts": "disabled"}
    made["early.mkv"] = make.remux(even, folder / "early.mkv", earlier=10 * 512, muxer=early)
    return made


NAMES = ["one.mp4", "one.mkv", "one.ts", "two.mp4", "uneven.mkv", "pause.mkv", "late.mkv",
         "early.mp4", "early.mkv"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("seconds", "stride"), WINDOWS)
def test_every_window_has_its_frames(videos, name, seconds, stride):
    path = videos[name]
    own = plan_windows(path, Windows(seconds=seconds, stride=stride))
    plan = plan_grid(path, Windows(seconds=seconds, stride=stride, grid=True), SPEC)
    last = own.windows[-1].end_s
    assert plan.total_frames == own.total_frames and plan.sampling in ("grid", "clip")
    assert plan.ends[-1] == len(plan.frames)
    assert 0 <= min(plan.frames) and max(plan.frames) < plan.total_frames
    for windows in (own.windows, plan.windows):
        starts = [w.start_s for w in windows]
        assert starts == sorted(starts) and starts[0] == 0
        assert all(w.start_s <= w.end_s for w in windows)
        assert max(w.end_s for w in windows) == pytest.approx(last, abs=seconds if stride else 0)
    assert abs(len(own.windows) - len(plan.windows)) <= 1
    assert all(0 <= w.first <= len(plan.frames) - SPEC.frames for w in plan.windows)
    for window in {plan.windows[0], plan.windows[-1]}:
        numbers = plan.frames[window.first : window.first + SPEC.frames]
        found = read_frames(path, SPEC, plan.total_frames, numbers)
        assert len(found.pixels) == SPEC.frames and not found.errors
        clip = plan.clip(window, found, found.pixels)
        assert clip.seconds == window[:2] and clip.gap_s >= 0
    (clip,) = read_windows(path, SPEC, own.total_frames, own.windows[-1:])
    assert not isinstance(clip, InputError), clip


@pytest.mark.parametrize("name", NAMES)
def test_the_frame_of_a_step_is_the_one_that_is_shown(videos, name):
    """Counted from the first frame, whatever its time in the file is."""
    path = videos[name]
    plan = plan_grid(path, Windows(seconds=0.8, stride=0.1, grid=True), SPEC)
    if plan.sampling == "clip":
        return
    units = {"uneven.mkv": UNEVEN, "pause.mkv": [0, 1, 2, 1500, 1501, 1502]}
    times = np.array(units.get(name, range(plan.total_frames))) / 25
    middles = 0.05 + 0.1 * np.arange(len(plan.frames)) + 1e-3
    shown = np.searchsorted(times - times[0], middles, side="right") - 1
    assert plan.frames == shown.tolist()
