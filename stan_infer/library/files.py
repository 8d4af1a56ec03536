"""The files that are to be embedded: which they are, and the hash of their content."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from stan_infer.errors import InputError
from stan_infer.library.store import File
from stan_infer.system.outside_file import open_regular, read_bounded
from stan_infer.video.find import list_videos

HASHERS = 2  # threads
_AHEAD, _GROUP = 16, 8  # files that are hashed before they are asked for; in one task
_MAX_LIST = 2**28  # bytes of a list of files
_MAX_PATH = 4096  # bytes, as on Linux


def listed(given: list[Path]) -> Iterator[Path]:
    """The videos that are named; of a list (.txt) one a line, whether they are there or not."""
    for path in given:
        if path.suffix.lower() == ".txt" and path.is_file():
            yield from _lines(path)
        else:
            yield from list_videos([path])


def _lines(path: Path) -> Iterator[Path]:
    """The paths in a list, which may be any bytes; a byte order mark of UTF-8 is none of them."""
    data = read_bounded(path, _MAX_LIST, name=f"list {path}").removeprefix(codecs.BOM_UTF8)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise InputError(f"list {path} has zero bytes, as text in UTF-16: save it as UTF-8")
    lines = data.splitlines()
    if not any(line.strip() for line in lines):
        raise InputError(f"list {path} names no video; it needs a path a line")
    for number, line in enumerate(lines, 1):
        if len(line) > _MAX_PATH:
            raise InputError(
                f"list {path}: line {number} has {len(line)} bytes; a path has at most {_MAX_PATH}"
            )
        if line.strip():
            yield Path(os.path.abspath(os.fsdecode(line)))


def seen(path: Path) -> tuple[int, int] | None:
    """Size and time of change of a file; None: it is gone."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def changed(path: Path, file: File, now: tuple[int, int] | None) -> str | None:
    """The error of a file that is not as it was when it was hashed; None where it is.

    now: its size and time as `seen` gives them.
    """
    if file.error is None and now != file[:2]:
        return f"{path}: it changed while it was read; run the command again"
    return file.error


def hashed(paths: Iterable[Path], threads: ThreadPoolExecutor) -> Iterator[tuple[Path, File]]:
    """Files with the hash of their content, read some ahead by threads.

    Several in one task: to hand one to a thread takes as long as to hash a small one.
    """
    waiting: deque[tuple[list[Path], Future[list[File]]]] = deque()
    ahead = 0
    try:
        for group in _groups(iter(paths)):
            waiting.append((group, threads.submit(_hash_files, group)))
            ahead += len(group)
            while ahead > _AHEAD:
                ahead -= len(waiting[0][0])
                yield from _first(waiting)
        while waiting:
            yield from _first(waiting)
    finally:
        for _, future in waiting:
            future.cancel()


def _groups(paths: Iterator[Path]) -> Iterator[list[Path]]:
    """1, 2, 4 and then _GROUP at a time, so that the first does not wait for others."""
    size = 1
    while group := list(islice(paths, size)):
        yield group
        size = min(2 * size, _GROUP)


def _first(
    waiting: deque[tuple[list[Path], Future[list[File]]]],
) -> Iterator[tuple[Path, File]]:
    group, future = waiting.popleft()
    return zip(group, future.result(), strict=True)


def _hash_files(paths: list[Path]) -> list[File]:
    return [hash_file(path) for path in paths]


def hash_file(path: Path) -> File:
    """A file with the hash of its content, or why it has none."""
    try:
        file, size = open_regular(path)
        with file:
            mtime = os.fstat(file.fileno()).st_mtime_ns
            return File(size, mtime, hashlib.file_digest(file, "sha256").digest())
    except (OSError, InputError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
        return File(*(seen(path) or (0, 0)), None, f"{path}: {reason}")
