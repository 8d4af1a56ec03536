"""Find video files: all in a folder, or those of given names, which cannot lead out of it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath

from stan_infer.errors import InputError

SUFFIXES = tuple(".mp4 .mkv .webm .avi .mov .m4v .mpg .mpeg .ts .flv .wmv .3gp .gif".split())


def list_videos(paths: Sequence[Path]) -> list[Path]:
    """Return the videos that `paths` name: files as given, folders walked in sorted order.

    A folder gives everything below it with a known suffix (SUFFIXES, any case), even if it cannot
    be read, so that this is reported; hidden names and links to folders are passed over. Raises
    InputError for a path that does not exist, a folder that cannot be read and a folder without any
    video.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if os.path.isdir(path):
            inside = _walk(path)
            if not inside:
                raise InputError(f"folder {path} holds no video ({' '.join(SUFFIXES)})")
            found += inside
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise InputError(f"no such video file or folder: {path}; check the spelling")
    return found


def _walk(folder: Path) -> list[Path]:
    def fail(e: OSError) -> None:
        raise InputError(f"cannot read folder {e.filename}: {e.strerror}; check its permissions")

    found = []
    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            file = Path(place, name)
            if not name.startswith(".") and file.suffix.lower() in SUFFIXES:
                found.append(file)
    return sorted(found)


def video_stem(name: str) -> str:
    """Return the last part of a path without its video suffixes: "a/b.avi.mp4" -> "b".

    Only known suffixes are removed: clips of LSMDC have times with dots in their names.
    """
    stem = PurePath(name.strip()).name
    end = len(stem)
    # Moves the end instead of copying: a stranger's name may consist of very many suffixes.
    while suffix := next((s for s in SUFFIXES if stem[end - len(s) : end].lower() == s), None):
        if end == len(suffix):
            break
        end -= len(suffix)
    return stem[:end]


def locate_videos(folder: Path, names: Sequence[str]) -> list[Path | None]:
    """Return each named video's file anywhere below `folder`, None where there is none.

    A name is a path below the folder, a file name, or one without its suffix (which must be one of
    SUFFIXES then); the first of these that fits counts. Raises InputError where a name fits
    several files, or the folder has no video.
    """
    by_name: dict[str, list[Path]] = defaultdict(list)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in list_videos([folder]):
        by_name[path.name].append(path)
        by_stem[video_stem(path.name)].append(path)
    found: list[Path | None] = []
    for name in names:
        near = [folder / name] if _is_below(folder, name) else by_name.get(PurePath(name).name, [])
        near = near or by_stem.get(video_stem(name), [])
        if len(near) > 1:
            raise InputError(
                f"video {name} could be any of {len(near)} files in {folder}: "
                f"{', '.join(str(p.relative_to(folder)) for p in near[:3])}; keep one of them"
            )
        found.append(near[0] if near else None)
    return found


def _is_below(folder: Path, name: str) -> bool:
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        return False
    return os.path.lexists(folder / path) and not os.path.isdir(folder / path)
