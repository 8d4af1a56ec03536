"""A text file of one thing per line: labels, texts, names of videos."""

from __future__ import annotations

from pathlib import Path

from stan_infer.errors import InputError
from stan_infer.system.outside_file import read_text

MAX_LINES = 100_000
_MAX_BYTES = 16 * 2**20


def read_lines(path: Path, name: str) -> list[str]:
    """The lines of a text file that are not blank; `name` says in errors what they are."""
    one = f"it holds one of the {name} per line"
    text = read_text(path, _MAX_BYTES, name=f"{name} {path}", hint=f"; {one}")
    found = [line for line in map(str.strip, text.splitlines()) if line]
    if not found:
        raise InputError(f"{name} {path} is empty; {one}")
    if len(found) > MAX_LINES:
        raise InputError(f"{name} {path} has {len(found)} lines; at most {MAX_LINES} are read")
    return found
