"""The errors that users see, and the exit code that each stands for.

A message has four parts: what failed, the value seen, what is allowed, what to do.
Any other exception that reaches the command line is a bug of ours (exit code 1).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from stan_infer.names import one_line


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


def require(module: str, purpose: str, extra: str) -> Any:
    """Import an optional package and return it.

    purpose: what needs it, as in "reading videos". extra: of ours, that brings it. Raises
    MissingError with the command that installs it when the package is absent, or installs it anew
    when it does not load, whatever it raises then.
    """
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as e:  # a broken package may raise anything while it loads
        from stan_infer.installing import install_command

        if isinstance(e, ModuleNotFoundError) and e.name == module:
            raise MissingError(f"{purpose} needs {module} ({e}): {install_command(extra)}") from e
        raise MissingError(
            f"{purpose} needs {module}, which does not load ({type(e).__name__}: {str(e)[:200]}): "
            f"{install_command(extra, options='--force-reinstall')}"
        ) from e


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
