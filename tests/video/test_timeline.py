"""Times of frames: one clock that goes forward, whatever the stamps of a source do."""

import math

import numpy as np
import pytest

from stan_infer.video.timeline import BACK_S, JUMP_S, Grid, Timeline


def placed(live, pairs):
    timeline = Timeline(live)
    return [timeline.place(stamp, now) for stamp, now in pairs], timeline.jumps


def test_of_a_file_the_first_frame_is_at_0():
    assert placed(False, [(7.0, 100), (7.5, 100), (8.0, 500)]) == ([0.0, 0.5, 1.0], 0)


def test_where_recordings_were_joined_time_goes_on():
    times, jumps = placed(False, [(10.0, 0), (10.25, 0), (0.0, 0), (0.25, 0)])
    assert times == pytest.approx([0, 0.25, 0.5, 0.75]) and jumps == 1


def test_a_pause_is_not_the_distance_of_frames():
    """A recording of 4 frames a second that paused for a minute, and another one behind it."""
    times, jumps = placed(False, [(s, 0) for s in (0.0, 0.25, 60.25, 0.0, 0.25)])
    assert times == pytest.approx([0, 0.25, 60.25, 60.5, 60.75]) and jumps == 1


def test_a_frame_out_of_order_is_late():
    assert placed(False, [(1.0, 0), (2.0, 0), (1.9, 0), (2.0, 0), (2.1, 0)]) == (
        [0.0, 1.0, None, None, pytest.approx(1.1)],
        0,
    )


def test_live_bursts_keep_their_own_distances():
    """After a stall of the network, five frames come at once."""
    stamps = [50.0, 50.5, 51.0, 51.5, 52.0]
    times, jumps = placed(True, zip(stamps, [3.0, 5.1, 5.1, 5.1, 5.1], strict=True))
    assert times == pytest.approx([3.0, 3.5, 4.0, 4.5, 5.0]) and jumps == 0


@pytest.mark.parametrize("stamp", [-1000.0, 1e9, 20.0 - BACK_S - 0.01, 20.0 + 2 * JUMP_S])
def test_a_live_clock_that_is_set_goes_on_from_ours(stamp):
    times, jumps = placed(True, [(20.0, 1.0), (stamp, 1.1), (stamp + 0.1, 1.2)])
    assert jumps == 1
    assert times == pytest.approx([1.0, 1.1, 1.2], abs=0.06)


def test_without_stamps_a_frame_is_where_it_came():
    assert placed(True, [(None, 1.0), (None, 2.0), (math.nan, 2.5), (None, 2.5)]) == (
        [1.0, 2.0, 2.5, None],
        0,
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("live", [True, False])
def test_times_rise_whatever_stamps_do(live, seed):
    dice = np.random.default_rng(seed)
    timeline, now, found = Timeline(live), 0.0, []
    for _ in range(500):
        now += dice.exponential(0.1)
        kind = dice.integers(6)
        stamp = [None, math.inf, now, now + dice.normal(), dice.normal() * 1e6, now - 300][kind]
        if (time := timeline.place(stamp, now)) is not None:
            found.append(time)
            assert not live or abs(time - now) <= JUMP_S
    assert (np.diff(found) > 0).all() and len(found) > 20


def test_the_grid_takes_the_first_frame_at_or_after_each_time():
    grid = Grid(0.5)
    times = [2.0, 2.4, 2.5, 2.9, 3.1, 3.2, 5.7, 5.9]
    assert [grid.take(t) for t in times] == [2.0, None, 2.5, None, 3.0, None, 5.5, None]


def test_a_grid_goes_on_where_another_began():
    assert Grid(0.5, begin=2.0).take(7.8) == 7.5


def test_240_frames_a_second_are_thinned():
    grid = Grid(0.25)
    assert sum(grid.take(i / 240) is not None for i in range(2400)) == 40


def test_a_connection_goes_on_behind_the_one_before():
    """Whose frames had come in a burst, and were ahead of the clock."""
    timeline = Timeline(True, last=5.0)
    assert timeline.place(100.0, 3.0) == pytest.approx(5.04)
    grid = Grid(0.5, begin=2.0)
    grid.take(4.9)
    assert [grid.take(t) for t in (4.95, 5.1)] == [None, 5.0]
