"""Stream: windows that slide over frames, of which each passes the trunk once.

Frames wait until a window is full, and then pass the trunk together: alone, a frame of a B/32 takes
1.4 times as long as one of eight (ONNX Runtime, 2 cores), as all weights are read for 50 rows.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from stan_infer.artefacts.parts import CHUNK
from stan_infer.config import StanConfig
from stan_infer.engines.inputs import as_numpy
from stan_infer.errors import InputError, check_number, check_whole, check_word
from stan_infer.video.frames import ORDERS, clip_of_frames
from stan_infer.video.spec import ClipSpec
from stan_infer.video.timeline import EARLY

MAX_TIME = 1e12  # seconds, forward or back


class Parts(ABC):
    """A session's network in two parts (network.fused.trunk_part, branch_part).

    Rows are arrays of the engine's own kind, K of them. F frames, B clips, T frames of each, N
    tokens of a frame, D width, S side of a frame in pixels, E embedding width.

    windows: smallest and largest T. at_once: largest F.
    """

    windows: tuple[int, int]
    at_once: int

    @abstractmethod
    def check_open(self) -> None:
        """Raise InputError once the session is closed."""

    @abstractmethod
    def trunk(self, frames: np.ndarray) -> Sequence[Any]:
        """uint8 [F, S, S, 3] RGB -> K times rows [F, N, D]."""

    @abstractmethod
    def branch(self, rows: Sequence[Any]) -> Any:
        """K times rows [B, T, N, D] -> float32 [B, E], or [B, T, E] where a session keeps rows."""

    @abstractmethod
    def room(self, frames: int) -> list[Any]:
        """K times uninitialised rows [frames, N, D]."""

    def warm_up(self, sizes: Iterable[int], window: int) -> None:
        """Do now what the first `sizes` frames, or the first window of T frames, would wait for."""
        return


class StreamedWindow(NamedTuple):
    """One full window.

    first: number of its first frame, counted among the frames that were taken. start, end: times
    of its first and last frame in seconds, None without times; of a frame that stands for several
    times of the grid, those before its own, `interval` apart. embedding: float32 [E], or [T, E]
    with a Mug head, not normalised: what embed_video gives for these T frames.
    """

    first: int
    start: float | None
    end: float | None
    embedding: Any


@dataclasses.dataclass
class StreamCounts:
    """What became of the frames that were given.

    taken: are frames of windows. skipped: lay between two times of the grid. repeated: times of the
    grid in a gap, which the frame behind it fills. late: at or before the time of an earlier frame,
    left out. gaps: longer than a window, forward or back, as by a clock that was set anew; the
    windows began anew behind each.
    """

    taken: int = 0
    skipped: int = 0
    repeated: int = 0
    late: int = 0
    gaps: int = 0


class _Waiting(NamedTuple):
    """A frame that has not passed the trunk; its pixels are in the stream's own array."""

    time: float | None
    first: int  # number of its first frame of the grid
    full: list[bool]  # of each frame of the grid that it stands for, whether a window ends there


class Stream:
    """Windows of T frames that slide over the frames which are pushed: see Session.stream."""

    def __init__(
        self,
        config: StanConfig,
        parts: Parts,
        *,
        window: int | None = None,
        stride: int = 1,
        interval: float | None = None,
        at_once: int = CHUNK,
        order: str = "rgb",
    ) -> None:
        """Take room for 2 T frames and warm up; see Session.stream for arguments and errors."""
        self._spec, self._parts, self._order = ClipSpec.of(config), parts, order
        self.window = config.frames if window is None else window
        check_whole("window", self.window, *parts.windows)
        check_whole("stride", stride, 1)
        check_whole("at_once", at_once, 1, CHUNK)
        check_word("order", str(order), ORDERS)
        if interval is not None:
            check_number("interval", interval, 1e-6, 1e6, " s")
        self.stride, self.interval = stride, interval
        self.at_once = min(at_once, parts.at_once)
        self.counts = StreamCounts()
        parts.warm_up(self._sizes(), self.window)
        # Twice the window, so that the frames of each lie side by side without a copy per window.
        self._rows = parts.room(2 * self.window)
        self._times: list[float | None] = [None] * (2 * self.window)
        self._held = 0  # frames at the start of the rows
        side = self._spec.crop
        self._pixels = np.empty((self.at_once, side, side, 3), np.uint8)  # of frames that wait
        self._waiting: list[_Waiting] = []
        self._seen = 0  # frames of the grid ever, with those that wait
        self._begun = 0  # the first of them since windows began anew
        self._next = 0  # first frame of the next window
        self._given = -1  # first frame of the last one
        self._last: float | None = None  # time of the last frame
        self._grid: tuple[float, int] | None = None  # time of its first frame, number of the next

    @property
    def bytes_held(self) -> int:
        """Most bytes that this stream holds, whatever is pushed.

        Rows of 2 T frames, which are 2 T K N D numbers of 4 bytes (2 in eager, compile and triton
        with weights in fp16 or bf16); and `at_once` frames of 3 S S bytes that wait.
        """
        return sum(int(rows.nbytes) for rows in self._rows) + self._pixels.nbytes

    def push(self, frame: Any, time: float | None = None) -> list[StreamedWindow]:
        """Add one frame; return the windows that it completes, mostly one or none.

        Args:
            frame: uint8 [H, W, 3] of any size, in the stream's order of channels.
            time: its time in seconds, which a stream with an interval needs.

        Raises:
            InputError: a frame that `Session.prepare` refuses; no time where one is needed, or one
                that is not finite. The stream is as it was before.

        Example:
            >>> import numpy as np, stan_infer as si
            >>> with si.open_session("examples/motion/motion.safetensors") as session:
            ...     stream = session.stream(window=8, stride=4)
            ...     frame = np.zeros((64, 64, 3), np.uint8)
            ...     found = [len(stream.push(frame)) for _ in range(12)]
            >>> found
            [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]
        """
        return self.extend([frame], None if time is None else [time])

    def extend(
        self, frames: Sequence[Any] | np.ndarray, times: Iterable[float] | None = None
    ) -> list[StreamedWindow]:
        """Add frames as `push` does, several of which pass the trunk at once.

        Args:
            frames: a list of frames, each uint8 [H, W, 3], or an array uint8 [N, H, W, 3].
            times: of each frame in seconds.

        Returns:
            A list of StreamedWindow.
        """
        moments = self._moments(len(frames), times)
        found: list[StreamedWindow] = []
        for i in range(0, len(frames), self.at_once):
            part = slice(i, i + self.at_once)
            found += self._add(frames[part], moments[part])
        return found

    def take(self, frames: np.ndarray) -> list[StreamedWindow]:
        """Add frames as read_clip or prepare makes them; all are taken, whatever the interval.

        Args:
            frames: uint8 [N, S, S, 3] RGB.

        Returns:
            The windows that they complete.

        Raises:
            InputError: frames of another type or size.
        """
        s = self._spec.crop
        if frames.dtype != np.uint8 or frames.shape[1:] != (s, s, 3):
            raise InputError(
                f"frames are {frames.dtype} {list(frames.shape)}; this model takes uint8 "
                f"[N, {s}, {s}, 3]: push takes others"
            )
        self._parts.check_open()
        found: list[StreamedWindow] = []
        for i in range(0, len(frames), self.at_once):
            found += self._wait([(x, None, 1, False) for x in frames[i : i + self.at_once]])
        return found

    def last(self) -> StreamedWindow | None:
        """The window of the last T frames: None where it was given, or there are not so many.

        With it the end of a recording is in a window, whatever the stride.
        """
        first = self._seen - self.window
        if first < self._begun or first <= self._given:
            return None
        self._parts.check_open()
        self._pass()
        return self._window(first)

    def restart(self, skip: int = 0) -> None:
        """Forget the frames that are held; the next window begins `skip` frames after the next."""
        check_whole("skip", skip, 0)
        self._held, self._waiting = 0, []
        self._begun, self._next = self._seen, self._seen + skip

    def _sizes(self) -> list[int]:
        """How many frames pass the trunk together, where they are pushed one by one."""
        found = {self.at_once} if max(self.window, self.stride) >= self.at_once else set()
        found |= {n % self.at_once for n in (self.window, self.stride)} - {0}
        return sorted(found)

    def _moments(self, count: int, times: Iterable[float] | None) -> list[float | None]:
        if times is None:
            if self.interval is not None:
                raise InputError("a stream with an interval needs the time of every frame")
            return [None] * count
        given = [*times]
        if len(given) != count:
            raise InputError(f"{len(given)} times for {count} frames; give one each")
        for time in given:
            check_number("the time of a frame", time, -MAX_TIME, MAX_TIME, " s")
        return [float(time) for time in given]

    def _add(
        self, frames: Sequence[Any] | np.ndarray, times: Sequence[float | None]
    ) -> list[StreamedWindow]:
        self._parts.check_open()
        before = dataclasses.replace(self.counts), self._last, self._grid
        chosen = []
        try:
            for frame, time in zip(frames, times, strict=True):
                if (slot := self._slot(time)) is not None:  # others are not even resized
                    pixels = clip_of_frames([frame], self._spec, order=self._order, sample=False)
                    chosen.append((pixels[0], *slot))
        except InputError:
            self.counts, self._last, self._grid = before
            raise
        return self._wait(chosen)

    def _wait(
        self, frames: Iterable[tuple[np.ndarray, float | None, int, bool]]
    ) -> list[StreamedWindow]:
        """Take frames, each [S, S, 3] with what _slot returned; return the windows that are full.

        They pass the trunk where a window is full, or no other frame may wait.
        """
        found: list[StreamedWindow] = []
        for pixels, time, copies, anew in frames:
            if len(self._waiting) == self.at_once:
                found += self._pass()
            if anew:
                self._begun = self._next = self._seen
            frame = _Waiting(time, self._seen, [])
            for _ in range(copies):
                self._seen += 1
                first = self._seen - self.window
                is_full = first >= max(self._next, self._begun)
                if is_full:
                    self._next = first + self.stride
                frame.full.append(is_full)
            self._pixels[len(self._waiting)] = pixels
            self._waiting.append(frame)
            self.counts.taken += 1
        is_full = any(any(frame.full) for frame in self._waiting)
        return found + (self._pass() if is_full or len(self._waiting) == self.at_once else [])

    def _pass(self) -> list[StreamedWindow]:
        """Run the trunk on the frames that wait; return the windows that they complete."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return []
        try:
            rows = self._parts.trunk(self._pixels[: len(waiting)])
        except BaseException:
            self.restart()  # else later windows would lack these frames
            raise
        found: list[StreamedWindow] = []
        for i, frame in enumerate(waiting):
            for k, is_full in enumerate(frame.full, 1):
                at, ahead = frame.time, len(frame.full) - k
                if at is not None and self.interval and ahead:
                    at -= ahead * self.interval
                self._store([x[i] for x in rows], at)
                if is_full:
                    found.append(self._window(frame.first + k - self.window))
        return found

    def _slot(self, time: float | None) -> tuple[float | None, int, bool] | None:
        """Time of a frame, how many frames of the grid it is, and whether windows begin anew."""
        if self.interval is None or time is None:
            return time, 1, False
        last, self._last = self._last, time
        set_back = last is not None and time < last - self.window * self.interval
        if last is not None and time <= last and not set_back:
            self.counts.late += 1
            self._last = last
            return None
        begin, number = self._grid or (time, 0)
        copies = math.floor((time - begin + EARLY) / self.interval) + 1 - number
        if copies > self.window or set_back:
            self.counts.gaps += 1
            self._grid = time, 1
            return time, 1, True
        if copies < 1:
            self.counts.skipped += 1
            return None
        self.counts.repeated += copies - 1
        self._grid = begin, number + copies
        return time, copies, False

    def _store(self, rows: Sequence[Any], time: float | None) -> None:
        """Put one frame behind the others."""
        if self._held == 2 * self.window:
            keep = self.window - 1
            for held in self._rows:
                held[:keep] = held[self._held - keep :]
            self._times[:keep] = self._times[self._held - keep :]
            self._held = keep
        for held, row in zip(self._rows, rows, strict=True):
            held[self._held] = row
        self._times[self._held] = time
        self._held += 1

    def _window(self, first: int) -> StreamedWindow:
        """Run the branch on the last T frames that are stored; first: number of their first."""
        low, self._given = self._held - self.window, first
        embeddings = self._parts.branch([x[low : self._held][None] for x in self._rows])
        start, end = self._times[low], self._times[self._held - 1]
        return StreamedWindow(first, start, end, as_numpy(embeddings)[0])
