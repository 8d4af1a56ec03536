"""Read files from strangers: only regular files, and at most so many bytes.

Reading a pipe might never end, and opening a device may have effects.
"""

from __future__ import annotations

import glob
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stan_infer.errors import InputError, storable
from stan_infer.system.file_kind import HEAD, FileKind, kind_of, read_kind

MAX_LINES = 100_000
_MAX_TEXT_BYTES = 16 * 2**20
# An address, of which pathlib leaves one slash; of one letter it would be a drive.
_ADDRESS = re.compile(r"(?:^|/)([A-Za-z][A-Za-z0-9+.-]+):/+(.+)")
_LIVE = ("rtsp", "rtsps", "rtmp", "rtp", "udp", "srt")
DAMAGED = "the file is damaged or was not downloaded whole: fetch it again"


def open_regular(path: Path, *, follow: bool = True) -> tuple[io.BufferedReader, int]:
    """Open a file and return it with its size in bytes; InputError unless it is a regular file.

    follow: False raises OSError for a link, even one that took the file's place a moment ago.
    """
    # Checked before opening, which may have effects on a device, and again on the open file.
    try:
        _check_regular(os.stat(path, follow_symlinks=follow))
    except ValueError as e:
        raise InputError(f"it is not a path: {e}") from e
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = open(os.open(path, flags | (0 if follow else getattr(os, "O_NOFOLLOW", 0))), "rb")
    try:
        status = os.fstat(file.fileno())
        _check_regular(status)
    except BaseException:
        file.close()
        raise
    return file, status.st_size


def address_of(path: str | Path) -> str | None:
    """Return the address that a path is, such as https://x.org/a.mp4; None for another path."""
    match = _ADDRESS.search(os.fspath(path))
    return f"{match[1]}://{match[2]}" if match else None


def refuse_address(path: Path) -> None:
    """Raise InputError for a result at s3://bucket/name, which would be folders of that name."""
    if (address := address_of(path)) and not path.is_absolute():
        raise InputError(
            f"cannot write {address}: it is an address, and nothing is sent to one; give a path on "
            "this machine"
        )


def odd_name(path: str | Path) -> str:
    """Say what a name that does not exist is instead, and what to do; "" for an ordinary name."""
    name = os.fspath(path)
    if address := address_of(name):
        scheme, _, rest = address.partition("://")
        if scheme.lower() == "file":
            return f"file:///{rest} is an address: give the path alone, /{rest}"
        live = " (`stan-infer watch` reads live pictures)"
        return (
            f"{address} is an address, and nothing is fetched from one: save the file on this "
            f"machine and give its path{live if scheme.lower() in _LIVE else ''}"
        )
    if name.startswith("~") or "$" in name:
        return (
            f"{name} does not exist: the shell replaces ~ and $ only outside quotes, and ~ only "
            "where a word begins"
        )
    if any(c in name for c in "*?["):
        if next(glob.iglob(name), None) is None:
            return f"no file fits the pattern {name}; check the spelling"
        return f"{name} is a pattern, which the shell replaces only outside quotes: leave them out"
    return ""


def _check_regular(status: os.stat_result) -> None:
    # Of a link the opening decides, which refuses it where it must not be followed.
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise InputError(f"it is {what}, not a regular file; give the file itself")


def kind_of_file(path: Path) -> FileKind | None:
    """Return the kind of a regular file, None if it is unknown or cannot be read."""
    try:
        file, _ = open_regular(path)
        with file:
            return read_kind(file)
    except (OSError, InputError):
        return None


def refuse_video(path: Path, *, is_first: bool = False) -> None:
    """Raise InputError for a video, picture or sound where a checkpoint is expected.

    is_first: of a command that takes videos after the checkpoint.
    """
    kind = kind_of_file(path)
    if kind is not None and kind.family in ("video", "picture", "sound"):
        help = "give the checkpoint first, then the videos" if is_first else "give a checkpoint"
        raise InputError(f"{path} is {kind.what}, not a checkpoint; {help}")


def read_bounded(path: Path, limit: int, *, name: str = "", hint: str = "") -> bytes:
    """Return the content of a regular file of at most `limit` bytes; InputError for any other.

    name: of the file in errors; default: its path. hint: appended to every error.
    """
    name = name or str(path)
    try:
        file, size = open_regular(path)
        with file:
            data = file.read(limit + 1)
    except FileNotFoundError as e:
        raise InputError(odd_name(path) or f"{name}: no such file{hint}") from e
    except InputError as e:
        raise InputError(f"{name} cannot be read: {e}{hint}") from e
    except OSError as e:
        raise InputError(f"{name} cannot be read ({e.strerror or e}){hint}") from e
    if len(data) > limit:
        raise InputError(f"{name} has {size} bytes; at most {limit} are read{hint}")
    return data


def read_text(path: Path, limit: int, *, name: str = "", hint: str = "") -> str:
    """As read_bounded, for text: see decode_text."""
    data = read_bounded(path, limit, name=name, hint=hint)
    return decode_text(data, name=name or str(path), hint=hint)


def decode_text(data: bytes, *, name: str, hint: str = "") -> str:
    """Decode UTF-8: a byte order mark is dropped, every line ends with "\\n".

    Raises InputError for other bytes, and for text that stands in the place of a file: a web page
    or a pointer.
    """
    kind = kind_of(data[:HEAD])
    try:
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()
    except UnicodeDecodeError as e:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{name} is text in UTF-16: save it as UTF-8{hint}") from e
        if kind is not None and not kind.is_text:
            raise InputError(f"{name} is {kind.what}, no text{hint}") from e
        raise InputError(
            f"{name} is no UTF-8 text (byte {data[e.start]:#04x} at position {e.start}): save it "
            f"as UTF-8{hint}"
        ) from e
    if kind is not None and kind.is_stand_in:
        raise InputError(f"{name} is {kind.what}: {kind.help}")
    if "\0" in text:
        raise InputError(f"{name} has zero bytes, as text in UTF-16: save it as UTF-8{hint}")
    return text


def read_lines(path: Path, name: str) -> list[str]:
    """Return the lines of a text file that are not blank, stripped.

    name: what the lines are, such as "labels", for errors. Raises InputError as read_text does, and
    for no line or more than MAX_LINES.
    """
    one = f"give a text file with one of the {name} per line"
    text = read_text(path, _MAX_TEXT_BYTES, name=f"{name} {path}", hint=f"; {one}")
    found = [line for line in map(str.strip, text.split("\n")) if line]
    if not found:
        raise InputError(f"{name} {path} is empty; {one}")
    if len(found) > MAX_LINES:
        raise InputError(f"{name} {path} has {len(found)} lines; at most {MAX_LINES} are read")
    return found


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
    """Yield a path in UTF-8 to the same file, valid inside the block; some libraries need that.

    A name that is not UTF-8 exists on Linux only, where /proc has a path to an open file. If just
    the folder has such a name, files beside `path` are found beside the yielded path, too. Raises
    OSError.
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
