"""Watch: scores of windows that slide over a source, and the events of texts."""

from __future__ import annotations

import dataclasses
import datetime
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stan_infer.engines.session import Session
from stan_infer.errors import InputError, check_number, check_word
from stan_infer.library.texts import embed_texts
from stan_infer.text.templates import PLAIN, Templates, read_templates
from stan_infer.video.feed import Feed, FeedFrame, FeedOptions
from stan_infer.video.spec import check_frames
from stan_infer.watch.curve import Curve
from stan_infer.watch.events import Event, Rule, Track

MEASURES = ("probability", "score")
ON, OFF = 0.6, 0.4  # of probabilities
SECONDS, STRIDE = 8.0, 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What is watched for.

    seconds: length of a window. frames: T, which are spread over it; None: the model's.
    stride: seconds from one window to the next, None: `seconds`; it is rounded to whole frames of
    the grid, see Watch.stride_s.
    measure: what thresholds are about: "probability", the share of a text among all texts, 0 to 1,
    by the softmax of scores at the model's temperature; or "score", the cosine or Mug score itself,
    whose scale is the model's own. on, off: see events.Rule; None: 0.6 and 0.4 for probabilities,
    while for scores both must be given. hold_s: events that last less are none.
    Raises InputError for other values.
    """

    seconds: float = SECONDS
    stride: float | None = STRIDE
    frames: int | None = None
    measure: str = "probability"
    on: float | None = None
    off: float | None = None
    hold_s: float = 0.0

    def __post_init__(self) -> None:
        """Check every value."""
        check_number("the length of windows", self.seconds, 0.01, 86400, " s")
        if self.stride is not None:
            check_number("the stride of windows", self.stride, 0.001, 86400, " s")
        if self.frames is not None:
            check_frames(self.frames)
        check_word("measure", self.measure, MEASURES)
        _ = self.rule

    @property
    def rule(self) -> Rule:
        """The rule of events."""
        on, off = self.on, self.off
        if self.measure == "score":
            if on is None or off is None:
                raise InputError(
                    "with --measure score give --on and --off: every model has a scale of its own. "
                    "--plot shows the scores of a video, and `stan-infer run` prints them"
                )
            return Rule(on=on, off=off, hold_s=self.hold_s)
        for name, value in (("--on", on), ("--off", off)):
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is {value:g}, but probabilities lie in 0 to 1")
        # Where one is given, the other's default must not contradict it.
        on = max(ON, off or 0.0) if on is None else on
        return Rule(on=on, off=min(OFF, on) if off is None else off, hold_s=self.hold_s)


class ScoredWindow(NamedTuple):
    """The scores of one window.

    start_s, end_s: what it covers, in seconds; it stands for stride_s around its middle.
    scores: float32 [Q], of texts, then of those against. values: float64 [Q], what is measured.
    """

    start_s: float
    end_s: float
    scores: NDArray[np.float32]
    values: NDArray[np.float64]


class Watch:
    """Watches one source for texts: iterate over it for its windows and events as they come.

    Times are seconds: of a file from its first frame, of a camera or stream from the first
    connection. An Event comes when it begins (end_s None) and when it ends. A window stands for
    `stride_s` seconds around its middle, and an event reaches from the first to the last of these.
    Where a source is lost, what goes on ends. Use as a context manager, from one thread.

    Attributes:
        texts: the names of all texts, Q. watched: how many of them have events, the first.
        stride_s: seconds from one window to the next, as rounded. counts: video.feed.FeedCounts.
        windows, events: how many there were. end_s: the end of the last window.
        curve: values over time and events, in bounded memory.

    Example:
        >>> import stan_infer as si
        >>> from stan_infer.watch.watch import Watch, WatchOptions
        >>> from stan_infer.watch.events import Event
        >>> clip, texts = "examples/motion/clips/green_bar_grows.mp4", ["a shape grows"]
        >>> with si.open_session("examples/motion/motion.safetensors") as session:
        ...     options = WatchOptions(seconds=1, stride=0.5)
        ...     with Watch(session, clip, texts, ["a shape fades in"], options) as watch:
        ...         found = [x for x in watch if isinstance(x, Event) and x.end_s is not None]
        >>> watch.windows, all(event.text == "a shape grows" for event in found)
        (3, True)
    """

    def __init__(
        self,
        session: Session,
        source: str,
        texts: Sequence[str],
        against: Sequence[str] = (),
        options: WatchOptions | None = None,
        reading: FeedOptions | None = None,
        *,
        templates: Templates | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Embed the texts and start to read.

        Args:
            session: of an engine that has `stream`.
            source: a file, a camera (/dev/video0, on Linux) or an address such as rtsp://host/x.
            texts: what is watched for. against: what else may be seen; it shares the probability
                and has no events.
            options: WatchOptions. reading: FeedOptions.
            templates: of the texts, see text.templates.read_templates.
            say: gets a line for each loss and return of a source, and for each note.

        Raises:
            InputError: a source that cannot be one, texts that are none, blank or there twice, one
                text alone with probabilities, a session without `stream`, values out of range.
        """
        options = options or WatchOptions()
        self.texts, self.watched = [*texts, *against], len(texts)
        _check_texts(self.texts, self.watched, options.measure)
        self._options, self._session = options, session
        count = session.config.frames if options.frames is None else options.frames
        self._interval = options.seconds / count
        wanted = options.seconds if options.stride is None else options.stride
        frames = max(1, round(wanted / self._interval))
        self.stride_s = frames * self._interval
        if abs(self.stride_s - wanted) > 1e-6 * wanted:
            say(
                f"note: a window every {self.stride_s:.4g} s, not {wanted:g} s: {frames} of its "
                f"{count} frames, which are {self._interval:.4g} s apart"
            )
        self._stream = session.stream(count, frames, interval=self._interval)
        self._texts = embed_texts(session, self.texts, templates or read_templates(PLAIN))
        self._tracks = [Track(text, options.rule) for text in texts]
        self.curve = Curve(len(self.texts))
        self.windows = self.events = 0
        self.end_s = 0.0
        self._numbers: dict[str, int] = {}
        self.latest: ScoredWindow | None = None
        self._began = datetime.datetime.now().astimezone()
        self._feed = Feed(source, self._interval, reading, say=say)
        self.counts = self._feed.counts

    def __enter__(self) -> Watch:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the reading."""
        self._feed.close()

    @property
    def source(self) -> str:
        """The source, without what is secret in its address."""
        return self._feed.source.shown

    @property
    def rule(self) -> Rule:
        """When events begin and end."""
        return self._options.rule

    @property
    def measure(self) -> str:
        """What the values are: "probability" or "score"."""
        return self._options.measure

    @property
    def head(self) -> str:
        """The head of the model, which says what its scores are."""
        return self._session.config.head

    @property
    def live(self) -> bool:
        """Whether it is a camera, a stream, or a file in real time."""
        return bool(self._feed.live)

    @property
    def is_on(self) -> list[bool]:
        """Which of the texts that are watched for have an event that goes on."""
        return [track.is_on for track in self._tracks]

    @property
    def length_s(self) -> float | None:
        """Seconds of a file whose header says it, once it is open."""
        return self._feed.length_s

    def clock(self, time_s: float | None) -> datetime.datetime | None:
        """The date of a time of a live source; None for another, or without a time.

        It goes on evenly where this machine's clock is set anew.
        """
        if not self.live or time_s is None:
            return None
        return self._began + datetime.timedelta(seconds=time_s)

    def __iter__(self) -> Iterator[ScoredWindow | Event]:
        """Yield windows and events until the source ends.

        Raises:
            InputError: the source cannot be read, or was lost for good; events that went on can
                still be had from `finish`.
        """
        while items := self._feed.take():
            frames: list[FeedFrame] = []
            for item in items:
                if isinstance(item, FeedFrame):
                    frames.append(item)
                    continue
                yield from self._scored(frames)
                frames = []
                yield from self._break()
            yield from self._scored(frames)
        if self.windows == 0 and not self.live:
            raise InputError(
                f"{self.source} is shorter than one window of {self._options.seconds:g} s: give "
                "--windows SECONDS"
            )
        yield from self.finish()

    def finish(self) -> list[Event]:
        """End what goes on, as at the end of the source; return these events."""
        return self._told([event for track in self._tracks for event in track.close()])

    def summary(self) -> dict[str, Any]:
        """What was seen, as JSON types."""
        stream = self._stream.counts
        return {
            "source": self.source,
            "live": self.live,
            "began": self._began.isoformat() if self.live else None,
            "seconds": self.end_s,
            "windows": self.windows,
            "window_s": self._options.seconds,
            "stride_s": self.stride_s,
            "measure": self._options.measure,
            **dataclasses.asdict(self._options.rule),
            "texts": self.texts[: self.watched],
            "against": self.texts[self.watched :],
            "events": self.events,
            "short": sum(track.short for track in self._tracks),
            "frames": dataclasses.asdict(self.counts)
            | {"taken": stream.taken, "repeated": stream.repeated, "gaps": stream.gaps},
            "session": self._session.describe(),
        }

    def _scored(self, frames: Sequence[FeedFrame]) -> Iterator[ScoredWindow | Event]:
        if not frames:
            return
        times = [frame.time for frame in frames]
        for found in self._stream.extend([frame.pixels for frame in frames], times):
            assert found.end is not None
            scores = self._texts.scores(found.embedding)
            values = scores.astype(np.float64)
            if self._options.measure == "probability":
                values = self._texts.probabilities(scores)
            end = found.end + self._interval  # the time of its last frame, too
            window = ScoredWindow(end - self._options.seconds, end, scores, values)
            yield from self._window(window)

    def _window(self, window: ScoredWindow) -> Iterator[ScoredWindow | Event]:
        self.windows += 1
        middle = (window.start_s + window.end_s) / 2
        half = self.stride_s / 2
        if self.curve.times.size and middle - self.curve.times[-1] > 1.5 * self.stride_s:
            self.curve.add_break()
        self.end_s, self.latest = window.end_s, window
        self.curve.add(middle, window.values)
        found = []
        for track, value in zip(self._tracks, window.values.tolist(), strict=False):
            found += track.add(middle - half, middle + half, value)
        yield window
        yield from self._told(found)

    def _break(self) -> list[Event]:
        self.curve.add_break()
        return self.finish()

    def _told(self, events: Sequence[Event]) -> list[Event]:
        """Number events, and keep those that ended."""
        found = []
        for event in events:
            if event.end_s is None:
                self.events += 1
                self._numbers[event.text] = self.events
            numbered = event._replace(number=self._numbers[event.text])
            if event.end_s is not None:
                self.curve.events.append(numbered)
            found.append(numbered)
        return found


def _check_texts(texts: Sequence[str], watched: int, measure: str) -> None:
    if not watched:
        raise InputError("there is no text to watch for: give --text TEXT (once or more)")
    for text, count in Counter(texts).items():
        if count > 1:
            raise InputError(f"text {text[:60]!r} is there twice; give each text once")
    if measure == "probability" and len(texts) == 1:
        raise InputError(
            "one text alone always has probability 1: say what else may be seen, with --not TEXT "
            "or another --text, or take --measure score with --on and --off"
        )
