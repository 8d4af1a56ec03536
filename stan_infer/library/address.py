"""Videos in an object store: their addresses, as names of a library's rows, and how to fetch them.

Whatever pyarrow opens (file, s3, gs, hdfs, abfs), else fsspec with the package of that scheme. Keys
and tokens come from the surroundings, as for other programs, and never from the address, which is
kept in the library.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from stan_infer.errors import InputError, one_line
from stan_infer.system.packages import require
from stan_infer.system.temporary import temporary_folder
from stan_infer.video.find import SUFFIXES

_CHUNK = 2**23  # bytes that are fetched at once
Seen = tuple[int, int]  # size in bytes and time of change in ns, 0 where the store has none


class Address(type(Path())):  # type: ignore[misc]
    """An address such as s3://bucket/a.mp4, where else there is the path of a file.

    Text, bytes and comparison are those of the whole address; pathlib leaves one slash of two.
    """

    def __new__(cls, text: str) -> Address:
        """text: SCHEME://PLACE/NAME, the name quoted as in every URL."""
        self: Address = super().__new__(cls, text)
        self._address = text
        return self

    def __str__(self) -> str:
        """The address."""
        return self._address

    def __fspath__(self) -> str:
        """The address, which opens no file."""
        return self._address

    def __eq__(self, other: object) -> bool:
        """Whether it is the same address."""
        return isinstance(other, Address) and other._address == self._address

    def __hash__(self) -> int:
        """Of the address."""
        return hash(self._address)

    def __reduce__(self) -> Any:
        """As it was made."""
        return Address, (self._address,)


def named(text: str) -> Path:
    """A name as a library keeps it: the path of a file, or an Address."""
    return Address(text) if "://" in text and not os.path.isabs(text) else Path(text)


def given(text: str | Path) -> Path:
    """What a user gives: an absolute path, or an Address. Raises InputError for one with a key."""
    found = named(os.fspath(text))
    if not isinstance(found, Address):
        return Path(os.path.abspath(text))
    try:
        place = urlsplit(str(found)).netloc
    except ValueError as e:
        raise InputError(f"{found} is not an address: {e}") from e
    if "@" in place:
        raise InputError(
            "an address with a user or a key before @ would be kept in the library with it: give "
            "keys as variables of the environment, on every machine"
        )
    return found


def list_address(address: Address) -> tuple[dict[Address, Seen], bool]:
    """The videos at an address as they are seen now, sorted, and whether it is a folder.

    As of folders on a disk (video.find.list_videos): known suffixes, no hidden names. Raises
    InputError where nothing is there or nobody answers, MissingError without pyarrow.
    """
    arrow = _arrow()
    with _named(address):
        system, root = _opened(address)
        info = system.get_file_info(root)
        if info.type == arrow.FileType.File:
            return {address: _seen(info)}, False
        inside: list[Any] = []
        if info.type == arrow.FileType.Directory:
            inside = system.get_file_info(arrow.FileSelector(root, recursive=True))
    found = {}
    for info in sorted(inside, key=lambda i: i.path):
        below = PurePosixPath(info.path[len(root.rstrip("/")) :].lstrip("/"))
        hidden = any(part.startswith(".") for part in below.parts)
        if info.type == arrow.FileType.File and below.suffix.lower() in SUFFIXES and not hidden:
            found[_below(address, str(below))] = _seen(info)
    if not found:
        raise InputError(f"{address}: no such video, and no folder that holds one")
    return found, True


@contextmanager
def fetched(address: Address) -> Iterator[tuple[Path, Seen]]:
    """Yield a copy of the video below $TMPDIR and how it was seen; it is deleted at the end.

    Raises InputError where it cannot be fetched, NoTemporaryFolderError where $TMPDIR is full.
    """
    with temporary_folder("a video of an object store") as folder:
        copy = folder / f"video{PurePosixPath(unquote(urlsplit(str(address)).path)).suffix}"
        with _named(address):
            system, path = _opened(address)
            seen = _seen(system.get_file_info(path))
            stream = system.open_input_stream(path)
        with stream, copy.open("wb") as file:
            while True:
                with _named(address):
                    data = stream.read(_CHUNK)
                if not data:
                    break
                file.write(data)
        yield copy, seen


def _below(address: Address, name: str) -> Address:
    parts = urlsplit(str(address))
    return Address(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}").geturl())


def _seen(info: Any) -> Seen:
    return info.size or 0, info.mtime_ns or 0


def _opened(address: Address) -> tuple[Any, str]:
    """The file system of an address, and its name there."""
    arrow = _arrow()
    try:
        return arrow.FileSystem.from_uri(str(address))
    except ValueError as e:
        if "Unrecognized filesystem" not in str(e):
            raise
    fsspec = require("fsspec", f"reading {address}", "ray")
    system, path = fsspec.core.url_to_fs(str(address))
    return arrow.PyFileSystem(arrow.FSSpecHandler(system)), str(path)


def _arrow() -> Any:
    return require("pyarrow.fs", "reading from an object store", "ray")


@contextmanager
def _named(address: Address) -> Iterator[None]:
    """Turn what a file system raises into InputError with the address."""
    try:
        yield
    except (OSError, ValueError, ImportError) as e:
        reason = getattr(e, "strerror", None) or one_line(str(e))
        raise InputError(f"{address} cannot be read: {reason}") from e
