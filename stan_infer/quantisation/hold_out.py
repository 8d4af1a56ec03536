"""Which videos the ranges are measured on, and which others the result is checked on."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from stan_infer.errors import InputError, see
from stan_infer.quantisation.options import CalibrationOptions
from stan_infer.video.copies import content_key

MIN_RANGED = 8  # videos for the ranges
MIN_CHECKED = 8  # others to check on: fewer do not show what 8 bits do to the worst clip
PART = 4  # one video in PART is held out
_LOOKED_AT = 2  # times as many videos as are needed, as some may turn out to be broken


@dataclasses.dataclass(frozen=True)
class Parts:
    """Videos of different contents, divided by content, so that copies are on one side.

    ranged: for the ranges, the first options.samples of them; others stand in for held ones that
    cannot be used. held: to check on; with a task all of its videos that are not in `ranged`.
    is_checked: False where there are too few to hold any out; then `held` are those of
    the ranges, or all of the task's. why: how many there are and are needed, in words. copies: how
    many others have the content of one. double: of the task's videos those that have the content of
    another of them, which counts in their place.
    """

    ranged: list[Path]
    held: list[Path]
    is_checked: bool
    why: str
    copies: int
    double: Mapping[Path, Path] = dataclasses.field(default_factory=dict)

    def first(self, samples: int, reads_held: bool) -> list[Path]:
        """The videos that are read in any case, in this order, unless some cannot be used."""
        return [*(self.held if reads_held else ()), *self.ranged[:samples]]


def least_ranged(options: CalibrationOptions) -> int:
    """How many videos must set the ranges where others check."""
    return min(MIN_RANGED, options.samples)


def too_few(found: str) -> InputError:
    """The error where not enough can be held out. found: how many there are and are needed."""
    return InputError(
        f"{found}: give more videos, or --force, which writes a result that nothing checked"
        f"{see('docs/calibrate')}"
    )


def divide(
    videos: Sequence[Path], options: CalibrationOptions, asked: Sequence[Path] = ()
) -> Parts:
    """Choose at most options.samples videos for the ranges; hold a quarter of all out, at least 8.

    The choice depends on options.seed and on contents, not on names or the order: with a video
    more, at most one other changes sides. asked: the videos of a labelled task, of which a quarter,
    at least 8, is always held out; ranges take others first.
    """
    samples, seed = options.samples, options.seed
    want = max(MIN_CHECKED, samples // (PART - 1))
    others = _by_size(set(videos) - set(asked), seed)
    pool, copies = _different(others, seed, _LOOKED_AT * (samples + want))
    if asked:
        tasked, more = _different(asked, seed, len(asked))
        parts = _beside_a_task(pool, tasked, options)
        twins = len(pool.keys() & tasked.keys())
        return dataclasses.replace(parts, copies=len(copies) + len(more) + twins, double=more)
    found = list(pool.values())
    held = min(want, max(MIN_CHECKED, len(found) // PART))  # all of `want` where there are enough
    least = least_ranged(options)
    there = "1 different video is" if len(found) == 1 else f"{len(found)} different videos are"
    why = (
        f"{there} there, and {least + MIN_CHECKED} are needed, {least} "
        f"for the ranges and {MIN_CHECKED} others to check on"
    )
    if len(found) < held + least:
        return Parts(found[:samples], found[:samples], False, why, len(copies))
    return Parts(found[held:], found[:held], True, why, len(copies))


def _beside_a_task(
    pool: Mapping[str, Path], tasked: Mapping[str, Path], options: CalibrationOptions
) -> Parts:
    """Divide, where `tasked` have labels, and `pool` are others, which may be copies of those."""
    samples, least = options.samples, least_ranged(options)
    free = [path for key, path in pool.items() if key not in tasked]
    spare = list(tasked.values())[max(MIN_CHECKED, len(tasked) // PART) :]
    ranged = (free + spare)[:samples]
    held = list(tasked.values())[: len(tasked) - max(len(ranged) - len(free), 0)]
    why = (
        f"{len(tasked)} different videos with labels and {len(free)} others are there, and needed "
        f"are {MIN_CHECKED} with labels to check on and {least} others for the ranges"
    )
    if len(held) < MIN_CHECKED or len(ranged) < least:
        return Parts((free + list(tasked.values()))[:samples], list(tasked.values()), False, why, 0)
    return Parts(ranged, held, True, why, 0)


def _by_size(videos: Collection[Path], seed: int) -> list[Path]:
    """Paths in an order of their files' sizes that `seed` shuffles: copies are together.

    So the first of very many are chosen by what they hold, without reading all.
    """

    def key(path: Path) -> tuple[str, str]:
        try:
            size = path.stat().st_size
        except (OSError, ValueError):
            size = -1
        return hashlib.sha256(f"{seed}:{size}".encode()).hexdigest(), os.fspath(path)

    return sorted(videos, key=key)


def _different(
    videos: Iterable[Path], seed: int, most: int
) -> tuple[dict[str, Path], dict[Path, Path]]:
    """The first videos of different contents, at most `most`, by a hash of these and sorted by it;
    and by the path of each copy among them the one that counts, the first in the order of names.
    """
    found: dict[str, list[Path]] = {}
    for path in dict.fromkeys(videos):
        key = content_key(path, seed)
        if key not in found and len(found) == most:
            break
        found.setdefault(key, []).append(path)
    for same in found.values():
        same.sort(key=os.fspath)
    copies = {copy: same[0] for same in found.values() for copy in same[1:]}
    return {key: found[key][0] for key in sorted(found)}, copies
