"""The files of a library: rows in SQLite, vectors beside them, as one run writes them.

    library.json   the passport: whose vectors these are (library.passport)
    rows.db        SQLite, the tables of database.SCHEMA
    vectors.f32    float32, little-endian, one vector after the other; row i begins at 4 * width * i
    vectors.i8     the same vectors in 8 bits, which a search reads first (library.codes)
    lock           locked by the run that writes

A commit makes the new vectors durable and then adds their rows in one transaction: a stop at any
moment leaves what was committed. Vectors behind the last row are of no run that ended well; the
next one cuts them off. It makes the 8 bits of vectors that have none.

Beside LanceDB and Parquet (benchmarks.stores measures all three) this needs no package, keeps three
files where they keep thousands, marks rows in place, and has its vectors in one file that numpy
maps. A search needs no index of another library beside it: products in 8 bits, and exact ones of
what these leave over, serve a million vectors.
"""

from __future__ import annotations

import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError, storable
from stan_infer.library.address import named
from stan_infer.library.blocks import in_blocks
from stan_infer.library.codes import CODES, encoded
from stan_infer.library.database import (
    COUNT_ROWS,
    PASSPORT,
    ROWS,
    SCHEMA,
    VECTORS,
    committed,
    connect,
    end_writing,
    errors_named,
    failures,
    mapped,
)
from stan_infer.library.passport import PASSPORT_SCHEMA, Passport
from stan_infer.system import kept
from stan_infer.system.atomic import new_file
from stan_infer.system.json_file import json_line
from stan_infer.system.temporary import workplace

_GOES_ON = "the same command goes on from there"
_AT_ONCE = 1024  # vectors whose 8 bits are made together
_OLD_AT_ONCE = 64 * _AT_ONCE  # of those that have none


class File(NamedTuple):
    """A file as it was seen: size in bytes, time of change, hash of its content, or why not."""

    size: int
    mtime_ns: int
    sha256: bytes | None
    error: str | None = None
    gone: bool = False


class Part(NamedTuple):
    """A vector that was written: its place, the part of the video, its checksum."""

    id: int
    seconds: tuple[float, float] | None
    crc: int


class Store:
    """The files of a library, open for writing; use it inside `place.locked`."""

    def __init__(self, folder: Path, width: int) -> None:
        """Open what `new_store` made; what the last run did not commit is cut off.

        Raises InputError where the files are not a library's, CheckError where they are damaged.
        """
        self.folder, self.width = folder, width
        self._rows = 0  # that this run has added
        self._db: sqlite3.Connection | None = None
        self._file: IO[bytes] | None = None
        self._codes: IO[bytes] | None = None
        self._uncoded: list[bytes] = []  # vectors whose 8 bits are not written
        try:
            with errors_named(folder):
                self._db = connect(folder, write=True)
                self._file = _open_own(folder / VECTORS)
                self._done = self._begun = committed(self._db, folder, width)
                self._file.truncate(self._done * width * 4)
                self._file.seek(0, os.SEEK_END)
                self._codes = _open_own(folder / CODES, os.O_CREAT)
                if not os.fstat(self._codes.fileno()).st_size:  # it may be new
                    with suppress(OSError, AttributeError):  # Windows
                        mode = os.fstat(self._file.fileno()).st_mode
                        os.fchmod(self._codes.fileno(), mode & 0o777)
                self._code_old()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        """This store."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close it; what was not committed is lost."""
        self.close()

    def close(self) -> None:
        """Close the files and let others write."""
        if self._db is not None:
            end_writing(self._db)
        for file in (self._file, self._codes):
            if file is not None:
                with suppress(OSError):
                    file.close()
        self._db = self._file = self._codes = None

    def file(self, path: Path) -> File | None:
        """How a file was seen last, or None."""
        asked = "SELECT size, mtime_ns, sha256, error, gone FROM files WHERE path = ?"
        for size, mtime, sha256, error, gone in self._run(asked, os.fsencode(path)):
            return File(size, mtime, sha256, error, bool(gone))
        return None

    def clip(self, sha256: bytes) -> tuple[int, str | None] | None:
        """How many rows a content has, and the error if there was one; None: it is new."""
        asked = (
            "SELECT (SELECT count(*) FROM rows WHERE clip = clips.id), error FROM clips"
            " WHERE sha256 = ?"
        )
        return next(iter(self._run(asked, sha256)), None)

    def contents(self) -> list[bytes]:
        """The hashes of all contents, sorted."""
        return [sha256 for (sha256,) in self._run("SELECT sha256 FROM clips ORDER BY sha256")]

    def paths_of(self, sha256: bytes) -> Iterator[Path]:
        """The files of this content that are not known to be gone."""
        asked = "SELECT path FROM files WHERE sha256 = ? AND NOT gone"
        return (named(os.fsdecode(path)) for (path,) in self._run(asked, sha256))

    def rows(self) -> int:
        """How many rows belong to files that are there."""
        return int(next(iter(self._run(COUNT_ROWS)))[0])

    def vectors(self, count: int) -> NDArray[np.float32]:
        """The first committed vectors, at most `count`, as they lie on the disk."""
        return mapped(self.folder, min(count, self._done), self.width)

    def failures(self) -> list[tuple[Path, str]]:
        """Files that are there without vectors, or not all, with the reason."""
        assert self._db is not None
        with errors_named(self.folder):
            return [*failures(self._db)]

    def put_file(self, path: Path, file: File) -> None:
        """Say how a file was seen now."""
        self._run(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)",
            os.fsencode(path), file.size, file.mtime_ns, file.sha256,
            None if file.error is None else storable(file.error), int(file.gone),
        )  # fmt: skip

    def below(self, folder: Path) -> Iterator[Path]:
        """All files that were seen below a folder and not known to be gone."""
        first = os.fsencode(folder).rstrip(b"/") + b"/"
        asked = "SELECT path FROM files WHERE path >= ? AND path < ? AND NOT gone"
        return (named(os.fsdecode(p)) for (p,) in self._run(asked, first, first[:-1] + b"0"))

    def mark_gone(self, paths: Iterable[Path]) -> None:
        """Say that files are not there any more."""
        for path in paths:
            self._run("UPDATE files SET gone = 1 WHERE path = ?", os.fsencode(path))

    def add_vector(self, vector: NDArray[Any], seconds: tuple[float, float] | None) -> Part:
        """Write a vector [E] behind the others; it counts with the clip that has it."""
        assert self._file is not None
        data = np.ascontiguousarray(vector, "<f4").tobytes()
        assert len(data) == self.width * 4, "another width"
        with errors_named(self.folder):
            self._file.write(data)
            self._uncoded.append(data)
            if len(self._uncoded) == _AT_ONCE:
                self._code_new()
        part = Part(self._begun, seconds, zlib.crc32(data))
        self._begun += 1
        return part

    def add_clip(
        self,
        sha256: bytes,
        parts: Sequence[Part],
        *,
        frames: int | None = None,
        length_s: float | None = None,
        decoder: str | None = None,
        error: str | None = None,
    ) -> None:
        """Add a content with its vectors, or with the error for which it has none, or not all."""
        names = "sha256, frames, length_s, decoder, error, embedded_ns"
        reason = None if error is None else storable(error)
        clip = self._run(
            f"INSERT INTO clips ({names}) VALUES (?, ?, ?, ?, ?, ?)",
            sha256, frames, length_s, decoder, reason, time.time_ns(),
        ).lastrowid  # fmt: skip
        for part in parts:
            row = (part.id, clip, *(part.seconds or (None, None)), part.crc)
            self._run("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", *row)
        self._rows += len(parts)
        self._done = parts[-1].id + 1 if parts else self._done

    def forget(self, sha256: bytes) -> None:
        """Drop a content, so that it is new; its vectors stay where they are, without rows."""
        self._run("DELETE FROM rows WHERE clip IN (SELECT id FROM clips WHERE sha256 = ?)", sha256)
        self._run("DELETE FROM clips WHERE sha256 = ?", sha256)

    def commit(self) -> None:
        """Make what was added durable, all or nothing."""
        assert self._db is not None and self._file is not None and self._codes is not None
        if not self._db.in_transaction:
            return
        self._run("UPDATE state SET vectors = ?", self._done)
        self._check_there(self._file)
        with errors_named(self.folder):
            self._code_new()
            for file in (self._file, self._codes):
                file.flush()
                os.fsync(file.fileno())
            self._db.execute("COMMIT")
        if self._rows:
            more = f"{self._rows} more row{'s' * (self._rows > 1)}"
            kept.note(self.folder, f"has {more}: {_GOES_ON}")
        else:
            kept.note(self.folder, f"has no more rows, but notes on its files: {_GOES_ON}")

    def _code_new(self) -> None:
        """Write the 8 bits of the vectors that were added."""
        assert self._codes is not None
        vectors = np.frombuffer(b"".join(self._uncoded), "<f4").reshape(-1, self.width)
        self._codes.write(encoded(vectors).tobytes())
        self._uncoded.clear()

    def _code_old(self) -> None:
        """Cut off the 8 bits of no vector, and make those that are missing."""
        assert self._codes is not None
        there = min(os.fstat(self._codes.fileno()).st_size // self.width, self._done)
        self._codes.truncate(there * self.width)
        self._codes.seek(0, os.SEEK_END)
        for first in range(there, self._done, _OLD_AT_ONCE):
            vectors = self.vectors(self._done)[first : first + _OLD_AT_ONCE]
            made = np.empty(vectors.shape, np.int8)

            def code(part: slice, vectors: Any = vectors, made: Any = made) -> None:
                made[part] = encoded(vectors[part])

            in_blocks(code, len(vectors), _AT_ONCE)
            self._codes.write(made.tobytes())
            self._codes.flush()
        os.fsync(self._codes.fileno())

    def _check_there(self, file: IO[bytes]) -> None:
        """Raise InputError where the folder is not the one any more that was opened."""
        path = self.folder / VECTORS
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return
        raise InputError(
            f"library {self.folder} was deleted, moved or replaced while it was written: what was "
            "embedded since is lost; run the command again"
        )

    def _run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        assert self._db is not None
        with errors_named(self.folder):
            if not statement.startswith("SELECT") and not self._db.in_transaction:
                self._db.execute("BEGIN IMMEDIATE")
            return self._db.execute(statement, values)


def open_store(folder: Path, passport: Passport) -> Store:
    """The store of a library; one of an earlier version, which had no 8 bits, becomes one of this.

    An earlier version does not open it then: it would leave the 8 bits of what it cuts off.
    """
    if passport["schema"] == PASSPORT_SCHEMA:
        return Store(folder, passport["width"])
    with errors_named(folder):
        (folder / CODES).unlink(missing_ok=True)
        store = Store(folder, passport["width"])
        try:
            with new_file(folder / PASSPORT) as file:
                file.write_text(json_line({**passport, "schema": PASSPORT_SCHEMA}) + "\n")
        except BaseException:
            store.close()
            raise
    return store


def new_store(folder: Path, passport: str) -> None:
    """Make the files of an empty library in a folder that is there; passport: a line of JSON.

    They are made in a temporary folder and get their names whole, the passport last: before it has
    its name there is no library, and the next run begins anew.
    """
    with errors_named(folder), workplace(folder) as work:
        db = sqlite3.connect(work / ROWS, isolation_level=None)
        try:
            db.execute("BEGIN")
            for statement in SCHEMA:
                db.execute(statement)
            db.execute("INSERT INTO state VALUES (0, 0)")
            db.execute("COMMIT")
        finally:
            db.close()
        with (work / PASSPORT).open("w", encoding="utf-8") as file:
            file.write(passport + "\n")
            file.flush()
            os.fsync(file.fileno())
        for name in (VECTORS, CODES):
            (folder / name).touch()
        for name in (f"{ROWS}-wal", f"{ROWS}-shm"):
            (folder / name).unlink(missing_ok=True)
        for name in (ROWS, PASSPORT):
            os.replace(work / name, folder / name)
        _sync_folder(folder)
        kept.note(folder, f"is a library without rows so far: {_GOES_ON}")


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _open_own(path: Path, more: int = 0) -> IO[bytes]:
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | more
    return os.fdopen(os.open(path, flags, 0o644), "r+b")
