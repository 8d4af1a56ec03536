"""Which videos the ranges are measured on, and which others the result is checked on."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from stan_infer.errors import InputError
from stan_infer.quantisation.options import CalibrationOptions
from stan_infer.quantisation.ranges import choose_videos
from stan_infer.system.outside_file import open_regular

MIN_RANGED = 8  # videos for the ranges
MIN_CHECKED = 8  # others to check on: fewer do not show what 8 bits do to the worst clip
PART = 4  # one video in PART is held out
_ENDS = 2**16  # bytes of a file's head and of its tail that tell its content


@dataclasses.dataclass(frozen=True)
class Parts:
    """ranged: videos for the ranges. held: others, to check on; with a task those that it asks for.

    different: how many of the videos looked at have different contents. copies: how many others
    have the content of one of those. is_checked: False where there are too few to hold any out;
    then `held` are those of the ranges.
    """

    ranged: list[Path]
    held: list[Path]
    different: int
    copies: int
    is_checked: bool


def too_few(found: str, options: CalibrationOptions) -> InputError:
    """The error where nothing, or not enough, can be held out."""
    ranged = min(MIN_RANGED, options.samples)
    return InputError(
        f"{found}, and {ranged + MIN_CHECKED} are needed: {ranged} for the ranges and "
        f"{MIN_CHECKED} others to check on; give more videos, or --force, which checks nothing"
    )


def divide(
    videos: Sequence[Path],
    root: Path | None,
    *,
    samples: int,
    seed: int,
    asked: Collection[Path] = (),
) -> Parts:
    """Choose at most `samples` videos for the ranges, and hold a quarter of all out, at least 8.

    The choice depends on names and contents, not on the order. Copies of one file count once, so
    they cannot stand on both sides. asked: the videos of a labelled task; ranges take others first,
    and always leave a quarter of these.
    """
    want = max(MIN_CHECKED, samples // (PART - 1))
    named = choose_videos(videos, root, len(videos), seed)
    tasked = set(asked)
    named.sort(key=lambda path: path in tasked)
    looked_at = named[: PART * (samples + want)]
    pool = _by_content(looked_at, seed)
    of_task = _by_content(asked, seed)
    copies = len(looked_at) - len(pool)
    if tasked:
        copies = max(copies, len(tasked) - len(of_task))
        free = [key for key in pool if key not in of_task]
        most = len(of_task) - max(MIN_CHECKED, len(of_task) // PART)
        ranged = (free + [key for key in pool if key in of_task][: max(most, 0)])[:samples]
        taken = set(ranged)
        held = [path for path in asked if content_key(path, seed) not in taken]
        different, is_checked = len({*pool, *of_task}), len(held) >= MIN_CHECKED
        if not is_checked:
            ranged, held = list(pool)[:samples], list(asked)
    else:
        different = len(pool)
        count = want if len(pool) >= samples + want else max(MIN_CHECKED, len(pool) // PART)
        ranged, others = list(pool)[count:][:samples], list(pool)[:count]
        is_checked = len(ranged) >= min(MIN_RANGED, samples)
        if not is_checked:
            ranged = others = list(pool)[:samples]
        held = [pool[key] for key in others]
    return Parts([pool[key] for key in ranged], held, different, copies, is_checked)


def _by_content(paths: Collection[Path], seed: int) -> dict[str, Path]:
    """Paths by their contents, in the order of these; of copies the first by name."""
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(content_key(path, seed), path)
    return dict(sorted(found.items()))


def content_key(path: Path, seed: int) -> str:
    """A hash of seed and of a file's size, head and tail, or of its name where it is unreadable."""
    content = hashlib.sha256(f"{seed}:".encode())
    try:
        opened, size = open_regular(path)
        with opened as file:
            content.update(f"{size}:".encode() + file.read(_ENDS))
            file.seek(max(size - _ENDS, 0))
            content.update(file.read(_ENDS))
    except (InputError, OSError):
        content.update(os.fsencode(path))
    return content.hexdigest()
