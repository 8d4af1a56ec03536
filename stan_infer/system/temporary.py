"""Make temporary folders and files, and clear those whose process has died.

Every temporary folder is named stan-infer-work-XXXXXXXX, with a dot before it where it lies beside
a result. Its process holds a lock (flock) on the file `lock` in it. The system frees that lock when
the process ends in any way: a folder whose lock is free has no owner. This works across containers,
and on network file systems that share locks; where there are no locks nothing is cleared.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, nothing is cleared
    fcntl = None  # type: ignore[assignment]

from stan_infer.errors import InputError, StanError

_PREFIX = "stan-infer-work-"
NAME = rf"\.?{_PREFIX}[a-z0-9_]{{8}}"  # of such a folder, as a regular expression
LOCK, ASIDE = "lock", "old"
_MAGIC = b"stan-infer-work "  # the content of a lock's file: this, then the target's name
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


class NoTemporaryFolderError(InputError):
    """$TMPDIR cannot be used, or is full."""


class NoRoomError(InputError):
    """A place could not be written; `place` is the one."""

    def __init__(self, message: str, place: Path) -> None:
        """Say what could not be written, and where."""
        super().__init__(message)
        self.place = place


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Yield an empty folder below $TMPDIR; it and its content are deleted at the end.

    purpose: what it is for, as in "the graphs that are compared". Raises InputError that names the
    folder, the purpose and TMPDIR where the folder cannot be made, or where the block fails because
    the folder is full or read-only, whatever exception a library raises for that.
    """
    above = _above()
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(workplace(above, beside=False)) / "files"
            folder.mkdir()
        except OSError as e:
            raise _no_room(above, purpose, e.strerror or str(e)) from e
        try:  # inside the stack: once the folder is deleted the disk is no longer full
            yield folder
        except NoRoomError as e:
            if not e.place.is_relative_to(above):
                raise
            raise _no_room(above, purpose, str(e)) from e
        except StanError:
            raise
        except Exception as e:
            reason = why_no_room(e, above)
            if reason is None:
                raise
            raise _no_room(above, purpose, reason) from e


def temporary_file(folder: Path | None = None) -> IO[bytes]:
    """Open a file without a name in `folder`, or below $TMPDIR; closing it deletes it."""
    above = folder or _above()
    try:
        return tempfile.TemporaryFile(dir=above)
    except OSError as e:
        if folder is not None:
            raise
        raise _no_room(above, "what a program writes", e.strerror or str(e)) from e


@contextmanager
def workplace(above: Path, *, beside: bool = True, target: str = "") -> Iterator[Path]:
    """Clear folders of dead processes in `above`; yield a new locked one, for this user alone.

    beside: its name begins with a dot, because it lies beside a result. target: name of a folder in
    `above` that the block may move into the new folder as `old`; if it is still there at the end,
    it is put back. OSErrors come out as they are.
    """
    clear(above)
    work, lock = _claim(above, "." * beside + _PREFIX, target)
    try:
        yield work
    finally:
        if lock is None:
            shutil.rmtree(work, ignore_errors=True)
        else:
            _leave(work, lock)


def clear(above: Path) -> None:
    """Clear what dead processes of this user left in a folder; put back a target that was moved."""
    if fcntl is None:
        return
    try:
        names = [name for name in os.listdir(above) if re.fullmatch(NAME, name)]
    except OSError:
        return  # whatever writes there next reports it
    for name in names:
        with suppress(OSError):  # locked, or another user's, or deleted by now
            _clear_one(above / name)


def why_no_room(error: BaseException, place: Path) -> str | None:
    """Return the system's reason if `error` means that `place` cannot take more, else None.

    Libraries wrap such errors or drop their number; then the text is searched, and it is looked
    whether the place is full.
    """
    full = os.strerror(errno.ENOSPC)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            return cause.strerror or str(cause)
        if full in str(cause):
            return full
        cause = cause.__cause__ or cause.__context__
    return full if _is_full(place) else None


def tells_no_space(reason: str) -> bool:
    """Whether a reason of the system is a lack of space: a full disk, a quota."""
    return any(os.strerror(number) in reason for number in (errno.ENOSPC, errno.EDQUOT))


def _above() -> Path:
    """Return $TMPDIR if it is set, even if it cannot be used; else the system's folder."""
    given = next((v for v in map(os.environ.get, ("TMPDIR", "TEMP", "TMP")) if v), None)
    try:
        return Path(os.path.abspath(given or tempfile.gettempdir()))
    except OSError as e:  # none of the usual folders can be written
        raise _no_room(Path("/tmp"), "this command", str(e)) from e


def _no_room(above: Path, purpose: str, reason: str) -> NoTemporaryFolderError:
    if tells_no_space(reason):
        remedy = "free some space there, or name a folder with more"
    else:
        remedy = "set TMPDIR to a folder that exists and can be written"
    return NoTemporaryFolderError(
        f"temporary folder {above} cannot take {purpose}: {reason}; {remedy}: "
        "TMPDIR=/folder stan-infer ..."
    )


def _is_full(place: Path) -> bool:
    try:
        s = os.statvfs(place)
    except (OSError, AttributeError):  # AttributeError: Windows
        return False
    free = s.f_bfree if os.geteuid() == 0 else s.f_bavail
    # /proc and a tmpfs without a limit have 0 blocks.
    return (s.f_blocks > 0 and free == 0) or (s.f_files > 0 and s.f_ffree == 0)


def _claim(above: Path, prefix: str, target: str) -> tuple[Path, int | None]:
    """Make a folder and lock it; if another process clears it before that, make another one."""
    while True:
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=above))
        if fcntl is None:
            return work, None
        try:
            lock = os.open(work / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            continue
        except BaseException:
            work.rmdir()
            raise
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(lock), os.stat(work / LOCK))
        except (BlockingIOError, FileNotFoundError):
            held = False
        except OSError:
            held = True  # this file system has no locks, so no process gets one and clears it
        if not held:
            os.close(lock)
            continue
        try:
            os.write(lock, _MAGIC + os.fsencode(target))
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            os.close(lock)
            raise
        return work, lock


def _leave(work: Path, lock: int) -> None:
    """Remove our own folder while its lock is held; what cannot be removed stays for `clear`."""
    try:
        with suppress(OSError):
            folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                _end(work, folder, lock)
            finally:
                os.close(folder)
    finally:
        os.close(lock)


def _clear_one(work: Path) -> None:
    """Clear a folder of this user whose lock is free; raises OSError where it is not.

    All names are looked up in the open folder, because a path may lead elsewhere the next moment.
    """
    folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            return
        try:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
            lock = os.open(LOCK, flags, dir_fd=folder)
        except FileNotFoundError:
            # Works only if it is empty: its process, about to make the lock, makes another folder.
            work.rmdir()
            return
        try:
            if stat.S_ISREG(os.fstat(lock).st_mode):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end(work, folder, lock)
        finally:
            os.close(lock)
    finally:
        os.close(folder)


def _end(work: Path, folder: int, lock: int) -> None:
    """Put back a target that was moved, then remove the open folder `work`, the lock last."""
    said = os.pread(lock, 4096, 0)
    names = os.listdir(folder)
    if not said.startswith(_MAGIC):
        # A process killed before it wrote that left an empty lock alone. Anything else is not ours.
        if said or names != [LOCK]:
            return
    name = os.fsdecode(said[len(_MAGIC) :])
    if ASIDE in names and name and "/" not in name and not os.path.lexists(work.parent / name):
        os.rename(ASIDE, work.parent / name, src_dir_fd=folder)
        names.remove(ASIDE)
    for entry in names:
        if stat.S_ISDIR(os.lstat(entry, dir_fd=folder).st_mode):
            shutil.rmtree(entry, dir_fd=folder)  # follows no link
        elif entry != LOCK:
            os.unlink(entry, dir_fd=folder)
    os.unlink(LOCK, dir_fd=folder)
    work.rmdir()
