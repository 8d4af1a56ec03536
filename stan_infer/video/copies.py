"""Which video files hold the same: copies, by their content and not by their names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from stan_infer.errors import InputError
from stan_infer.system.outside_file import open_regular

_ENDS = 2**16  # bytes of a file's head and of its tail that tell its content


def copies(videos: Iterable[Path]) -> list[Path]:
    """The videos whose content one before them has; the same path again is no copy.

    Only files of equal sizes are opened.
    """
    sizes: dict[int, list[Path]] = {}
    for path in dict.fromkeys(videos):
        try:
            sizes.setdefault(path.stat().st_size, []).append(path)
        except (OSError, ValueError):
            continue  # reading it fails too, and that is told
    found = []
    for same in sizes.values():
        seen: set[str] = set()
        for path in same if len(same) > 1 else ():
            key = content_key(path, 0)
            found += [path] if key in seen else []
            seen.add(key)
    return found


def content_key(path: Path, seed: int) -> str:
    """A hash of seed and of a file's size, head and tail, or of its name where it is unreadable."""
    content = hashlib.sha256(f"{seed}:".encode())
    try:
        opened, size = open_regular(path)
        with opened as file:
            content.update(f"{size}:".encode() + file.read(_ENDS))
            file.seek(max(size - _ENDS, 0))
            content.update(file.read(_ENDS))
    except (InputError, OSError):
        content.update(os.fsencode(path))
    return content.hexdigest()
