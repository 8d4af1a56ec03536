"""Distinct moments: the definition, one pair at a time, against what looks at neighbours only."""

import numpy as np
import pytest

from stan_infer.video.moments import Moments


def taken(windows):
    moments = Moments()
    return [w for w in windows if moments.take(*w)]


def by_definition(windows):
    found = []
    for video, start, end in windows:
        shares = [
            (min(e, end) - max(s, start)) / min(e - s, end - start)
            for v, s, e in found
            if v == video
        ]
        if all(share < 0.5 - 1e-6 for share in shares):
            found.append((video, start, end))
    return found


def test_half_of_the_shorter_window_is_too_much():
    first = ("a", 10, 20)
    for start, end in (
        (5, 15),
        (15, 25),
        (10, 20),
        (12, 14),
        (0, 100),
        (19, 21),
        (14.9999999, 25),
        (15.0000001, 25),
    ):
        assert taken([first, ("a", start, end)]) == [first], (start, end)
        assert len(taken([first, ("b", start, end)])) == 2, "another video"
    for start, end in ((0, 10), (20, 30), (4.9, 14.9), (15.1, 25.1), (19.1, 21)):
        assert len(taken([first, ("a", start, end)])) == 2, (start, end)
    # What was left out leaves nothing out itself.
    assert taken([first, ("a", 15, 25), ("a", 20, 30)]) == [first, ("a", 20, 30)]


@pytest.mark.parametrize("shortest", [1, 10])
@pytest.mark.parametrize("longest", [0, 3, 30, 300])
def test_any_windows_in_any_order(shortest, longest):
    """Also short ones within long ones: those beside a window tell enough."""
    rng = np.random.default_rng(longest)
    for _ in range(5):
        starts, more = rng.integers(0, 200, 500) / 2, rng.integers(0, longest + 1, 500)
        videos = rng.integers(0, 3, 500)
        windows = [(v, s, s + shortest + m) for v, s, m in zip(videos, starts, more, strict=True)]
        found = taken(windows)
        assert found == by_definition(windows) and 3 < len(found) < 300
