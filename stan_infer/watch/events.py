"""When an event begins and ends: two thresholds, and the least time that it lasts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from stan_infer.errors import InputError, check_number


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When an event begins and ends.

    on: it begins with a value of at least `on`, and goes on while values are at least `off`, which
    is at most `on`. hold_s: events that last less are none. Raises InputError for other values.

    Example:
        >>> from stan_infer.watch.events import Rule, Track
        >>> track = Track("a goal", Rule(on=0.6, off=0.4))
        >>> values = [0.1, 0.7, 0.5, 0.3]  # of windows that stand for 2 seconds each
        >>> found = [e for i, v in enumerate(values) for e in track.add(2 * i, 2 * i + 2, v)]
        >>> [(e.start_s, e.end_s) for e in found]  # when it began, and when it was over
        [(2, None), (2, 6)]
    """

    on: float
    off: float
    hold_s: float = 0.0

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("on", "off"):
            check_number(name, getattr(self, name), -1e6, 1e6)
        check_number("hold_s", self.hold_s, 0, 1e6, " s")
        if self.off > self.on:
            raise InputError(
                f"off is {self.off:g} and on is {self.on:g}; off must not be above on: an event "
                "begins at on, and ends below off"
            )


class Event(NamedTuple):
    """An event of one text.

    number: from 1 on, of all texts together once numbered by Watch. start_s, end_s: seconds; end_s
    is None while it goes on. peak, peak_s: its highest value, and the middle of that window.
    windows: how many it has so far.
    """

    number: int
    text: str
    start_s: float
    end_s: float | None
    peak: float
    peak_s: float
    windows: int


@dataclass
class Track:
    """Follows the values of one text. short: events that lasted less than rule.hold_s."""

    text: str
    rule: Rule
    short: int = 0
    _event: Event | None = field(default=None, repr=False)
    _end: float = 0.0
    _is_told: bool = False

    @property
    def is_on(self) -> bool:
        """Whether an event goes on that has lasted long enough."""
        return self._event is not None and self._is_told

    def add(self, start_s: float, end_s: float, value: float) -> list[Event]:
        """Take the value of the next window; return an event that begins, or ends, or both.

        start_s, end_s: the stretch for which the window stands, after that of the window before. A
        NaN counts as below every threshold. A gap longer than the stretch ends what went on.
        """
        found = self.close() if start_s - self._end > end_s - start_s else []
        event = self._event
        if event is None and value >= self.rule.on:
            event = Event(0, self.text, start_s, None, value, (start_s + end_s) / 2, 0)
        elif event is not None and not value >= self.rule.off:
            return found + self.close()
        if event is None:
            return found
        if value > event.peak:
            event = event._replace(peak=value, peak_s=(start_s + end_s) / 2)
        self._event, self._end = event._replace(windows=event.windows + 1), end_s
        # Times are sums of seconds, which lose a last digit.
        if not self._is_told and end_s - event.start_s >= self.rule.hold_s - 1e-6:
            self._is_told = True
            found.append(self._event)
        return found

    def close(self) -> list[Event]:
        """End the event that goes on, as at the end of a video; return it if it is one."""
        event, told = self._event, self._is_told
        self._event, self._is_told = None, False
        if event is None:
            return []
        if not told:
            self.short += 1
            return []
        return [event._replace(end_s=self._end)]
