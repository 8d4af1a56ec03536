"""Windows whose frames lie on one grid of times, so that windows that overlap share them.

A window of SECONDS has T frames: step k of the grid lasts from k to k + 1 times SECONDS / T, from
the start of the stretch on, and its frame is the one that is shown in its middle. So a window from
the first to the last frame of a video has the frames of the authors' rule, where that takes every
n-th frame. Windows begin every so many whole steps. A stretch that is no longer than a window is
sampled by the authors' rule, as without a grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError
from stan_infer.video.clip import Clip, regular_file, sample_indices
from stan_infer.video.packet_index import Index, Indices
from stan_infer.video.pyav_reader import errors_named
from stan_infer.video.rgb import Image
from stan_infer.video.spec import MAX_FRAMES, ClipSpec
from stan_infer.video.timeline import EARLY
from stan_infer.video.windows import (
    MIN_SECONDS,
    MiscountedError,
    Window,
    Windows,
    check_count,
    indexed,
    read_chosen,
    stretch,
    times_of,
)

MAX_STEPS = 500_000  # of one video
_SHARE = 1e-3  # of a step, by which a stride may differ from a whole number of them
_ROUNDED = 1e-3  # seconds; Matroska stores times in milliseconds
_BYTES, _MOST = 16 * 2**20, 256  # of pixels and frames in a piece


class GridPlan(NamedTuple):
    """What is read of one video, of so many frames.

    frames: numbers of the frames that are read, in order. windows: `first` is a place in frames.
    ends: where the pieces of frames end that are read at once, so that none holds more than 16 MiB
    of pixels, and two have no group of pictures in common if that can be. sampling: "grid", or
    "clip" where the authors' rule chose the frames of the one window.
    """

    total_frames: int
    frames: list[int]
    windows: list[Window]
    ends: list[int]
    sampling: str

    def pieces(self) -> list[list[int]]:
        """The numbers of the frames of each piece."""
        return [self.frames[a:b] for a, b in zip([0, *self.ends[:-1]], self.ends, strict=True)]

    def clip(self, window: Window, read: FramesRead, pixels: NDArray[np.uint8]) -> Clip:
        """The clip of one of the windows. read: what was read with its last frame. pixels: its own,
        or none.
        """
        start, end, first, frames = window
        return Clip(
            pixels=pixels,
            indices=np.array(self.frames[first : first + frames], np.int64),
            total_frames=self.total_frames,
            decoder=read.decoder,
            source_size=read.size,
            gap_s=(end - start) / frames,
            seconds=(start, end),
            length_s=read.length_s,
            hdr=read.hdr,
            sampling=self.sampling,
        )


class FramesRead(NamedTuple):
    """Frames of a piece. pixels: uint8 [F, S, S, 3] of those that were read.

    errors: why the others were not, by their place in the piece. size: (height, width) of the
    first, as Clip.source_size. decoder, length_s, hdr: as of Clip.
    """

    pixels: NDArray[np.uint8]
    errors: dict[int, str]
    decoder: str
    size: tuple[int, int]
    length_s: float | None
    hdr: str | None


def steps_of(windows: Windows, frames: int) -> int:
    """How many steps of the grid lie between two windows of so many frames.

    Raises InputError where that is no whole number.
    """
    seconds = windows.seconds
    assert seconds is not None  # as Windows checks
    stride, step = seconds if windows.stride is None else windows.stride, seconds / frames
    steps = stride / step
    whole = round(steps)
    if whole >= 1 and abs(steps - whole) <= _SHARE:
        return whole
    digits = math.ceil(-math.log10(step * _SHARE))
    least = max(1, math.ceil(MIN_SECONDS / step))
    near = sorted({max(least, math.floor(steps)), max(least, math.floor(steps) + 1)})
    given = " or ".join(f"--windows {seconds:g}:{round(n * step, digits):g}:grid" for n in near)
    others = [f for f in range(1, MAX_FRAMES + 1) if _is_whole(stride * f / seconds)]
    others = sorted(others, key=lambda f: abs(f - frames))[:2]
    more = f", or --frames {' or '.join(map(str, sorted(others)))}" if others else ""
    raise InputError(
        f"windows of {seconds:g} s on a grid begin every whole number of its steps, of {seconds:g} "
        f"s / {frames} frames = {step:.4g} s; {stride:g} s are {steps:.4g} of them: "
        f"give {given}{more}"
    )


def _is_whole(steps: float) -> bool:
    return round(steps) >= 1 and abs(steps - round(steps)) < 1e-9


def plan_grid(path: Path, windows: Windows, spec: ClipSpec) -> GridPlan:
    """Read the packets of a video and say which frames and windows of spec.frames it has.

    Raises InputError as windows.plan_windows does, and for what `steps_of` refuses.
    """
    file = regular_file(Path(path))
    with errors_named(file):
        index = indexed(file).index
        seconds = times_of(path, index)
    try:
        plan = lay(seconds, windows, spec.frames)
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    most = max(1, min(_MOST, _BYTES // (spec.crop * spec.crop * 3)))
    return plan._replace(ends=_ends(_groups(index, plan.frames), most))


def lay(seconds: NDArray[np.float64], windows: Windows, frames: int) -> GridPlan:
    """The grid of a video whose frames are shown at these times, which rise from 0, in one piece.

    Windows that overlap or touch cover the stretch: the last one has its last steps.
    """
    apart, total = steps_of(windows, frames), len(seconds)
    whole, start, (end, period) = windows.seconds, windows.start, stretch(seconds, windows)
    assert whole is not None
    if whole >= end - start - EARLY:
        own = Window.of(seconds, start, end)
        taken = own.first + sample_indices(own.frames, frames)
        one = Window(start, end, 0, frames)
        return GridPlan(total, taken.tolist(), [one], [frames], "clip")
    step = whole / frames
    # Steps whose middle is before the end; at least T, as the stretch is longer than a window.
    steps = max(frames, math.ceil((end - start - EARLY) / step - 0.5))
    firsts = np.arange(check_count((steps - frames) // apart + 1)) * apart
    if apart <= frames and firsts[-1] + frames < steps:
        firsts = np.append(firsts, steps - frames)
    if apart <= frames:
        needed, places = np.arange(steps), firsts
    else:
        needed = (firsts[:, None] + np.arange(frames)).ravel()
        places = np.arange(len(firsts)) * frames
    if len(needed) > MAX_STEPS:
        raise InputError(
            f"{len(needed)} frames on the grid; allowed are {MAX_STEPS}: take fewer frames, longer "
            "windows, or --start and --end"
        )
    # A frame counts as shown a little before its time, as times are rounded.
    middle = start + (needed + 0.5) * step + min(_ROUNDED, period / 10)
    taken = np.searchsorted(seconds, middle, side="right") - 1
    parts = [
        Window(start + f * step, min(start + (f + frames) * step, end), p, frames)
        for f, p in zip(firsts.tolist(), places.tolist(), strict=True)
    ]
    return GridPlan(total, taken.tolist(), parts, [len(taken)], "grid")


def _groups(index: Index, frames: Sequence[int]) -> Indices:
    """For each frame the number of its group of pictures."""
    keys = np.flatnonzero(index.key)
    return np.searchsorted(keys, index.order[np.asarray(frames)], side="right")


def _ends(groups: Indices, most: int) -> list[int]:
    """Where pieces of at most so many frames end: between two groups if one ends in time."""
    ends, at = [], 0
    changes = np.array([0, *np.flatnonzero(np.diff(groups)) + 1, len(groups)])
    while at < len(groups):
        end = min(at + most, len(groups))
        last = changes[np.searchsorted(changes, end, side="right") - 1]
        at = int(last) if last > at + most // 2 else end
        ends.append(at)
    return ends


def read_frames(path: Path, spec: ClipSpec, total_frames: int, frames: Sequence[int]) -> FramesRead:
    """Read frames by number, resized and cropped; damage costs those that it concerns.

    total_frames: of the plan. Raises InputError if none can be read, or the file is gone;
    MissingError without the decoder's package.
    """
    if spec.views is not None:
        raise InputError("several views of windows are not read: give one of the two")
    file = regular_file(Path(path))
    facts: list[FramesRead] = []
    images: list[Image] = []
    errors: dict[int, str] = {}

    def read(first: int, numbers: Sequence[int]) -> None:
        try:
            name, found = read_chosen(file, spec, total_frames, np.asarray(numbers, np.int64))
        except MiscountedError:
            raise
        except InputError as e:
            if len(numbers) == 1:
                errors[first] = str(e)
                return
            half = len(numbers) // 2
            read(first, numbers[:half])
            read(first + half, numbers[half:])
            return
        says, none = found.stated, np.empty(0, np.uint8)
        facts.append(FramesRead(none, {}, name, found.size, says.seconds, says.hdr))
        images.extend(found.images[n][0] for n in numbers)

    read(0, frames)
    if not images:
        raise InputError(errors[0])
    return facts[0]._replace(pixels=np.stack(images), errors=errors)
