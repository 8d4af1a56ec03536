"""The range of every linear's input over a set of videos, one clip at a time.

The counts so far are saved now and then in one file, the state. A stopped run goes on from there
and ends with the same numbers to the last bit, since histograms and maxima do not depend on the
order of the clips.
"""

from __future__ import annotations

import dataclasses
import io
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from stan_infer.artefacts.calibration_file import digest
from stan_infer.artefacts.npz_file import Field, read_npz
from stan_infer.config import StanConfig
from stan_infer.errors import InputError, MissingError, first_reasons
from stan_infer.network.cpu_threads import side_by_side
from stan_infer.network.folded import VideoWeights
from stan_infer.quantisation.histogram import BINS, Histogram
from stan_infer.quantisation.observe import observe
from stan_infer.quantisation.options import CalibrationOptions
from stan_infer.system import earlier_result, kept
from stan_infer.system.atomic import check_file, new_file
from stan_infer.video.clip import Clip
from stan_infer.video.decode_worker import read_clips
from stan_infer.video.spec import ClipSpec

_Observed: TypeAlias = tuple[dict[str, Histogram], Tensor] | None

SAVE_S = 20.0  # between two writes of the state: the most that a kill loses
FLAT = 2  # grey levels; a clip whose pixels differ by no more is one flat colour

_STATE = {
    "stamp": Field("str", ()),
    "names": Field("str", ("n",)),
    "clips": Field("str", ("c",)),
    "flat": Field("str", ("f",)),
    "exponents": Field("int64", ("n",)),
    "largest": Field("float64", ("n",)),
    "counts": Field("int64", ("n", BINS)),
}
why_keep_state = earlier_result.arrays(_STATE, "a calibration that was stopped")


def check_state(state: Path) -> None:
    """Raise InputError where `state` cannot be written, or is anything but an earlier state."""
    if (reason := _why_foreign(state)) is not None:
        raise InputError(
            f"the run saves its state in {state}, but {reason}: move it away, or give the result "
            "another name"
        )
    check_file(state, why_keep_state)


def remove_state(state: Path) -> None:
    """Remove the state of this run or of an earlier one; any other file of that name stays."""
    if _why_foreign(state) is None:
        state.unlink(missing_ok=True)


def _why_foreign(state: Path) -> str | None:
    """Say why `state` exists and is not a state; None where it is one, or where nothing exists."""
    if not os.path.lexists(state):
        return None
    if state.is_symlink():
        return "it is a link"
    return why_keep_state(state) if state.is_file() else "it is no regular file"


@dataclasses.dataclass
class Collected:
    """Histograms by the linear's path, and the names of the clips in them.

    flat: clips of one flat colour, which were left out. failed: videos that could not be used, with
    the reason.
    """

    ranges: dict[str, Histogram] = dataclasses.field(default_factory=dict)
    clips: list[str] = dataclasses.field(default_factory=list)
    flat: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


def video_name(path: Path, root: Path | None) -> str:
    """A video's name in records, of that video alone: below `root`, or its whole path elsewhere.

    A stopped run knows by it which videos it has counted.
    """
    if root is not None and path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return Path(os.path.abspath(path)).as_posix()


def as_input(config: StanConfig, w: VideoWeights, pixels: np.ndarray) -> Tensor:
    """Pixels uint8 [B, T, S, S, 3] in the layout of the weights: as they are, or normalised."""
    video = torch.from_numpy(pixels)
    if w.patches.layout == "BTHWC":
        return video
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    return (video.permute(0, 1, 4, 2, 3).float() - mean) / std


@dataclasses.dataclass(frozen=True)
class Known:
    """Videos that have run before, and the largest |x| of each linear's input on them, by path."""

    paths: Collection[Path] = ()
    largest: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class State:
    """The file of the state, and the key of what its counts depend on.

    A state with another key is not used. known: what need not be run for method max.
    """

    path: Path
    key: Mapping[str, Any]
    known: Known = dataclasses.field(default_factory=Known)

    @property
    def stamp(self) -> str:
        """Digest of the key."""
        return digest(dict(self.key))


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
    spec = ClipSpec.of(config)

    def run(reading: tuple[Path, Any]) -> _Observed:
        clip = reading[1]
        if not isinstance(clip, Clip) or is_flat(clip.pixels):
            return None
        video = as_input(config, weights, clip.pixels[None])
        return observe(weights, video, only_largest=only_largest)

    readings = read_clips(todo, spec, workers=options.workers, timeout_s=options.timeout_s)
    try:
        with closing(readings), closing(side_by_side(run, readings)) as observed:
            for (path, result), seen in observed:
                if isinstance(result, MissingError):
                    raise result
                error = _count(found, video_name(path, root), result, seen)
                on_clip()
                if error:
                    say(f"error: {error}")
                if time.monotonic() - saved > SAVE_S:
                    _save(state, found)
                    saved = time.monotonic()
    finally:
        if found.clips and len(found.clips) + len(found.flat) < len(paths):
            _save(state, found)
    if not found.clips:
        raise _nothing_found(found, len(paths))
    if found.flat:
        say(f"{len(found.flat)} clips are one flat colour and were left out")
    found.clips.sort()
    found.flat.sort()
    return found


def _before(state: State, say: Callable[[str], None]) -> Collected:
    """What a stopped run has counted."""
    try:
        found = _load(state) or Collected()
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
    if not bool(torch.isfinite(embedding).all()) or not all(
        np.isfinite(h.largest) for h in ranges.values()
    ):
        found.failed[name] = f"{name}: the model gives NaN or infinity on this clip; it is left out"
        return found.failed[name]
    for path, h in ranges.items():
        found.ranges.setdefault(path, Histogram()).add(h)
    found.clips.append(name)
    return None


def _save(state: State, found: Collected) -> None:
    names = sorted(found.ranges)
    packed = io.BytesIO()
    np.savez(
        packed,
        stamp=np.array(state.stamp),
        names=np.array(names),
        clips=np.array(found.clips),
        flat=np.array(found.flat, dtype=str),
        exponents=np.array([found.ranges[n].exponent for n in names], np.int64),
        largest=np.array([found.ranges[n].largest for n in names], np.float64),
        counts=np.stack([found.ranges[n].counts for n in names]),
    )
    try:
        state.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"cannot write {state.path}: {e.strerror}; give another place") from e
    with new_file(state.path, why_keep_state) as temporary:
        temporary.write_bytes(packed.getbuffer())
    count = len(found.clips) + len(found.flat)
    kept.note(state.path, f"keeps the ranges of {count} clips: the same command goes on from there")


def _load(state: State) -> Collected | None:
    """The counts of a stopped run with the same key, or None; InputError where they are damaged."""
    if not os.path.lexists(state.path):
        return None
    z = read_npz(state.path, _STATE)
    if str(z["stamp"]) != state.stamp:
        return None
    low, high = np.frexp(z["largest"])[1], 128  # powers of two, of float32
    if (z["counts"] < 0).any() or not np.isfinite(z["largest"]).all() or (z["largest"] < 0).any():
        raise InputError(f"{state.path} holds counts or maxima that are negative or not finite")
    if (z["exponents"] < low).any() or (z["exponents"] > high).any():
        raise InputError(f"{state.path} holds exponents that do not belong to its values")
    rows = zip(z["names"].tolist(), z["exponents"], z["largest"], z["counts"], strict=True)
    ranges = {n: Histogram(int(e), float(m), c) for n, e, m, c in rows}
    return Collected(ranges, z["clips"].tolist(), z["flat"].tolist())
