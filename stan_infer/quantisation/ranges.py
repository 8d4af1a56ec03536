"""The range of every linear's input over a set of videos, one clip at a time.

The counts so far are saved now and then in one file, see `state`, and once more at the end; the
caller removes it when its run has ended. A stopped run goes on from there
and ends with the same numbers to the last bit, since histograms and maxima do not depend on the
order of the clips.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from stan_infer.config import StanConfig
from stan_infer.errors import InputError, MissingError, first_reasons
from stan_infer.network.cpu_threads import side_by_side
from stan_infer.network.folded import VideoWeights
from stan_infer.quantisation.histogram import Histogram
from stan_infer.quantisation.options import CalibrationOptions
from stan_infer.quantisation.state import Collected, Known, State, load, save
from stan_infer.quantisation.watched import Watched
from stan_infer.video.clip import Clip
from stan_infer.video.decode_pool import read_clips
from stan_infer.video.spec import ClipSpec

_Observed: TypeAlias = tuple[dict[str, Histogram], np.ndarray] | None

SAVE_S = 20.0  # between two writes of the state: the most that a kill loses
FLAT = 2  # grey levels; a clip whose pixels differ by no more is one flat colour


def video_name(path: Path, root: Path | None) -> str:
    """A video's name in records, of that video alone: below `root`, or its whole path elsewhere.

    A stopped run knows by it which videos it has counted.
    """
    if root is not None and path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return Path(os.path.abspath(path)).as_posix()


def collect_ranges(
    weights: VideoWeights,
    config: StanConfig,
    paths: Sequence[Path],
    *,
    root: Path | None,
    state: State,
    options: CalibrationOptions,
    on_clip: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> Collected:
    """Run every video once and count; goes on from `state` where that is of a stopped run.

    Method max needs no counts, and gets none: a state without them serves no other method.
    on_clip: called for each video. say: takes errors of videos, among others. Raises InputError
    where no video can be used, or where all of them show one flat colour; MissingError where
    nothing decodes videos here.
    """
    only_largest = options.method == "max"
    state = dataclasses.replace(state, key={**state.key, "only_largest": only_largest})
    found = _before(state, say)
    done = {*found.clips, *found.flat}
    todo = [p for p in paths if video_name(p, root) not in done]
    if only_largest:
        todo = _take(state.known, found, todo, root)
    for _ in range(len(paths) - len(todo)):
        on_clip()
    saved = time.monotonic()
    try:
        with closing(_observed(weights, config, todo, options)) as observed:
            for (path, result), seen in observed:
                if isinstance(result, MissingError):
                    raise result
                error = _count(found, video_name(path, root), result, seen)
                on_clip()
                if error:
                    say(f"error: {error}")
                if time.monotonic() - saved > SAVE_S:
                    save(state, found)
                    saved = time.monotonic()
    finally:
        if found.clips:  # also when all are measured: hours of work may follow
            save(state, found)
    if not found.clips:
        raise _nothing_found(found, len(paths))
    if found.flat:
        say(f"{len(found.flat)} clips are one flat colour and were left out")
    found.clips.sort()
    found.flat.sort()
    return found


def _observed(
    weights: VideoWeights, config: StanConfig, todo: Sequence[Path], options: CalibrationOptions
) -> Generator[tuple[tuple[Path, Any], _Observed], None, None]:
    """Yield every video's reading, and what the linears read on it."""
    if not todo:
        return
    each: Callable[..., Generator[Any, None, None]] = side_by_side
    run: Callable[[np.ndarray], _Observed]
    if options.method == "max":
        watched = Watched(weights, config)
        each, run = watched.each, partial(_largest, watched)
    else:
        from stan_infer.quantisation.observe import counting

        run = counting(weights)

    def of(reading: tuple[Path, Any]) -> _Observed:
        clip = reading[1]
        if not isinstance(clip, Clip) or is_flat(clip.pixels):
            return None
        return run(clip.pixels[None])

    workers, timeout_s = options.workers, options.timeout_s
    readings = read_clips(todo, ClipSpec.of(config), workers=workers, timeout_s=timeout_s)
    with closing(readings), closing(each(of, readings)) as found:
        yield from found


def _largest(watched: Watched, pixels: np.ndarray) -> tuple[dict[str, Histogram], np.ndarray]:
    channels, embedding = watched.largest(pixels)
    return {path: Histogram.up_to(float(x.max())) for path, x in channels.items()}, embedding


def _before(state: State, say: Callable[[str], None]) -> Collected:
    """What a stopped run has counted."""
    try:
        found = load(state) or Collected()
    except InputError as e:
        say(f"the state of a stopped run is damaged; all clips are counted again ({e})")
        found = Collected()
    if found.clips:
        say(f"going on after {len(found.clips)} clips that a stopped run has counted")
    return found


def _take(known: Known, found: Collected, todo: Sequence[Path], root: Path | None) -> list[Path]:
    """Add what is known to `found`; return the videos that are left to run."""
    for path, largest in known.largest.items():
        found.ranges.setdefault(path, Histogram()).widen(largest)
    found.clips += [video_name(p, root) for p in todo if p in known.paths]
    return [p for p in todo if p not in known.paths]


def _nothing_found(found: Collected, count: int) -> InputError:
    if found.flat:
        return InputError(
            f"all {len(found.flat)} clips are one flat colour (black?): ranges from them would "
            "cut off real videos; give videos like those that will be embedded"
        )
    why = first_reasons(found.failed.values(), "no video was given")
    return InputError(f"none of the {count} videos could be read: {why}")


def is_flat(pixels: np.ndarray) -> bool:
    """Whether a clip is of one flat colour, such as black."""
    return int(pixels.max()) - int(pixels.min()) <= FLAT


def _count(found: Collected, name: str, result: Any, seen: _Observed) -> str | None:
    """Add one clip to `found`; return its error, if it has one. seen: None for one that is flat."""
    if not isinstance(result, Clip):
        found.failed[name] = str(result)
        return str(result)
    if seen is None:
        found.flat.append(name)
        return None
    ranges, embedding = seen
    if not np.isfinite(embedding).all() or not all(np.isfinite(h.largest) for h in ranges.values()):
        found.failed[name] = f"{name}: the model gives NaN or infinity on this clip; it is left out"
        return found.failed[name]
    for path, h in ranges.items():
        found.ranges.setdefault(path, Histogram()).add(h)
    found.clips.append(name)
    return None
