"""Parts of a long video: which frames each has, and the clips that are read from them.

A part is treated as if it were a video of its own: its frames are those that begin in it, and the
same rule samples them; where a grid is asked for, `grid` chooses the frames of all parts. Time
counts from the first frame.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError, number
from stan_infer.video.clip import READERS, Clip, reader_of, regular_file, sample_indices
from stan_infer.video.packet_index import Index, Indices
from stan_infer.video.pyav_reader import Found, Indexed, errors_named, index_of, read_indexed
from stan_infer.video.resize import resize_and_crop
from stan_infer.video.rgb import Image
from stan_infer.video.spec import ClipSpec
from stan_infer.video.timeline import EARLY

MAX_WINDOWS = 100_000  # of one video: 27 hours in steps of a second
MIN_SECONDS, MAX_SECONDS = 0.01, 1e9
# What is read at once: more would keep results waiting, fewer would read the packets before them
# more often.
_BYTES, _PARTS = 32 * 2**20, 16


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Which parts of every video are looked at.

    seconds: length of a part, None: one part from start to end. stride: from the start of one part
    to the next, by default `seconds`. start, end: the stretch that is looked at; None: to the end.
    grid: all parts take their frames from one grid (video.grid), so that each passes the model's
    trunk once, and the stride is a whole number of its steps. Raises InputError for values that are
    not allowed.
    """

    seconds: float | None = None
    stride: float | None = None
    start: float = 0.0
    end: float | None = None
    grid: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        if self.grid and self.seconds is None:
            raise InputError("a grid needs the length of windows: --windows 8:2:grid")
        for name, value in (("length", self.seconds), ("stride", self.stride)):
            if value is not None and not (MIN_SECONDS <= value <= MAX_SECONDS):
                raise InputError(
                    f"the {name} of windows is {value:g} s; give {MIN_SECONDS} to {MAX_SECONDS:g} "
                    "s: --windows 10 is 10 seconds, --windows 10:5 one such part every 5 seconds"
                )
        if not 0 <= self.start < math.inf:
            raise InputError(f"--start {self.start:g} is no time in a video; give seconds from 0")
        if self.end is not None and not self.start < self.end < math.inf:
            raise InputError(
                f"--end {self.end:g} is not after --start {self.start:g}; give seconds"
            )

    def __str__(self) -> str:
        """As the option is given, without start and end: "8:2:grid"."""
        numbers = [self.seconds, *([] if self.stride is None else [self.stride])]
        words = [repr(n).removesuffix(".0") for n in numbers]
        return ":".join([*words, *(["grid"] if self.grid else [])])


class MiscountedError(InputError):
    """A file has another number of frames than its packets let expect, so that all are unsure."""


class Window(NamedTuple):
    """A part of a video: from start_s to end_s, with `frames` frames from number `first` on."""

    start_s: float
    end_s: float
    first: int
    frames: int

    @classmethod
    def of(cls, seconds: NDArray[np.float64], start: float, end: float) -> Window:
        """The part with the frames that begin in it, or the one that is still shown."""
        first, last = (int(i) for i in np.searchsorted(seconds, [start - EARLY, end - EARLY]))
        if last <= first:
            return cls(start, end, max(0, first - 1), 1)
        return cls(start, end, first, last - first)


class Plan(NamedTuple):
    """The parts of one video, of so many frames."""

    total_frames: int
    windows: list[Window]

    def groups(self, spec: ClipSpec) -> Iterator[list[Window]]:
        """The parts in groups that are read at once: 16, or fewer of more than 32 MiB of pixels."""
        size = max(1, min(_PARTS, _BYTES // math.prod(spec.shape)))
        for i in range(0, len(self.windows), size):
            yield self.windows[i : i + size]


def parse_windows(text: str, *, start: float = 0.0, end: float | None = None) -> Windows:
    """ "10" -> parts of 10 s, "10:5" with a stride, "10:5:grid" and "10:grid" on a grid.

    Raises InputError for anything else.
    """
    *before, last = text.split(":")
    grid = bool(before) and last == "grid"
    words = before if grid else [*before, last]
    try:
        length, stride = [*map(number, words), None] if len(words) == 1 else map(number, words)
    except ValueError:
        raise InputError(
            f"--windows {text!r} is not SECONDS or SECONDS:STRIDE, as in --windows 10:5, with "
            ":grid behind it or without"
        ) from None
    return Windows(seconds=length, stride=stride, start=start, end=end, grid=grid)


def plan_windows(path: Path, windows: Windows) -> Plan:
    """Read the packets of a video and say which parts it has, which are sampled one by one.

    Raises InputError for a file that cannot be read, whose frames have no times, or that ends
    before the stretch begins.
    """
    file = regular_file(Path(path))
    with errors_named(file):
        seconds = times_of(path, indexed(file).index)
    try:
        return Plan(len(seconds), cut(seconds, windows))
    except InputError as e:
        raise InputError(f"{path}: {e}") from e


def times_of(path: Path, index: Index) -> NDArray[np.float64]:
    """When each frame is shown, in seconds from the first; InputError where nothing says it."""
    if index.seconds is None:
        raise InputError(
            f"{path}: this kind of file does not say when its frames are shown, so that it has no "
            "windows; put it into a container, as in: ffmpeg -r 25 -i FILE -c copy OUT.mkv"
        )
    return index.seconds


def cut(seconds: NDArray[np.float64], windows: Windows) -> list[Window]:
    """The parts of a video whose frames are shown at these times, which rise from 0.

    Parts that overlap or touch cover the stretch: the last one ends with it and is moved back so
    that it has the full length. A part in which no frame begins has the frame that is still shown.
    """
    end, period = stretch(seconds, windows)
    whole = windows.seconds
    if whole is None or whole >= end - windows.start - EARLY:
        return [Window.of(seconds, windows.start, end)]
    stride = whole if windows.stride is None else windows.stride
    count = check_count(math.floor((end - windows.start - whole + EARLY) / stride) + 1)
    starts = [windows.start + i * stride for i in range(count)]
    if stride <= whole + EARLY and starts[-1] + whole < end - period / 2 - EARLY:
        starts.append(end - whole)
    return [Window.of(seconds, s, min(s + whole, end)) for s in starts]


def stretch(seconds: NDArray[np.float64], windows: Windows) -> tuple[float, float]:
    """Where the stretch that is looked at ends, and the mean time between two frames.

    A video lasts until that time after its last frame. Raises InputError where it ends before the
    stretch begins.
    """
    total = len(seconds)
    period = float(seconds[-1]) / (total - 1) if total > 1 else 0.0
    length = float(seconds[-1]) + period
    if windows.start > 0 and windows.start >= length - EARLY:
        raise InputError(f"--start {windows.start:g} is not in it: it lasts {length:.3f} s")
    return length if windows.end is None else min(windows.end, length), period


def check_count(count: int) -> int:
    """Return a number of windows; InputError for one that is not allowed."""
    if count > MAX_WINDOWS:
        raise InputError(
            f"{count} windows; allowed are {MAX_WINDOWS}: take a longer stride, or --start and "
            "--end"
        )
    return count


def read_windows(
    path: str | os.PathLike[str], spec: ClipSpec, total_frames: int, windows: Sequence[Window]
) -> list[Clip | InputError]:
    """Read parts of a plan of `plan_windows`: clips [T, S, S, 3], or why one cannot be read.

    Groups of pictures that several parts need are decoded once. Raises InputError if the file is
    gone, MissingError without the decoder's package.
    """
    if spec.views is not None:
        raise InputError("several views of windows are not read: give one of the two")
    file = regular_file(Path(path))
    try:
        return [*_read(file, spec, total_frames, windows)]
    except InputError as e:
        if len(windows) == 1:
            return [e]
    # Damage in one part leaves the others.
    found: list[Clip | InputError] = []
    for window in windows:
        found += read_windows(file, spec, total_frames, [window])
    return found


def _read(file: Path, spec: ClipSpec, total: int, windows: Sequence[Window]) -> Iterator[Clip]:
    taken = [w.first + sample_indices(w.frames, spec.frames) for w in windows]
    name, found = read_chosen(file, spec, total, np.concatenate(taken))
    for window, indices in zip(windows, taken, strict=True):
        pixels = np.stack([found.images[i][0] for i in indices.tolist()])
        seconds = (window.start_s, window.end_s)
        gap = (window.end_s - window.start_s) / spec.frames
        stated = found.stated
        length, hdr = stated.seconds, stated.hdr
        yield Clip(pixels, indices, total, name, found.size, gap, seconds, length, hdr)


def read_chosen(file: Path, spec: ClipSpec, total: int, indices: Indices) -> tuple[str, Found]:
    """Read frames of a file that has so many by its packets; return also the decoder's name."""

    def sample(count: int) -> Indices:
        if count != total:
            raise MiscountedError(
                f"{file} has {total} frames by its packets and {count} when decoded, so that their "
                "times are not known; re-encode it, or use --decoder pyav"
            )
        return indices

    def shrink(image: Image) -> Image:
        return resize_and_crop(image, spec.short_side, spec.crop)

    name = reader_of(spec)
    with errors_named(file):
        if name == "pyav":
            return name, read_indexed(file, indexed(file), sample, shrink)
        return name, READERS[name](file, sample, shrink)


def indexed(file: Path) -> Indexed:
    """What `index_of` returns; kept, so that an hour is not read anew for each of its groups."""
    status = os.stat(file)
    return _index_kept(file, (status.st_ino, status.st_size, status.st_mtime_ns))


@functools.lru_cache(maxsize=1)
def _index_kept(file: Path, stamp: tuple[int, int, int]) -> Indexed:
    return index_of(file)
