"""The files of a library's rows, read from its database when they are asked for."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from operator import index
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError
from stan_infer.library.database import VECTORS, connect, errors_named, path_of

_AT_ONCE = 65536  # rows; while they are read no run can begin to write
Identity = tuple[int, int]
_FILES = (
    "SELECT rows.id, files.path FROM rows CROSS JOIN clips ON clips.id = rows.clip"
    " CROSS JOIN files ON files.sha256 = clips.sha256 WHERE NOT files.gone"
)
_CLIP = "SELECT clip FROM rows WHERE id = ?"
_SAME = "SELECT id FROM rows WHERE clip = ? ORDER BY id"

# Those of contents, without those of contents that have no rows; fast as FORSAKEN is.
_COUNT = (
    "SELECT (SELECT count(*) FROM files WHERE NOT gone AND EXISTS"
    " (SELECT 1 FROM clips WHERE clips.sha256 = files.sha256)) -"
    " (SELECT count(*) FROM clips NOT INDEXED CROSS JOIN files ON files.sha256 = clips.sha256"
    " WHERE NOT files.gone AND NOT EXISTS (SELECT 1 FROM rows WHERE rows.clip = clips.id))"
)


class RowVideos(Sequence[tuple[str, ...]]):
    """The files of each row, as they are when this is read; () where they have gone since.

    A million rows would take seconds to read and 300 MB to keep, and a search shows ten. `take`
    reads several rows at once. Raises InputError where another library has taken the folder.
    """

    def __init__(self, folder: Path, ids: NDArray[np.int64], identity: Identity) -> None:
        """ids: of the rows, rising. identity: of the library whose rows these are."""
        self._folder, self._ids, self._identity = folder, ids, identity

    def __len__(self) -> int:
        """How many rows."""
        return len(self._ids)

    @overload
    def __getitem__(self, place: int) -> tuple[str, ...]: ...

    @overload
    def __getitem__(self, place: slice) -> list[tuple[str, ...]]: ...

    def __getitem__(self, place: int | slice) -> tuple[str, ...] | list[tuple[str, ...]]:
        """The files of a row, or of several."""
        if isinstance(place, slice):
            return self.take(range(*place.indices(len(self))))
        if not -len(self) <= index(place) < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        return self.take([index(place)])[0]

    def take(self, places: Iterable[int]) -> list[tuple[str, ...]]:
        """The files of rows that are given by their places in Library.ids."""
        asked = f"{_FILES} AND rows.id = ? ORDER BY files.path"
        with self._database() as db:
            found = [db.execute(asked, (int(self._ids[i]),)).fetchall() for i in places]
        return [tuple(path_of(path) for _, path in files) for files in found]

    def of_same_content(self, places: Iterable[int]) -> list[NDArray[np.int64]]:
        """The places of all rows with the content of each of these rows, rising; see `take`.

        Rows of one content get the same array. It is empty where a row has gone since.
        """
        rows: dict[tuple[int, ...] | None, NDArray[np.int64]] = {}  # of contents
        found = []
        with self._database() as db:
            for place in places:
                clip = db.execute(_CLIP, (int(self._ids[place]),)).fetchone()
                if clip not in rows:
                    ids = db.execute(_SAME, clip).fetchall() if clip else []
                    rows[clip] = self._places(np.array(ids, np.int64).reshape(-1))
                found.append(rows[clip])
        return found

    def _places(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places of those of `ids`, which rise, that were there when the library was opened."""
        places = np.searchsorted(self._ids, ids)
        places = places[places < len(self._ids)]
        return places[self._ids[places] == ids[: len(places)]]

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """The files of all rows, in order; a run may write between some of them."""
        for first in range(0, len(self), _AT_ONCE):
            yield from self._part(self._ids[first : first + _AT_ONCE])

    def _part(self, ids: NDArray[np.int64]) -> Iterator[tuple[str, ...]]:
        asked = f"{_FILES} AND rows.id BETWEEN ? AND ? ORDER BY rows.id, files.path"
        files: dict[int, list[str]] = {}
        with self._database() as db:
            for row, path in db.execute(asked, (int(ids[0]), int(ids[-1]))):
                files.setdefault(row, []).append(path_of(path))
        return (tuple(files.get(row, ())) for row in ids.tolist())

    def files(self) -> int:
        """How many files they are."""
        with self._database() as db:
            return int(db.execute(_COUNT).fetchone()[0])

    def tolist(self) -> list[tuple[str, ...]]:
        """All of them."""
        return [*self]

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with errors_named(self._folder), closing(connect(self._folder)) as db:
            db.execute("BEGIN")
            db.execute("SELECT 1 FROM state").fetchone()  # the moment that is read begins
            self.check()
            yield db

    def check(self) -> None:
        """Raise InputError where another library has taken the folder since this one was opened."""
        if identity(self._folder) != self._identity:
            raise InputError(
                f"library {self._folder} was replaced since it was opened: open it again"
            )


def identity(folder: Path) -> Identity:
    """What tells a library from another that takes its place, as long as its vectors are mapped."""
    with errors_named(folder):
        status = (folder / VECTORS).stat()
    return status.st_dev, status.st_ino
