"""Names of files and other texts from outside, in a form that every output takes.

A file's name on Linux is any bytes. Python keeps those that are not UTF-8 as lone surrogates, which
no encoder of text accepts: so names pass through here before they are written or printed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def storable(text: str | os.PathLike[str]) -> str:
    r"""The text with every byte that was not UTF-8 as \xNN: what JSON, ONNX and files take."""
    name = os.fspath(text)
    if name.isascii():
        return name
    return "".join(_escape(c) if "\ud800" <= c <= "\udfff" else c for c in name)


def printable(text: str | os.PathLike[str]) -> str:
    r"""The same, and controls as \n or \x1b: nothing of a stranger's reaches the terminal raw."""
    name = os.fspath(text)
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else _escape(c) for c in name)


def one_line(text: str) -> str:
    """The same in one line of at most 2,000 characters, for messages: names may be monstrous."""
    line = printable(" ".join(text.split()))
    # The end says what to do, so the middle goes.
    return line if len(line) <= 2000 else f"{line[:900]} ... {line[-900:]}"


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


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, as os.fsdecode keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
