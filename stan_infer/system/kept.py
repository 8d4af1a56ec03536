"""What this process has put in its place so far: the line that an interruption prints says it."""

from __future__ import annotations

import os
from pathlib import Path

_SHOWN = 5
_places: dict[Path, str] = {}
_recording = False  # a program that imports the package would only collect them
_printed: list[str] = []


def record() -> None:
    """Begin anew, as the command line does when it starts."""
    global _recording
    _recording = True
    _places.clear()
    _printed.clear()


def note(path: str | Path, words: str = "was written") -> None:
    """Note that `path`, a file or folder, is whole in its place; words: what is said of it."""
    if _recording:
        _places[Path(os.path.abspath(path))] = words


def note_printed(words: str) -> None:
    """Note what was printed, as in "the results of 3 clips were printed"."""
    if _recording:
        _printed.append(words)


def in_words() -> str:
    """What of it is still there: what lay in a temporary folder is gone, or belongs to a folder."""
    there = {p: words for p, words in dict(_places).items() if p.exists()}
    found = [
        f"{_shown(p)} {words}"
        for p, words in there.items()
        if not any(q in there for q in p.parents)
    ]
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return "; ".join([*_printed, *found[:_SHOWN], *more]) or "nothing was written"


def _shown(path: Path) -> str:
    """As the user most likely gave it: from the current folder where it lies there."""
    try:
        here = Path.cwd()
    except OSError:  # it was removed
        return str(path)
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
