"""Distinct moments of videos among ranked windows: temporal non-maximum suppression."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable

from stan_infer.video.timeline import EARLY

SHARE = 0.5  # of the shorter of two windows


class Moments:
    """Takes windows from the best on, each unless it shows a moment that was taken.

    It does where half of it or more, or of the other one if that is shorter, is in a window of the
    same video that was taken. Neighbours of `--windows 10:5` share exactly half.
    """

    def __init__(self) -> None:
        """Begin without a window."""
        self._taken: defaultdict[Hashable, list[tuple[float, float]]] = defaultdict(list)

    def take(self, video: Hashable, start_s: float, end_s: float) -> bool:
        """Whether this window shows a moment of its own; it is taken then."""
        taken = self._taken[video]
        place = bisect_left(taken, (start_s, end_s))
        # Of windows that share so little with each other, only the two beside this one can share
        # as much with it.
        for start, end in taken[max(0, place - 1) : place + 1]:
            shared = min(end, end_s) - max(start, start_s)
            if shared >= SHARE * min(end - start, end_s - start_s) - EARLY:
                return False
        taken.insert(place, (start_s, end_s))
        return True
