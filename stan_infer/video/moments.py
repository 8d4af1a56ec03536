"""Distinct moments of videos among ranked windows: temporal non-maximum suppression."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Hashable, Iterator

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
        self._longest: defaultdict[Hashable, float] = defaultdict(float)

    def take(self, video: Hashable, start_s: float, end_s: float) -> bool:
        """Whether this window shows a moment of its own; it is taken then."""
        for start, end in self._near(video, start_s, end_s):
            shared = min(end, end_s) - max(start, start_s)
            if shared >= SHARE * min(end - start, end_s - start_s) - EARLY:
                return False
        insort(self._taken[video], (start_s, end_s))
        self._longest[video] = max(self._longest[video], end_s - start_s)
        return True

    def _near(self, video: Hashable, start_s: float, end_s: float) -> Iterator[tuple[float, float]]:
        """The windows of a video that were taken and may share time with this one."""
        taken, longest = self._taken[video], self._longest[video]
        place = bisect_left(taken, (start_s, end_s))
        for window in reversed(taken[:place]):
            if window[0] + longest < start_s:
                break
            yield window
        for window in taken[place:]:
            if window[0] > end_s:
                break
            yield window
