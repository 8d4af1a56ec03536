"""The errors that users see, the exit code that each stands for, and names from outside in them.

A message has four parts: what failed, the value seen, what is allowed, what to do.
Any other exception that reaches the command line is a bug of ours (exit code 1).

A file's name on Linux is any bytes. Python keeps those that are not UTF-8 as lone surrogates, which
no encoder of text accepts: so names pass through `storable` or `printable` before they are written
or printed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable


class StanError(Exception):
    """Base of every error that a user can mend."""

    exit_code = 1

    def __str__(self) -> str:
        """The message in one line that a terminal shows as it is: names in it are strangers'."""
        return one_line(super().__str__())


class InputError(StanError):
    """Options, checkpoint, video, text or artefact are wrong."""

    exit_code = 2


class MissingError(StanError):
    """A package, library, driver or device is not here; the message ends with what helps."""

    exit_code = 3


class CheckError(StanError):
    """A check failed: outputs out of tolerance, a wrong hash, a fault that doctor found."""

    exit_code = 4


_LONGEST, _COMPARED = 100, 1000  # characters of a word, and words, that nearest looks at


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return `"; did you mean 'x'?"` for the known word closest to `word`, or an empty string."""
    from difflib import get_close_matches

    # Its time grows with the square of the lengths, and words may be a stranger's.
    short = [k for k in known[:_COMPARED] if len(k) <= _LONGEST]
    match = get_close_matches(word.lower(), short, n=1, cutoff=0.5) if len(word) <= _LONGEST else []
    return f"; did you mean '{match[0]}'?" if match else ""


def check_word(name: str, word: str, known: Iterable[str]) -> None:
    """Raise InputError, with the nearest of the known words and all of them, for another one."""
    words = list(known)
    if word not in words:
        raise InputError(f"{name} '{word}' is unknown{nearest(word, words)} ({', '.join(words)})")


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


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, as os.fsdecode keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
