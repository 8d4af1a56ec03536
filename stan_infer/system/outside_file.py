"""A stranger's file: opened only if it is a regular one, read within its bounds.

A pipe would let us wait for ever, and a device may do anything.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stan_infer.errors import InputError, storable

DAMAGED = "the file is damaged or was not downloaded whole: fetch it again"


def open_regular(path: Path, *, follow: bool = True) -> tuple[io.BufferedReader, int]:
    """Open a file and return it with its size in bytes; InputError unless it is a regular file.

    follow: False: a link is an OSError, even one that took the file's place a moment ago.
    """
    # Opening a device may set it to work: ask before opening, and again in case it was replaced.
    try:
        _check_regular(os.stat(path, follow_symlinks=follow))
    except ValueError as e:
        raise InputError(f"it is no path: {e}") from e
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = open(os.open(path, flags | (0 if follow else getattr(os, "O_NOFOLLOW", 0))), "rb")
    try:
        status = os.fstat(file.fileno())
        _check_regular(status)
    except BaseException:
        file.close()
        raise
    return file, status.st_size


def _check_regular(status: os.stat_result) -> None:
    # A link is left to the opening that does not follow it.
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise InputError(f"it is {what}, no regular file; give the file itself")


def read_bounded(path: Path, limit: int, *, name: str = "", hint: str = "") -> bytes:
    """Return the content of a regular file of at most `limit` bytes; InputError for another.

    name: what errors call the file, by default its path. hint: what they end with.
    """
    name = name or str(path)
    try:
        file, size = open_regular(path)
        with file:
            data = file.read(limit + 1)
    except FileNotFoundError as e:
        raise InputError(f"{name}: no such file{hint}") from e
    except InputError as e:
        raise InputError(f"{name} cannot be read: {e}{hint}") from e
    except OSError as e:
        raise InputError(f"{name} cannot be read ({e.strerror or e}){hint}") from e
    if len(data) > limit:
        raise InputError(f"{name} has {size} bytes; at most {limit} are read{hint}")
    return data


def read_text(path: Path, limit: int, *, name: str = "", hint: str = "") -> str:
    """As read_bounded, of UTF-8 text: without a byte order mark, with one kind of line ends."""
    data = read_bounded(path, limit, name=name, hint=hint)
    try:
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()
    except UnicodeDecodeError as e:
        raise InputError(f"{name or path} cannot be read as UTF-8 text: {e}{hint}") from e


def read_at(f: BinaryIO, offset: int, size: int) -> bytes:
    """Return exactly `size` bytes from `offset`; InputError when the file ends before."""
    f.seek(offset)
    data = f.read(size)
    if len(data) != size:
        raise InputError(
            f"expected {size} bytes at byte {offset}, got {len(data)}; the file was cut off or "
            "changed while it was read: fetch it again"
        )
    return data


def read_into(file: BinaryIO, start: int, view: memoryview) -> None:
    """Fill `view` with the bytes from `start`; InputError when the file ends before."""
    file.seek(start)
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise InputError("it became shorter while it was read; fetch it again")
        done += count


def stays_inside(name: str) -> bool:
    """Whether a name may be a file's in a folder: no absolute path, no "..", no drive letter."""
    plain = len(name) <= 200 and re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*", name)
    return bool(plain) and ".." not in name.split("/")


@contextmanager
def openable(path: Path) -> Iterator[str]:
    """A path of UTF-8 to the same file while the block runs, for libraries that take no other.

    A graph's neighbours keep their place beside it, unless its own name is not UTF-8. Such names
    exist on Linux, which has a name for what a program holds open. Raises OSError.
    """
    name = os.fspath(path)
    if storable(name) == name:
        yield name
        return
    is_plain = storable(path.name) == path.name
    handle = os.open(path.parent if is_plain else path, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{handle}" + (f"/{path.name}" if is_plain else "")
    finally:
        os.close(handle)
