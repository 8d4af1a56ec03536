"""The lock file of names on the hub: which commit and which bytes a name stood for.

JSON, so that other tools can read it: {"version": 1, "names": {NAME: {"commit", "file", "files"}}},
where file is the one to open, and files maps each in the repository to its bytes and sha256.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec

from stan_infer.errors import InputError
from stan_infer.system.atomic import new_file
from stan_infer.system.json_file import checked, read_object
from stan_infer.system.outside_file import stays_inside

LOCK = "stan-infer.lock"  # in the current directory
_MAX_BYTES = 4 * 2**20
_AGAIN = "; restore the file, or delete it to have it written anew"


class LockedFile(TypedDict):
    """One file as it was fetched."""

    bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Entry(TypedDict):
    commit: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{40}$")]
    file: str
    files: dict[str, LockedFile]


class _Lock(TypedDict):
    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    names: dict[str, _Entry]


@dataclasses.dataclass(frozen=True)
class Locked:
    """What a name stood for."""

    commit: str
    file: str  # the one to open
    files: dict[str, LockedFile]


def read_lock(path: Path) -> dict[str, Locked]:
    """Return the entries of a lock file, none where there is no file; InputError for another."""
    if not path.exists():
        return {}
    lock = checked(read_object(path, _MAX_BYTES, _AGAIN), _Lock, str(path), _AGAIN)
    for name, entry in lock["names"].items():
        if entry["file"] not in entry["files"] or not all(map(stays_inside, entry["files"])):
            raise InputError(f"{path}: {name[:80]!r} names no file of a repository{_AGAIN}")
    return {n: Locked(e["commit"], e["file"], e["files"]) for n, e in lock["names"].items()}


def add_to_lock(path: Path, name: str, entry: Locked) -> None:
    """Write an entry beside those that are there; raises as read_lock and atomic.new_file."""
    entries = read_lock(path) | {name: entry}
    names: dict[str, Any] = {k: dataclasses.asdict(v) for k, v in sorted(entries.items())}
    text = json.dumps({"version": 1, "names": names}, indent=1)
    with new_file(path) as made:
        made.write_text(text + "\n")
