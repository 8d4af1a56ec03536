"""Temporary folders and files: made here alone, and cleared at the next start if their owner died.

Each is a folder named stan-infer-work-XXXXXXXX, with a dot before it where it lies beside a result.
Its owner holds a lock (flock) on the file `lock` in it, which ends with the process however that
ends: a folder whose lock is free has no owner. The lock works across containers, and on network
file systems that share locks between machines; where there are no locks nothing is cleared.
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
_MAGIC = b"stan-infer-work "  # begins what the lock's file says; then comes the target's name
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


class NoTemporaryFolderError(InputError):
    """$TMPDIR cannot be used, or takes no more."""


class NoRoomError(InputError):
    """A place could not be written; `place` is the one."""

    def __init__(self, message: str, place: Path) -> None:
        """Say what could not be written, and where."""
        super().__init__(message)
        self.place = place


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Yield an empty folder below $TMPDIR that goes in the end, with whatever is in it then.

    purpose: what it is for, as in "the graphs that are compared". Raises InputError that names the
    folder, the purpose and TMPDIR where it cannot be made, or where what is done inside fails
    because it is full or read-only, whichever library says so.
    """
    above = _above()
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(workplace(above, beside=False)) / "files"
            folder.mkdir()
        except OSError as e:
            raise _no_room(above, purpose, e.strerror or str(e)) from e
        try:  # before the folder is emptied: that may make room
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
    """Open a file without a name in `folder`, or below $TMPDIR: it is gone when it is closed."""
    above = folder or _above()
    try:
        return tempfile.TemporaryFile(dir=above)
    except OSError as e:
        if folder is not None:
            raise
        raise _no_room(above, "what a program writes", e.strerror or str(e)) from e


@contextmanager
def workplace(above: Path, *, beside: bool = True, target: str = "") -> Iterator[Path]:
    """Yield a new locked folder in `above`, for this user alone; first clear those of the dead.

    beside: beside a result, and so with a dot. target: name of the folder in `above` whose earlier
    content may be put aside, as `old`; it is put back wherever it is still there in the end.
    OSErrors come out as they are.
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
    """Clear the left-overs of dead processes of this user in a folder; put back what lay aside."""
    if fcntl is None:
        return
    try:
        names = [name for name in os.listdir(above) if re.fullmatch(NAME, name)]
    except OSError:
        return  # told by whoever writes there
    for name in names:
        with suppress(OSError):  # locked, or another's, or gone by now
            _clear_one(above / name)


def why_no_room(error: BaseException, place: Path) -> str | None:
    """The system's reason if `error` means that `place` cannot take more, else None.

    Libraries wrap such errors or lose their number: then text tells, or the place being full.
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
    """Whether a reason of the system is one that free space mends: a full disk, a quota."""
    return any(os.strerror(number) in reason for number in (errno.ENOSPC, errno.EDQUOT))


def _above() -> Path:
    """$TMPDIR if it is set, and no other in its stead."""
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
    return free == 0 or (s.f_files > 0 and s.f_ffree == 0)


def _claim(above: Path, prefix: str, target: str) -> tuple[Path, int | None]:
    """A new folder with a lock that we hold. One that is cleared before that is made again."""
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
            held = True  # there are no locks here, so nobody else gets one either
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
    """Remove our own folder while its lock is held; what cannot be removed is cleared later."""
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
    """Clear a folder of ours whose lock is free; raises OSError where it is not.

    Everything goes by the open folder: a name may be another thing from one moment to the next.
    """
    folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            return
        try:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
            lock = os.open(LOCK, flags, dir_fd=folder)
        except FileNotFoundError:
            # Only if it is empty: an owner that was about to make the lock makes another folder.
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
    """Put back what lies aside, then remove the open folder `work`, the lock as its last file."""
    said = os.pread(lock, 4096, 0)
    names = os.listdir(folder)
    if not said.startswith(_MAGIC):
        # Killed before it could write that: only its lock can be here. Else it is not ours.
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
