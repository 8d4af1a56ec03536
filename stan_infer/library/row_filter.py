"""Which rows of a library a search looks at: by the path, dates and length of their videos."""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import functools
import math
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import CheckError, InputError, check_number
from stan_infer.library.database import connect, errors_named, path_of

_MAX_PATTERN = 4096  # characters
_FIRST, _LAST = -(2**63), 2**63 - 1  # nanoseconds since 1970 that are kept
_DATES = ("since", "before", "added_since", "added_before")
# Tests that SQLite does itself, so that a million files take a fraction of a second.
_OF_FILES = {
    "path": "CAST(files.path AS TEXT) GLOB CAST(? AS TEXT)",
    "since": "files.mtime_ns >= ?",
    "before": "files.mtime_ns < ?",
}
_OF_CLIPS = {
    "added_since": "clips.embedded_ns >= ?",
    "added_before": "clips.embedded_ns < ?",
    "longer": "clips.length_s >= ?",
    "shorter": "clips.length_s <= ?",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFilter:
    """What a search looks at; without anything, all.

    path: a pattern of the video's path, in which * also stands for /, as in "holiday/*.mp4"; one
    that does not begin with / fits at any folder. since, before: the file's date as it was when it
    was embedded, ISO 8601 as in "2026-11-27" or "2026-11-27T18:30", local time unless it says
    another. added_since, added_before: when its content was embedded. longer, shorter: seconds that
    the whole video lasts; one whose file does not say it is not looked at. Raises InputError for
    values that are not allowed.
    """

    path: str | None = None
    since: str | None = None
    before: str | None = None
    added_since: str | None = None
    added_before: str | None = None
    longer: float | None = None
    shorter: float | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        if self.path is not None and not self.path.strip():
            raise InputError("--path is blank; give a pattern, as in --path 'holiday/*.mp4'")
        if self.path is not None and not _is_pattern(self.path):
            raise InputError(
                f"--path has {len(self.path)} characters; a pattern has at most {_MAX_PATTERN}, "
                "and none that a path cannot have"
            )
        for name in _DATES:
            _nanoseconds(name, getattr(self, name))
        for name in ("longer", "shorter"):
            value = getattr(self, name)
            if value is not None:
                check_number(f"--{name}", value, 0, math.inf)

    def files(self, folder: Path, paths: Iterable[str]) -> set[str]:
        """Those of the files of rows that are looked at themselves, by their path and date."""
        tests, values = self._tests(_OF_FILES)
        if not tests:
            return {*paths}
        asked = f"SELECT count(*) FROM files WHERE path = ? AND NOT gone{tests}"
        with _database(folder) as db:
            return {p for p in paths if db.execute(asked, (os.fsencode(p), *values)).fetchone()[0]}

    def rows(self, folder: Path, ids: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The numbers of rows with a file that is looked at; None: all. ids: as of the library."""
        of_files, values = self._tests(_OF_FILES)
        of_clips, more = self._tests(_OF_CLIPS)
        if not of_files and not of_clips:
            return None
        tables = "clips"
        if of_files:
            tables = "files CROSS JOIN clips ON clips.sha256 = files.sha256"
            of_files = f" AND NOT files.gone{of_files}"
        asked = (
            f"SELECT rows.id FROM {tables} CROSS JOIN rows ON rows.clip = clips.id"
            f" WHERE true{of_files}{of_clips}"
        )
        with _database(folder) as db:
            try:
                found = np.fromiter(db.execute(asked, (*values, *more)), [("id", "i8")])["id"]
            except (ValueError, OverflowError) as e:
                raise CheckError(f"library {folder} is damaged: a row has no number ({e})") from e
        places = np.searchsorted(ids, np.unique(found))
        places = places[places < len(ids)]
        return places[np.isin(ids[places], found)]

    def _tests(self, known: dict[str, str]) -> tuple[str, list[Any]]:
        """Those of `known` that are asked for, and their values."""
        given = [name for name in known if getattr(self, name) is not None]
        tests = [known[name] for name in given]
        if "path" in given and "[" in str(self.path):
            tests[given.index("path")] = "fits(files.path, ?)"
        return "".join(f" AND {test}" for test in tests), [*map(self._value, given)]

    def _value(self, name: str) -> Any:
        value = getattr(self, name)
        if name == "path":
            return os.fsencode(value if value.startswith("/") else f"*/{value}")
        return _nanoseconds(name, value) if name in _DATES else float(value)


def _is_pattern(text: str) -> bool:
    """Whether it may be one of a path: short enough, and of bytes that a path can have."""
    try:
        return len(text) <= _MAX_PATTERN and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


@contextmanager
def _database(folder: Path) -> Iterator[sqlite3.Connection]:
    """The library's, with the function that patterns with sets need: GLOB has other ones."""

    @functools.lru_cache(maxsize=1)
    def compiled(pattern: bytes) -> re.Pattern[str]:
        return re.compile(fnmatch.translate(os.fsdecode(pattern)))

    with errors_named(folder), closing(connect(folder)) as db:
        db.create_function("fits", 2, lambda path, like: bool(compiled(like).match(path_of(path))))
        yield db


def _nanoseconds(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        found = int(datetime.datetime.fromisoformat(text).timestamp() * 1e9)
    except (ValueError, OverflowError, OSError):
        option = f"--{name.replace('_', '-')}"
        raise InputError(
            f"{option} {text!r} is no date; give one as in {option} 2026-11-27, or 2026-11-27T18:30"
        ) from None
    return min(max(found, _FIRST), _LAST)
