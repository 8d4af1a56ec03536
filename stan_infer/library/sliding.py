"""Embed windows on a grid: each frame passes the trunk once, each window the branch once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

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
        stream.restart()

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
        if self.is_whole and (last := self._stream.last()) is not None:
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
