"""The errors that users see, with their exit codes, and how names of files appear in text.

A message has four parts: what failed, the value seen, what is allowed, what to do.
Any other exception that reaches the command line is a bug of ours (exit code 1).

A file's name on Linux may be any bytes. Python represents bytes that are not UTF-8 as lone
surrogates, which cannot be encoded again as text, so names go through `storable` before they are
written and through `printable` before they are printed.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

# Python's int and float also take 1_0, " 5" and other scripts' digits.
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class StanError(Exception):
    """Base class of every error that a user can correct; any other exception is a bug of ours.

    Attributes:
        exit_code: of the command line: 2, 3 or 4.

    Example:
        >>> import stan_infer as si
        >>> try:
        ...     si.load_model("absent.pt")
        ... except si.StanError as error:
        ...     print(type(error).__name__, error.exit_code)
        InputError 2
    """

    exit_code = 1

    def __str__(self) -> str:
        """The message as one line of printable text, as names in it may hold any character."""
        return one_line(super().__str__())


class InputError(StanError):
    """An option, checkpoint, video, text or exported folder is wrong; exit code 2.

    Example:
        >>> import stan_infer as si
        >>> si.sample_indices(0, 8)
        Traceback (most recent call last):
        stan_infer.errors.InputError: cannot sample frames: the video has 0; it needs at least 1
    """

    exit_code = 2


class MissingError(StanError):
    """A package, library, driver or device is missing; exit code 3. The end says what to do.

    Example:
        >>> import stan_infer as si
        >>> issubclass(si.MissingError, si.StanError), si.MissingError.exit_code
        (True, 3)
    """

    exit_code = 3


class CheckError(StanError):
    """A check failed: outputs out of tolerance, a wrong hash, a fault; exit code 4.

    Example:
        >>> import stan_infer as si
        >>> issubclass(si.CheckError, si.StanError), si.CheckError.exit_code
        (True, 4)
    """

    exit_code = 4


_LONGEST, _COMPARED = 100, 1000  # characters of a word, and number of words, that nearest takes

_REASONS = 5  # in one message
# What other tools call the same thing.
_ELSEWHERE = {
    "gpu": "cuda", "nvidia": "cuda", "onnx": "ort", "onnxruntime": "ort", "pytorch": "eager",
    "torch": "eager", "tensorrt": "trt", "tensorrt-rtx": "trt-rtx", "ov": "openvino",
    "score": "run", "predict": "run", "infer": "run", "classify": "run", "search": "run",
    "quantise": "calibrate", "quantize": "calibrate", "compare": "verify", "convert": "export",
    "float32": "fp32", "float": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16",
}  # fmt: skip

DOCS = ""  # the site's public address, without a slash at the end; empty: messages name the page


def see(page: str) -> str:
    """Return " (see PAGE.md)" for the end of a message, or the page's address if there is one."""
    return f" (see {f'{DOCS}/{page}.html' if DOCS else f'{page}.md'})"


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return `"; did you mean 'x'?"` for the known word closest to `word`, or an empty string."""
    from difflib import get_close_matches

    # The time grows with the square of the lengths, and the words may come from a stranger's file.
    short = {k.lower(): k for k in known[:_COMPARED] if len(k) <= _LONGEST}
    match = get_close_matches(word.lower(), short, n=1, cutoff=0.5) if len(word) <= _LONGEST else []
    if (other := _ELSEWHERE.get(word.lower())) in short:
        match = [str(other)]
    return f"; did you mean '{short[match[0]]}'?" if match else ""


def check_word(name: str, word: str, known: Iterable[str]) -> None:
    """Raise InputError, which names the nearest and all known words, if `word` is not known."""
    words = list(known)
    if word not in words:
        raise InputError(f"{name} '{word}' is unknown{nearest(word, words)} ({', '.join(words)})")


def check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise InputError unless a value is a whole number from `low` to `high` (None: no bound)."""
    number: Any = value if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or not low <= number <= (number if high is None else high):
        to = "on" if high is None else f"to {high}"
        raise InputError(f"{name} is {value!r}; give a whole number from {low} {to}")


def check_number(name: str, value: object, low: float, high: float, unit: str = "") -> None:
    """Raise InputError unless a value is a number from `low` to `high`. unit: as in " points"."""
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not low <= number <= high or number == math.inf:
        to = "on" if high == math.inf else f"to {high:g}"
        raise InputError(f"{name} is {value!r}; give a number from {low:g} {to}{unit}")


def first_reasons(found: Iterable[object], empty: str) -> str:
    """Return the first reasons and how many more there are, or `empty` where there are none."""
    texts = list(dict.fromkeys(map(str, found)))
    more = [f"and {len(texts) - _REASONS} more"] if len(texts) > _REASONS else []
    return "; ".join([*texts[:_REASONS], *more]) or empty


def storable(text: str | os.PathLike[str]) -> str:
    r"""The text with every byte that is not UTF-8 as \xNN, for JSON, ONNX and files."""
    name = os.fspath(text)
    if name.isascii():
        return name
    return "".join(_escape(c) if "\ud800" <= c <= "\udfff" else c for c in name)


def printable(text: str | os.PathLike[str]) -> str:
    r"""As `storable`, with control characters as \n or \x1b, so that no terminal obeys them."""
    name = os.fspath(text)
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else _escape(c) for c in name)


def one_line(text: str) -> str:
    """As `printable`, in one line of at most about 2,000 characters, as names may be very long."""
    line = printable(" ".join(text.split()))
    # The middle is left out, because the end of a message says what to do.
    return line if len(line) <= 2000 else f"{line[:900]} ... {line[-900:]}"


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, as os.fsdecode keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def whole(text: str) -> int:
    """ "12" -> 12; ValueError for anything else than digits as people write them."""
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def number(text: str) -> float:
    """ "0.5", ".5" or "1e-3" -> a finite float; ValueError for anything else."""
    if not _NUMBER.fullmatch(text) or not math.isfinite(found := float(text)):
        raise ValueError(f"{text!r} is no number")
    return found
