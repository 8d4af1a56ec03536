"""A text file of one thing per line: labels, texts, names of videos."""

from __future__ import annotations

import os
from pathlib import Path

from stan_infer.errors import InputError

MAX_LINES = 100_000
_MAX_BYTES = 16 * 2**20


def read_lines(path: Path, name: str) -> list[str]:
    """The lines of a text file that are not blank; `name` says in errors what they are."""
    one = f"it holds one of the {name} per line"
    try:
        if not os.path.isfile(path):
            raise InputError(f"{name} {path}: no such file; {one}")
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{name} {path} is larger than 16 MiB; {one}")
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{name} {path} cannot be read as UTF-8 text: {e}") from e
    found = [line for line in lines if line]
    if not found:
        raise InputError(f"{name} {path} is empty; {one}")
    if len(found) > MAX_LINES:
        raise InputError(f"{name} {path} has {len(found)} lines; at most {MAX_LINES} are read")
    return found
