"""When events begin and end: hysteresis, the least duration, gaps, and values that are none."""

import itertools

import numpy as np
import pytest

from stan_infer.errors import InputError
from stan_infer.watch.events import Rule, Track


def events(values, *, starts=None, **rule):
    """(start, end) of what began and ended, of windows that stand for one second each."""
    track = Track("a", Rule(**({"on": 0.6, "off": 0.4} | rule)))
    found = []
    for start, value in zip(starts or itertools.count(), values, strict=False):
        found += track.add(start, start + 1, value)
    return [*found, *track.close()], track


def ended(found):
    return [(e.start_s, e.end_s) for e in found if e.end_s is not None]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.5, 0.5], []),  # never on
        ([0.6, 0.5, 0.4, 0.39, 0.5], [(0, 3)]),  # both thresholds belong to it
        ([0.1, 0.9], [(1, 2)]),  # the end of the video ends it
        ([0.9, 0.3, 0.9, 0.3], [(0, 1), (2, 3)]),
        ([0.9, 0.5, 0.59, 0.3, 0.5, 0.9], [(0, 3), (5, 6)]),  # not on again until `on`
        ([float("nan"), 0.9, float("nan"), 0.5], [(1, 2)]),
    ],
)
def test_hysteresis(values, wanted):
    found, _ = events(values)
    assert ended(found) == wanted
    assert [e.end_s is None for e in found] == [True, False] * len(wanted)


def test_events_that_are_short_are_left_out_and_counted():
    found, track = events([0.9, 0.9, 0.1, 0.9, 0.5, 0.5, 0.1, 0.9], hold_s=3)
    assert ended(found) == [(3, 6)] and track.short == 2
    begin, _ = found
    assert begin.start_s == 3 and begin.end_s is None and begin.windows == 3


def test_the_highest_value_and_its_middle():
    found, _ = events([0.7, 0.95, 0.8, 0.1])
    assert (found[-1].peak, found[-1].peak_s, found[-1].windows) == (0.95, 1.5, 3)
    assert found[0].peak == 0.7  # as known then


def test_a_gap_ends_an_event_where_it_was_last_seen():
    found, _ = events([0.9, 0.9, 0.9], starts=[0, 1, 10])
    assert ended(found) == [(0, 2), (10, 11)]
    found, _ = events([0.9, 0.9], starts=[0, 1.9])  # less than a stretch is none
    assert ended(found) == [(0, 2.9)]


def test_a_gap_as_long_as_a_stretch_is_none():
    found, _ = events([0.9, 0.9], starts=[0, 2])
    assert ended(found) == [(0, 3)]


def test_of_equal_values_the_first_is_the_peak():
    found, _ = events([0.7, 0.9, 0.9, 0.1])
    assert (found[-1].peak, found[-1].peak_s) == (0.9, 1.5)


def test_sums_of_seconds_last_as_long_as_they_should():
    track = Track("a", Rule(on=0.6, off=0.4, hold_s=0.4))
    found = [*track.add(0.3, 0.5, 0.9), *track.add(0.5, 0.7, 0.9)]
    assert 0.7 - 0.3 < 0.4 and len(found) == 1 and track.is_on


def test_one_threshold_without_hysteresis():
    found, _ = events([0.5, 0.49, 0.5], on=0.5, off=0.5)
    assert ended(found) == [(0, 1), (2, 3)]


@pytest.mark.parametrize("seed", range(30))
def test_against_the_definition(seed):
    """An event is a longest run of windows of at least `off` from its first of at least `on`."""
    dice = np.random.default_rng(seed)
    values = dice.random(60)
    off, on = sorted(dice.random(2))
    hold = int(dice.integers(0, 4))
    wanted = []
    for low, run in itertools.groupby(range(60), key=lambda i: values[i] >= off):
        run = [*run]
        first = next((i for i in run if values[i] >= on), None)
        if low and first is not None and run[-1] + 1 - first >= hold:
            wanted.append((first, run[-1] + 1))
    found, track = events(values.tolist(), on=on, off=off, hold_s=hold)
    assert ended(found) == wanted
    assert not track.is_on


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"on": 0.3, "off": 0.4}, "off must not be above on"),
        ({"on": float("nan"), "off": 0.4}, "on is nan"),
        ({"on": 0.5, "off": 0.4, "hold_s": -1}, "hold_s is -1"),
    ],
)
def test_rules_that_cannot_be(rule, message):
    with pytest.raises(InputError, match=message):
        Rule(**rule)
