"""Which rows of a library a search looks at: by the path, date and length of their videos."""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import math
import os
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError, StanError, check_number
from stan_infer.library.database import connect, errors_named, path_of
from stan_infer.video.decode_worker import DecodeWorker
from stan_infer.video.windows import Windows

_ANY_DATE = (-(2**63), 2**63 - 1)  # nanoseconds since 1970
_DATED = "NOT files.gone AND files.mtime_ns >= ? AND files.mtime_ns < ?"
MAX_READ = 1000  # videos whose length one search reads


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFilter:
    """What a search looks at; without anything, all.

    path: a pattern of the video's path, in which * also stands for /, as in "holiday/*.mp4"; one
    that does not begin with / fits at any folder. since, before: the file's date as it was when it
    was embedded, ISO 8601 as in "2026-11-27" or "2026-11-27T18:30", local time unless it says
    another. longer, shorter: seconds that the whole video lasts. Raises InputError for values that
    are not allowed.
    """

    path: str | None = None
    since: str | None = None
    before: str | None = None
    longer: float | None = None
    shorter: float | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        if self.path is not None and not self.path.strip():
            raise InputError("--path is blank; give a pattern, as in --path 'holiday/*.mp4'")
        for name in ("since", "before"):
            _nanoseconds(name, getattr(self, name))
        for name in ("longer", "shorter"):
            value = getattr(self, name)
            if value is not None:
                check_number(f"--{name}", value, 0, math.inf)

    @property
    def by_length(self) -> bool:
        """Whether lengths count: videos are then opened."""
        return self.longer is not None or self.shorter is not None

    def files(self, folder: Path) -> Callable[[str], bool]:
        """Whether a file of the library in `folder` is looked at, by its path and date."""
        pattern = None if self.path is None else _pattern(self.path)
        dates = self._dates()
        asked = f"SELECT count(*) FROM files WHERE path = ? AND {_DATED}"

        def fits(path: str) -> bool:
            if pattern is not None and not pattern.match(path):
                return False
            if dates is None:
                return True
            with errors_named(folder), closing(connect(folder)) as db:
                return db.execute(asked, (os.fsencode(path), *dates)).fetchone()[0] > 0

        return fits

    def rows(self, folder: Path, ids: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The numbers of rows with a file that is looked at; None: all. ids: as of the library."""
        dates = self._dates()
        if self.path is None and dates is None:
            return None
        pattern = _pattern(self.path or "*")
        asked = (
            "SELECT rows.id FROM files CROSS JOIN clips ON clips.sha256 = files.sha256"
            f" CROSS JOIN rows ON rows.clip = clips.id WHERE {_DATED} AND fits(files.path)"
        )
        with errors_named(folder), closing(connect(folder)) as db:
            db.create_function(
                "fits", 1, lambda path: pattern.match(path_of(path)) is not None, deterministic=True
            )
            found = db.execute(asked, dates or _ANY_DATE).fetchall()
        return np.flatnonzero(np.isin(ids, np.array([row for (row,) in found], np.int64)))

    def _dates(self) -> tuple[int, int] | None:
        """The dates between which a file has to be; None: all are."""
        since, before = (_nanoseconds(n, getattr(self, n)) for n in ("since", "before"))
        if since is None and before is None:
            return None
        return (
            _ANY_DATE[0] if since is None else since,
            _ANY_DATE[1] if before is None else before,
        )

    def fits_length(self, seconds: float) -> bool:
        """Whether a video of this length is looked at."""
        low = 0.0 if self.longer is None else self.longer
        return low <= seconds and (self.shorter is None or seconds <= self.shorter)


class Lengths:
    """How long videos last, read from their packets in a process of its own; in a `with` block."""

    def __init__(self, timeout_s: float) -> None:
        """timeout_s: for each video."""
        self._worker, self._timeout_s = DecodeWorker(), timeout_s
        self._known: dict[str, float | None] = {}

    def __enter__(self) -> Lengths:
        """This object."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        """End the process."""
        self._worker.close()

    @property
    def read(self) -> int:
        """How many videos were opened."""
        return len(self._known)

    @property
    def unknown(self) -> int:
        """How many of them could not be read."""
        return sum(length is None for length in self._known.values())

    def of(self, path: str) -> float | None:
        """Seconds that a video lasts; None where it cannot be read now."""
        if path not in self._known:
            self._known[path] = self._read(path)
        return self._known[path]

    def _read(self, path: str) -> float | None:
        try:
            plan = self._worker.plan(Path(path), Windows(), timeout_s=self._timeout_s)
        except StanError:
            return None
        return plan.windows[-1].end_s


def _pattern(text: str) -> re.Pattern[str]:
    found = fnmatch.translate(text if text.startswith("/") else f"*/{text}")
    return re.compile(found)


def _nanoseconds(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(datetime.datetime.fromisoformat(text).timestamp() * 1e9)
    except (ValueError, OverflowError, OSError):
        raise InputError(
            f"--{name} {text!r} is no date; give one as in --{name} 2026-11-27, or 2026-11-27T18:30"
        ) from None
