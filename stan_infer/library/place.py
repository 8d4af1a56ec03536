"""The folder of a library: whether it may be one, and the lock of the run that writes to it."""

from __future__ import annotations

import os
import platform
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stan_infer.errors import InputError
from stan_infer.library.codes import CODES
from stan_infer.library.database import (
    FILES,
    LOCK,
    PASSPORT,
    VECTORS,
    check_own,
    errors_named,
    is_library,
)
from stan_infer.system.atomic import check_apart, check_not_inside
from stan_infer.system.temporary import NAME as TEMPORARY
from stan_infer.system.temporary import clear

try:
    import fcntl
except ImportError:  # Windows: two runs at once are not noticed
    fcntl = None  # type: ignore[assignment]

# A run that was just killed has its lock until all of it has ended; see `_lock`.
_WAIT_S = 2.0


def check_place(folder: Path, sources: list[Path]) -> None:
    """Raise InputError where a library cannot be or be made."""
    check_not_inside(folder)
    if not is_library(folder):
        check_apart(folder, sources)
        if os.path.lexists(folder) and not folder.is_dir():
            raise InputError(f"library {folder} is a file; give the name of a folder")
        try:
            names = os.listdir(folder) if folder.is_dir() else []
        except OSError as e:
            raise InputError(
                f"library {folder} cannot be read ({e.strerror or e}): check the permissions of "
                "the folder, or give another place"
            ) from e
        others = [name for name in names if not is_own(name)]
        others += [n for n in (VECTORS, CODES) if n in names and not _is_new(folder / n)]
        if others:
            raise InputError(
                f"folder {folder} is not empty and not a library: it holds {min(others)} and no "
                f"{PASSPORT}; give a new folder"
            )


def _is_new(path: Path) -> bool:
    """Whether a file may be one that a run that was killed had just made."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and not status.st_size


def is_own(name: str) -> bool:
    """Whether a file of this name is a library's, or a folder that a run that was killed left."""
    return name in FILES or re.fullmatch(TEMPORARY, name) is not None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder if needed and let no other run write to it in this block.

    The system frees the lock when the process ends in any way; what a run that was killed left is
    cleared. A folder that holds no library at the end is removed with what is ours in it. Raises
    InputError where another run has the lock.
    """
    lock, made = _lock(folder)
    try:
        clear(folder)
        yield
    finally:
        if not os.path.lexists(folder / PASSPORT):
            with suppress(OSError):
                for name in FILES:
                    (folder / name).unlink(missing_ok=True)
                for path in made:
                    path.rmdir()
        os.close(lock)


def _lock(folder: Path) -> tuple[int, list[Path]]:
    """Return the open lock and the folders that were made for it, the innermost first."""
    path = folder / LOCK
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    made: list[Path] = []
    last = time.monotonic() + _WAIT_S
    while True:
        try:
            absent = [p for p in (folder, *folder.parents) if not p.exists()]
            made += [p for p in absent if p not in made]
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(
                f"cannot make library {folder}: {e.strerror or e}; give another place"
            ) from e
        with errors_named(folder), suppress(FileNotFoundError):  # another run removes its folder
            if path.is_symlink() or (path.exists() and not path.is_file()):
                check_own(path, True)
            lock = os.open(path, flags, 0o644)
            if _got(lock, path):
                return lock, made
            said = os.pread(lock, 200, 0)
            os.close(lock)
            if time.monotonic() > last:
                raise InputError(
                    f"another run{_holder(said)} is writing to library {folder}: wait until it has "
                    "ended, or stop it"
                )
        time.sleep(0.05)


def _got(lock: int, path: Path) -> bool:
    """Whether the open file is ours alone and still has its name."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock), os.stat(path)):
            return False
        check_own(path, True)
        with suppress(OSError):  # a full disk
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {platform.node()}".encode(), 0)
    except (BlockingIOError, FileNotFoundError):
        return False
    except BaseException:
        os.close(lock)
        raise
    return True


def _holder(said: bytes) -> str:
    """Who wrote that into the lock, which may be a stranger's file."""
    match = re.fullmatch(rb"process [0-9]{1,10} on [A-Za-z0-9._-]{1,99}", said)
    return f" ({match[0].decode()})" if match else ""
