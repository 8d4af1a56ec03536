"""Values over time in a bounded memory, for a plot."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from stan_infer.watch.events import Event

MAX_POINTS = 20_000  # of a curve
_NUMBERS = 2**23  # of all curves: 64 MiB; of very many texts there are fewer points
MAX_EVENTS = 10_000


class Curve:
    """The values [windows, Q] of Q texts, and the events, as they come.

    Of more than MAX_POINTS windows neighbours share a point, which has the higher value of each
    text; of more than MAX_EVENTS events the first are dropped. A break is a row of NaN.
    """

    def __init__(self, texts: int) -> None:
        """texts: Q."""
        self._most = max(100, min(MAX_POINTS, _NUMBERS // (texts + 1)) // 2 * 2)
        self._rows = np.empty((self._most, texts + 1))
        self._count, self._step, self._since = 0, 1, 0
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)

    def add(self, time_s: float, values: NDArray[np.float64]) -> None:
        """Add the values [Q] of one window."""
        row = np.concatenate([[time_s], values])
        if self._since:  # it shares the last point
            last = self._rows[self._count - 1]
            last[1:] = np.fmax(last[1:], row[1:])
        else:
            if self._count == self._most:
                self._halve()
            self._rows[self._count] = row
            self._count += 1
        self._since = (self._since + 1) % self._step

    def add_break(self) -> None:
        """Let no line join what was before with what comes."""
        if self._count and not np.isnan(self._rows[self._count - 1, 1:]).all():
            self._since = 0
            self.add(
                float(self._rows[self._count - 1, 0]), np.full(self._rows.shape[1] - 1, np.nan)
            )
            self._since = 0

    def _halve(self) -> None:
        pairs = self._rows[: self._most // 2 * 2].reshape(-1, 2, self._rows.shape[1])
        half = np.fmax(pairs[:, 0], pairs[:, 1])
        half[:, 0] = pairs[:, 0, 0]
        self._count = len(half)
        self._rows[: self._count] = half
        self._step *= 2

    @property
    def times(self) -> NDArray[np.float64]:
        """The middle of each window in seconds [points]."""
        return self._rows[: self._count, 0]

    @property
    def values(self) -> NDArray[np.float64]:
        """The values [points, Q]."""
        return self._rows[: self._count, 1:]
