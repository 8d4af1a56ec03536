"""Find video files: all in a folder, or those of given names, which cannot lead out of it."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath

from stan_infer.errors import InputError
from stan_infer.system.outside_file import odd_name

SUFFIXES = tuple(
    ".mp4 .mkv .webm .avi .mov .m4v .mpg .mpeg .ts .m2ts .mts .vob .flv .f4v .wmv .asf .3gp .3g2 "
    ".ogv .mxf .divx .h264 .gif".split()
)

_STREAM = re.compile(r"-|/dev/std(in|out|err)|(/dev|/proc/[^/]+)/fd/.*")
_log = logging.getLogger(__name__)


def list_videos(paths: Sequence[Path]) -> list[Path]:
    """Return the videos that `paths` name: files as given, folders walked in sorted order.

    A folder gives everything below it with a known suffix (SUFFIXES, any case), even if it cannot
    be read, so that this is reported. Links to folders are followed, each folder once; hidden names
    are passed over, and files with other suffixes, which are counted in a warning. Raises
    InputError for a path that does not exist, standard input, a folder that cannot be read and a
    folder without any video.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if _STREAM.fullmatch(os.fspath(path)) and not (path.name == "-" and os.path.lexists(path)):
            raise InputError(
                f"{path}: videos are not read from standard input or other streams, as decoding "
                "goes to and fro in a file: save it and give the file's name"
            )
        if os.path.isdir(path):
            files = _walk(path)
            inside = [file for file in files if file.suffix.lower() in SUFFIXES]
            others = Counter(f.suffix.lower() for f in files if f.suffix.lower() not in SUFFIXES)
            if not inside:
                swapped = os.path.isfile(path / "manifest.json")
                raise InputError(
                    f"folder {path} holds no video ({' '.join(SUFFIXES)})"
                    + (": it is an exported folder; give one of videos" if swapped else "")
                )
            if others:
                kinds = (f"{s or 'no suffix'}: {n}" for s, n in others.most_common(5))
                _log.warning(
                    "folder %s: %d videos; %d other files are passed over (%s)",
                    path, len(inside), others.total(), ", ".join(kinds),
                )  # fmt: skip
            found += inside
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise InputError(
                odd_name(path) or f"no such video file or folder: {path}; check the spelling"
            )
    return found


def _walk(folder: Path) -> list[Path]:
    """All files below a folder but hidden ones, sorted."""

    def fail(e: OSError) -> None:
        raise InputError(f"cannot read folder {e.filename}: {e.strerror}; check its permissions")

    def is_new(place: str) -> bool:
        status = os.stat(place)
        known = (status.st_dev, status.st_ino) in seen
        seen.add((status.st_dev, status.st_ino))
        return not known

    seen: set[tuple[int, int]] = set()
    for above in (folder, *Path(os.path.realpath(folder)).parents):
        is_new(os.fspath(above))
    found = []
    try:
        for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
            visible = sorted(name for name in folders if not name.startswith("."))
            # A folder that several links lead to is walked once, and a link to one above never.
            folders[:] = [name for name in visible if is_new(os.path.join(place, name))]
            found += [Path(place, name) for name in files if not name.startswith(".")]
    except RecursionError as e:
        raise InputError(f"folders below {folder} are nested too deeply; give a lower one") from e
    return sorted(found)


def video_stem(name: str) -> str:
    """Return the last part of a path without its video suffixes: "a/b.avi.mp4" -> "b".

    Only known suffixes are removed: clips of LSMDC have times with dots in their names.
    """
    stem = PurePath(name.strip()).name
    end = len(stem)
    # Moves the end instead of copying: a stranger's name may consist of very many suffixes.
    known = (*SUFFIXES, ".")  # in DiDeMo's lists, names of files without a suffix end with a point
    while suffix := next((s for s in known if stem[end - len(s) : end].lower() == s), None):
        if end == len(suffix):
            break
        end -= len(suffix)
    return stem[:end]


def locate_videos(folder: Path, names: Sequence[str]) -> list[Path | None]:
    """Return each named video's file anywhere below `folder`, None where there is none.

    A name is a path below the folder, the name of a file with any suffix, or one without its suffix
    (which must be one of SUFFIXES then); the first of these that fits counts. Raises InputError
    where a name fits several files, or the folder has no file.
    """
    by_name: dict[str, list[Path]] = defaultdict(list)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in _walk(folder):
        by_name[path.name].append(path)
        if path.suffix.lower() in SUFFIXES:
            by_stem[video_stem(path.name)].append(path)
    if not by_name:
        raise InputError(f"folder {folder} holds no video ({' '.join(SUFFIXES)})")
    found: list[Path | None] = []
    # Where names differ in their folders only, a file in another folder is another video.
    asked = Counter(PurePath(name).name for name in dict.fromkeys(names))
    for name in names:
        near = [folder / name] if _is_below(folder, name) else by_name.get(PurePath(name).name, [])
        near = near or by_stem.get(video_stem(name), [])
        if asked[PurePath(name).name] > 1 and not _is_below(folder, name):
            near = []
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
