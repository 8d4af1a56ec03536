"""A stranger's file: opened only if it is a regular one, read within its bounds.

A pipe would let us wait for ever, and a device may do anything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stan_infer.errors import InputError, storable

DAMAGED = "the file is damaged or was not downloaded whole: fetch it again"


def open_regular(path: Path) -> tuple[BinaryIO, int]:
    """Open a file and return it with its size in bytes; InputError unless it is a regular file."""
    # Opening a pipe waits for its writer: ask before opening, and again in case it was replaced.
    try:
        mode = os.stat(path).st_mode
    except ValueError as e:
        raise InputError(f"it is no path: {e}") from e
    if not stat.S_ISREG(mode):
        raise InputError("it is no regular file; give the weights file itself")
    file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise InputError("it is no regular file; give the weights file itself")
    return file, status.st_size


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
