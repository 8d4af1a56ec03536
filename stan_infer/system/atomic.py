"""Write results: a file or folder appears whole or not at all.

It is made in a temporary folder beside its place and then renamed; a folder that replaces another
is exchanged with it in one step. Only regular files and folders are replaced, links are followed,
permissions kept; the content of a device or a pipe is written into it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stan_infer.errors import InputError, StanError
from stan_infer.system import kept
from stan_infer.system.earlier_result import WhyKeep, whole_folder
from stan_infer.system.outside_file import refuse_address
from stan_infer.system.temporary import (
    ASIDE,
    NoRoomError,
    tells_no_space,
    temporary_folder,
    why_no_room,
    workplace,
)

Sources = Iterable[str | Path]
_OWN_STREAM = r"/dev/(?:stdin|stdout|stderr|fd/(\d+))|/proc/self/fd/(\d+)"


def files_of(checkpoint: str | Path) -> list[Path]:
    """Return the files or folders that a model is read from: no result may replace or lie in them.

    For a plan its exported folder is one of them. For an open_clip NAME:TAG it is the path TAG.
    """
    path = Path(checkpoint)
    if path.suffix == ".plan" and path.is_file():
        return [path, path.absolute().parent.parent]
    _, separator, tag = str(checkpoint).partition(":")
    return [Path(tag)] if separator and not path.exists() else [path]


@contextmanager
def new_file(
    path: Path,
    why_keep: WhyKeep | None = None,
    *,
    sources: Sources = (),
    part_of: Path | None = None,
) -> Iterator[Path]:
    """Yield an empty temporary file; on success it becomes `path`, else it is deleted.

    A link stays and its target is replaced. The mode and, as far as that is allowed, the owner of
    an earlier file are kept; a new one has the mode that the umask gives. A device or a pipe stays,
    and the content is written into it. part_of: the folder of ours that takes files of this kind.
    Raises what check_file does, and InputError where `path` cannot be written.
    """
    path = Path(path)
    with _errors_named(path):
        _check_file(path, why_keep, sources, part_of)
        if _is_stream(path):
            with temporary_folder(f"what goes to {path}") as folder:
                made = folder / f"new{path.suffix}"
                made.touch()
                yield made
                _pour(made, path)
            return
        place = Path(os.path.realpath(path))
        with workplace(place.parent) as work, _errors_named(path):
            made = work / f"new{place.suffix}"  # some libraries choose the format by the suffix
            made.touch()
            mode = made.stat().st_mode
            yield made
            _check_file(path, why_keep, sources, part_of)  # the work took a while
            made.chmod(stat.S_IMODE(mode))  # a library may have replaced the file
            _take_over(made, place)
            os.replace(made, place)
            kept.note(path)


@contextmanager
def new_folder(path: Path, why_keep: WhyKeep, *, sources: Sources = ()) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, else it is deleted.

    A link stays and its target is replaced. At every moment `path` is the earlier folder or the new
    one. Missing folders above it are made. Raises what check_folder does, and InputError where it
    cannot be written.
    """
    path = Path(path)
    with _errors_named(path):
        _check_folder(path, why_keep, sources)
        place = Path(os.path.realpath(path))
        made = _make_parents(place)
        done = False
        try:
            with workplace(place.parent, target=place.name) as work, _errors_named(path):
                new = work / "new"
                new.mkdir()
                yield new
                _check_folder(path, why_keep, sources)  # the work took a while
                _take_over(new, place)
                try:
                    _exchange(new, place, work / ASIDE)
                except OSError as e:
                    if e.errno != errno.EXDEV:
                        raise
                    # overlayfs: a folder of a lower layer cannot be renamed.
                    raise InputError(
                        f"cannot replace {path}: it belongs to the image of this container; "
                        "delete it first, or give another place"
                    ) from e
                done = True
                kept.note(path)
        finally:
            for parent in [] if done else reversed(made):
                with suppress(OSError):
                    parent.rmdir()


def check_file(path: Path, why_keep: WhyKeep | None = None, *, sources: Sources = ()) -> None:
    """Raise InputError where new_file would refuse `path`; call it before long work.

    why_keep(path) says why an existing file that is not empty must stay, or None where it is an
    earlier result of the same kind: only such a file is replaced. sources: files and folders that
    are read and so must not be written; see check_apart.
    """
    with _errors_named(path):
        place = _check_file(path, why_keep, sources, None)
        if place is not None:
            _try_place(place.parent)


def check_folder(path: Path, why_keep: WhyKeep, *, sources: Sources = ()) -> None:
    """Raise InputError where new_folder would refuse `path`; call it before long work.

    why_keep(path) says why an existing folder that is not empty must stay, or None where it is an
    earlier result and nothing else: only such a folder is replaced, so that none of the user's own
    is ever deleted. sources: see check_file.
    """
    with _errors_named(path):
        _try_place(_check_folder(path, why_keep, sources))


def check_apart(path: str | Path, sources: Sources) -> None:
    """Raise InputError where `path` is one of `sources`, lies in one, or is a folder around one.

    Sources that do not exist as a path, such as a model's name, are passed over.
    """
    place = Path(os.path.realpath(path))
    for source in sources:
        if not os.path.exists(source):
            continue
        own = Path(os.path.realpath(source))
        if os.path.exists(place) and os.path.samefile(place, own):
            raise InputError(
                f"{path} is also read ({source}), so it is not replaced: give another name"
            )
        if place.is_relative_to(own):
            raise InputError(
                f"{path} lies in {source}, which is also read: give a place outside of it"
            )
        if own.is_relative_to(place):
            raise InputError(
                f"{path} holds {source}, which is also read, so it is not replaced: give another "
                "name"
            )


def check_outside(path: Path, folder: Path, option: str) -> None:
    """Raise InputError where the file `path` is, lies in or is above `folder`, another result.

    option: the one that names the folder, as in "--report".
    """
    place, own = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if place.is_relative_to(own) or own.is_relative_to(place):
        relation = "is" if place == own else "lies in" if place.is_relative_to(own) else "is above"
        raise InputError(
            f"{path} {relation} the folder of {option}, which is written anew: give another place"
        )


def check_not_inside(path: Path, part_of: Path | None = None) -> None:
    """Raise InputError where `path` lies in an exported folder, or another that lists its files.

    part_of: the one such folder in which it may lie.
    """
    folder = whole_folder(Path(os.path.realpath(path)))
    if folder is not None and (part_of is None or folder != Path(os.path.realpath(part_of))):
        raise InputError(
            f"{path} lies in {folder}, an export that would no longer open with another file in "
            "it: give a place outside of it"
        )


def _check_file(
    path: Path, why_keep: WhyKeep | None, sources: Sources, part_of: Path | None
) -> Path | None:
    """See check_file; return the path without links, or None for a stream."""
    if _own_stream(path) is not None:
        return None
    refuse_address(path)
    seen = _stat(path)
    if seen is not None and stat.S_ISDIR(seen.st_mode):
        raise InputError(f"cannot write {path}: it is a folder; give a file name")
    if seen is not None and (stat.S_ISBLK(seen.st_mode) or stat.S_ISSOCK(seen.st_mode)):
        what = "a disk" if stat.S_ISBLK(seen.st_mode) else "a socket"
        raise InputError(f"cannot write {path}: it is {what}; give a file name")
    check_apart(path, sources)
    if seen is not None and not stat.S_ISREG(seen.st_mode):
        return None
    place = Path(os.path.realpath(path))
    if seen is not None and _is_mount_point(place):
        raise InputError(f"cannot write {path}: it is a mount point; give another file name")
    check_not_inside(path, part_of)
    _check_above(path, place.parent)
    reason = why_keep(path) if why_keep and seen is not None and seen.st_size else None
    if reason:
        raise InputError(
            f"{path} will not be replaced, because {reason}: give another name, or move it away"
        )
    return place


def _check_folder(path: Path, why_keep: WhyKeep, sources: Sources) -> Path:
    """See check_folder; return the nearest folder above `path` that exists."""
    refuse_address(path)
    place = Path(os.path.realpath(path))
    if place == Path(os.path.realpath(".")) or place == place.parent:
        raise InputError(f"folder {path} is the current one or the root; give a folder in it")
    seen = _stat(path)
    if seen is not None and not stat.S_ISDIR(seen.st_mode):
        raise InputError(f"cannot write folder {path}: a file of that name exists")
    if _is_mount_point(place):
        raise InputError(
            f"folder {path} is a mount point: give a folder in it, as in {path / 'model'}"
        )
    check_apart(path, sources)
    above = next(p for p in place.parents if os.path.lexists(p))
    check_not_inside(path)
    _check_above(path, above)
    reason = why_keep(place) if seen is not None and any(place.iterdir()) else None
    if reason:
        raise InputError(
            f"folder {path} is not empty and will not be replaced, because {reason}: "
            "give a new or an empty folder"
        )
    return above


def _stat(path: Path) -> os.stat_result | None:
    """os.stat of a path, or None where nothing is there; other errors are raised."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is_mount_point(place: Path) -> bool:
    """Whether `place`, a path without links, is a mount point, which cannot be renamed."""
    if os.path.ismount(place):
        return True
    try:  # a bind mount of the same file system
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    name = re.sub(rb"[\\ \t\n]", lambda m: b"\\%03o" % ord(m[0]), os.fsencode(place))
    return any(line.split(b" ", 5)[4] == name for line in mounts)


def _check_above(path: Path, above: Path) -> None:
    if not above.is_dir():
        raise InputError(f"cannot write {path}: no such folder: {above}; make it first")
    if not os.access(above, os.W_OK):
        raise InputError(f"cannot write {path}: folder {above} is read-only; give another place")


def _try_place(above: Path) -> None:
    """Make what a result is made in: /proc and others refuse that whatever their mode says."""
    with workplace(above):
        pass


def _own_stream(path: Path) -> int | None:
    """Return the file descriptor of ours that a path such as /dev/stdout stands for, or None."""
    match = re.fullmatch(_OWN_STREAM, os.path.abspath(path))
    if match is None:
        return None
    names = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
    return names.get(match[0], int(match[1] or match[2] or 0))


def _is_stream(path: Path) -> bool:
    seen = _stat(path)
    return _own_stream(path) is not None or (seen is not None and not stat.S_ISREG(seen.st_mode))


def _pour(made: Path, path: Path) -> None:
    """Copy a file into a device, a pipe, or an open file of ours from its current position on."""
    own = _own_stream(path)
    for stream in (sys.stdout, sys.stderr) if own is not None else ():
        stream.flush()
    try:
        # No O_CREAT: a pipe that was removed meanwhile must not come back as a regular file.
        target = os.open(path, os.O_WRONLY) if own is None else os.dup(own)
        with os.fdopen(target, "wb") as out, made.open("rb") as content:
            shutil.copyfileobj(content, out, 2**20)
    except OSError as e:  # raised here, or else the message would name the temporary folder
        raise InputError(f"cannot write {path}: {e.strerror or e}") from e


def _take_over(made: Path, place: Path) -> None:
    """Give `made` the mode and, as far as that is allowed, the owner of `place`."""
    seen = _stat(place)
    if seen is None or not hasattr(os, "chown"):
        return
    for owner, group in ((seen.st_uid, -1), (-1, seen.st_gid)):
        with suppress(PermissionError):
            os.chown(made, owner, group)
    made.chmod(stat.S_IMODE(seen.st_mode))


def _make_parents(path: Path) -> list[Path]:
    """Make the missing parents of `path` and return them, outermost first."""
    missing = [p for p in path.parents if not p.exists()][::-1]
    for parent in missing:
        parent.mkdir(exist_ok=True)
    return missing


def _exchange(new: Path, place: Path, aside: Path) -> None:
    """Rename `new` to `place`; an earlier folder at `place` ends as `new`.

    Where the system cannot exchange two names, the earlier folder lies at `aside` for a moment. If
    the process dies then, the next one that clears its workplace puts it back (temporary.clear).
    """
    if not place.exists():
        os.rename(new, place)
        return
    if _rename_exchange(new, place):
        return
    try:
        os.rename(place, aside)
        os.rename(new, place)
    except BaseException:
        if aside.exists() and not place.exists():
            os.rename(aside, place)
        raise
    os.rename(aside, new)  # so that it is never put back, even if it is half removed


def exchange(new: Path, place: Path) -> None:
    """Exchange the names of two folders that lie beside each other, in one step where it can be."""
    with _errors_named(place):
        _exchange(new, place, new.with_name(f"{new.name}.{ASIDE}"))


def _rename_exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:  # a C library from before 2018
        return False
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(b))


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turn an error of the system, or of a library on a full disk, into an InputError.

    It is needed inside a workplace too, because the disk may have room once that is emptied.
    """
    try:
        yield
    except StanError:
        raise
    except Exception as e:
        place = Path(os.path.realpath(path))
        reason = why_no_room(e, place.parent)
        if reason is None and isinstance(e, OSError):
            reason = e.strerror or str(e)
        if reason is None:
            raise
        remedy = "free some space or give" if tells_no_space(reason) else "give"
        raise NoRoomError(f"cannot write {path}: {reason}; {remedy} another place", place) from e
