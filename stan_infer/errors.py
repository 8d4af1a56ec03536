"""The errors that users see, and the exit code that each stands for.

A message has four parts: what failed, the value seen, what is allowed, what to do.
Any other exception that reaches the command line is a bug of ours (exit code 1).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any


class StanError(Exception):
    """Base of every error that a user can mend."""

    exit_code = 1


class InputError(StanError):
    """Options, checkpoint, video, text or artefact are wrong."""

    exit_code = 2


class MissingError(StanError):
    """A package, library, driver or device is not here; the message ends with what helps."""

    exit_code = 3


class CheckError(StanError):
    """A check failed: outputs out of tolerance, a wrong hash, a fault that doctor found."""

    exit_code = 4


def require(module: str, purpose: str, install: str) -> Any:
    """Import an optional package and return it.

    purpose: what needs it, as in "reading videos". install: what to give to pip install. Raises
    MissingError with that command when the package is absent or does not load.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as e:  # OSError: a shared library of it is missing
        raise MissingError(f'{purpose} needs {module} ({e}): pip install "{install}"') from e


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return `"; did you mean 'x'?"` for the known word closest to `word`, or an empty string."""
    from difflib import get_close_matches

    if len(word) > 100:  # the search takes time by the square of it
        return ""
    match = get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def check_word(name: str, word: str, known: Iterable[str]) -> None:
    """Raise InputError, with the nearest of the known words and all of them, for another one."""
    words = list(known)
    if word not in words:
        raise InputError(f"{name} '{word}' is unknown{nearest(word, words)} ({', '.join(words)})")
