"""Times of frames on one clock, whatever a source's stamps do, and the grid that thins them."""

from __future__ import annotations

import math
from dataclasses import dataclass

BACK_S = 0.5  # a stamp that falls by more was set back; one that falls by less is out of order
JUMP_S = 10.0  # a live stamp may be so far from the clock of this machine, as behind a delay
EARLY = 1e-6  # seconds; times are rounded to container units, of which none is smaller


@dataclass
class Timeline:
    """Places the frames of one connection on a clock that only goes forward.

    live: times are those of this machine's steady clock. The first frame has the time at which it
    came, and from there on a frame's own stamp tells how much later it is, as a network delivers
    frames in bursts. A stamp that is set back by more than BACK_S, or is more than JUMP_S away from
    the clock, is set to the clock again (`jumps`). Without stamps, a frame's time is that at which
    it came. last: time of the last frame of the connection before, -inf without one.

    Not live: times are those of the file, 0 for its first frame. A stamp that is set back, as where
    two recordings were joined, goes on behind the frame before it (`jumps`).
    """

    live: bool
    last: float = -math.inf
    jumps: int = 0
    _offset: float | None = None  # of a time over its stamp
    _stamp: float = 0.0
    _period: float = 0.04

    def place(self, stamp: float | None, now: float) -> float | None:
        """Return the time in seconds of a frame, None where it is not after that of the last.

        stamp: the frame's own time in seconds, None without one. now: when it came, on a clock that
        is never set.
        """
        if stamp is None or not math.isfinite(stamp):
            return self._take(now)
        if self._offset is None:
            self._offset = (self._anew(now) if self.live else 0.0) - stamp
        elif stamp < self._stamp - BACK_S or (
            self.live and abs(stamp + self._offset - now) > JUMP_S
        ):
            self.jumps += 1
            self._offset = (self._anew(now) if self.live else self.last + self._period) - stamp
        elif 0 < stamp - self._stamp < 1:
            self._period = stamp - self._stamp
        self._stamp = stamp
        return self._take(stamp + self._offset)

    def _anew(self, now: float) -> float:
        """Where a live source goes on: now, or behind its last frame, if that was ahead of now."""
        behind = self.last + self._period
        return max(now, behind) if behind <= now + JUMP_S else now

    def _take(self, time: float) -> float | None:
        if time <= self.last:
            return None
        self.last = time
        return time


@dataclass
class Grid:
    """Times `interval` seconds apart, from that of the first frame on (begin, None: not yet)."""

    interval: float
    begin: float | None = None
    _number: int = -1

    def take(self, time: float) -> float | None:
        """Return the time of the grid for which a frame stands, None for one that is skipped.

        That is the first frame at or after a time of the grid; of several times between two frames
        the last.
        """
        if self.begin is None:
            self.begin = time
        number = math.floor((time - self.begin + EARLY) / self.interval)
        if number <= self._number:
            return None
        self._number = number
        return self.begin + number * self.interval
