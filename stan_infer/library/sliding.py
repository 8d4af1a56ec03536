"""Embed windows on a grid: each frame passes the trunk once, each window the branch once."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stan_infer.engines.inputs import as_numpy
from stan_infer.engines.session import Session
from stan_infer.engines.stream import CHUNK, Stream, StreamedWindow
from stan_infer.errors import MissingError, StanError
from stan_infer.library.readings import EmbedOptions, Reading
from stan_infer.video.decode_pool import read_grids
from stan_infer.video.gaps import Gaps
from stan_infer.video.grid import FramesRead, GridPlan, steps_of
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Windows

_NO_PIXELS = np.empty(0, np.uint8)
_log = logging.getLogger(__name__)


def slide_batches(
    session: Session,
    paths: Iterable[Path],
    options: EmbedOptions,
    spec: ClipSpec,
    windows: Windows,
    *,
    note: bool,
) -> Generator[list[Reading], None, None]:
    """As embed.embed_batches, for windows on a grid; clips have no pixels.

    options.batch has no effect: the branch runs for one window at a time. What is held of a video
    does not grow with its length: pieces of frames that wait, and the rows of two windows. Raises
    InputError where the session does not stream, or the stride is not of the grid.
    """
    stream = stream_of(session, spec, windows)
    gaps = Gaps()
    how: Any = {"workers": options.workers, "timeout_s": options.timeout_s}
    with closing(read_grids(paths, spec, windows, **how)) as found:
        video: _Video | None = None
        for path, result in found:
            if isinstance(result, MissingError):
                raise result
            if isinstance(result, GridPlan):
                video = _Video(stream, path, result)
            elif video is None or video.is_whole:
                yield [Reading(path, None, None, str(result))]  # it has no plan
            else:
                for readings in video.add(result):
                    for reading in readings:
                        if reading.clip is not None:
                            gaps.add(path, reading.clip.gap_s)
                    yield readings
    if note and (text := gaps.note(spec.frames)):
        _log.warning("%s", text)


def stream_of(session: Session, spec: ClipSpec, windows: Windows) -> Stream:
    """A stream for such windows: InputError where there is none."""
    return session.stream(spec.frames, min(steps_of(windows, spec.frames), spec.frames))


def embedder(
    session: Session, spec: ClipSpec, windows: Windows | None
) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    """What embeds one clip [T, S, S, 3] as the rows of a library with such windows are made."""
    if windows is None or not windows.grid:
        return lambda clip: as_numpy(session.embed_video(clip[None]))[0]
    stream = stream_of(session, spec, windows)

    def embed(clip: NDArray[np.uint8]) -> NDArray[Any]:
        stream.restart()
        (window,) = stream.take(clip)
        found: NDArray[Any] = window.embedding
        return found

    return embed


class _Video:
    """One video that slides by."""

    def __init__(self, stream: Stream, path: Path, plan: GridPlan) -> None:
        self._stream, self._path, self._plan = stream, path, plan
        self._sizes = [len(piece) for piece in plan.pieces()]
        self._at = 0  # frames that have come
        self._next = 0  # windows that have gone
        stream.restart(plan.windows[0].first)

    @property
    def is_whole(self) -> bool:
        """Whether all of its frames have come."""
        return self._at == len(self._plan.frames)

    def add(self, piece: FramesRead | StanError) -> Iterator[list[Reading]]:
        """The windows that the next piece completes, or that it lost."""
        size = self._sizes.pop(0)
        if not isinstance(piece, FramesRead):
            self._at += size
            yield self._lost(str(piece), self._at)
            return
        given, first = 0, self._at  # frames of pixels that were taken
        for place, error in (*sorted(piece.errors.items()), (size, None)):
            while self._at < first + place:
                count = min(CHUNK, first + place - self._at)
                self._at += count
                part = piece.pixels[given : given + count]
                given += count
                yield [self._reading(w, piece) for w in self._stream.take(part)]
            if error is not None:
                self._at += 1
                yield self._lost(error, self._at)
        if self.is_whole and self._next < len(self._plan.windows):
            last = self._stream.last()
            assert last is not None, "a window is neither there nor lost"
            yield [self._reading(last, piece)]

    def _lost(self, error: str, before: int) -> list[Reading]:
        """The windows with the frame before place `before`, or earlier ones that did not come."""
        windows, first = self._plan.windows, self._next
        while self._next < len(windows) and windows[self._next].first < before:
            self._next += 1
        left = windows[self._next :][:1]  # without one, fewer than T frames are left
        self._stream.restart(left[0].first - before if left else 0)
        return [Reading(self._path, None, None, error)] * (self._next - first)

    def _reading(self, found: StreamedWindow, piece: FramesRead) -> Reading:
        window = self._plan.windows[self._next]
        self._next += 1
        if not np.isfinite(found.embedding).all():
            error = f"{self._path}: the model gives values that are not finite"
            return Reading(self._path, None, None, error)
        clip = self._plan.clip(window, piece, _NO_PIXELS)
        return Reading(self._path, clip, found.embedding, None)


class Segment(NamedTuple):
    """Windows of a video that can be embedded by themselves: their plan and its pieces."""

    plan: GridPlan
    pieces: list[FramesRead | StanError]


def segments(plan: GridPlan, pieces: Iterable[FramesRead | StanError]) -> Iterator[Segment]:
    """Divide a video: a segment for each piece in which windows end.

    It holds the piece, and of those before what its windows need. Last bits of vectors may differ
    from those of the video in one go, as other frames pass the trunk together.
    """
    held: deque[tuple[int, int, FramesRead | StanError]] = deque()  # start, end
    begin = at = 0
    for end, piece in zip(plan.ends, pieces, strict=True):
        held.append((begin, end, piece))
        begin, until = end, at
        while until < len(plan.windows) and sum(plan.windows[until][2:]) <= end:
            until += 1
        if until > at:
            windows, at = plan.windows[at:until], until
            first = windows[0].first
            parts = [(max(a, first) - a, b, p) for a, b, p in held if b > first]
            own = plan._replace(
                frames=plan.frames[first:end],
                windows=[w._replace(first=w.first - first) for w in windows],
                ends=[b - first for _, b, _ in parts],
            )
            yield Segment(own, [_without(p, skip) for skip, _, p in parts])
        needed = plan.windows[at].first if at < len(plan.windows) else end
        while held and held[0][1] <= needed:
            held.popleft()


def _without(piece: FramesRead | StanError, skip: int) -> FramesRead | StanError:
    """A piece without its first frames."""
    if not isinstance(piece, FramesRead):
        return piece
    lost = sum(i < skip for i in piece.errors)
    errors = {i - skip: e for i, e in piece.errors.items() if i >= skip}
    return piece._replace(pixels=piece.pixels[skip - lost :], errors=errors)


def embed_segment(stream: Stream, path: Path, segment: Segment) -> list[Reading]:
    """The windows of a segment, or why they have no vectors."""
    video = _Video(stream, path, segment.plan)
    return [r for p in segment.pieces for readings in video.add(p) for r in readings]
