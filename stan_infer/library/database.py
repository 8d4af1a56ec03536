"""The database of a library, which may be a stranger's: its tables, opened safely, errors named.

While a run writes, SQLite is in its mode WAL, in which others can read; after it in the one that
needs no files beside the database, so that a reader leaves none.

The tables must be exactly those of SCHEMA, so that no trigger or view can run; links and journals
are refused.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import CheckError, InputError
from stan_infer.library.address import named
from stan_infer.library.codes import CODES
from stan_infer.system.temporary import tells_no_space, why_no_room

PASSPORT, ROWS, VECTORS, LOCK = "library.json", "rows.db", "vectors.f32", "lock"
FILES = {PASSPORT, ROWS, f"{ROWS}-wal", f"{ROWS}-shm", VECTORS, CODES, LOCK}
MAX_WIDTH = 65536
SCHEMA = (
    # How many vectors of the file have been committed.
    "CREATE TABLE state (id INTEGER PRIMARY KEY, vectors INTEGER NOT NULL)",
    # A content that was embedded, or why it was not. Its rows: none after an error of all of it.
    # length_s: of the whole video, NULL: not known. embedded_ns: when, since 1970.
    "CREATE TABLE clips (id INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, frames INTEGER,"
    " length_s REAL, decoder TEXT, error TEXT, embedded_ns INTEGER NOT NULL)",
    # id: place of the vector. start_s, end_s: the part of the video, NULL: all of it.
    "CREATE TABLE rows (id INTEGER PRIMARY KEY, clip INTEGER NOT NULL, start_s REAL, end_s REAL,"
    " crc INTEGER NOT NULL)",
    # sha256: NULL where the file could not be read, for the reason in error.
    "CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,"
    " sha256 BLOB, error TEXT, gone INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX files_sha256 ON files (sha256, gone)",
    "CREATE INDEX rows_clip ON rows (clip)",
)
# Contents that no file has. Both sides are read in the order of their hashes, so that a million are
# compared in a third of a second; asked for the other way round it takes three.
FORSAKEN = (
    "SELECT id FROM clips WHERE NOT EXISTS"
    " (SELECT 1 FROM files WHERE files.sha256 = clips.sha256 AND NOT files.gone)"
)
COUNT_ROWS = (  # of files that are there
    "SELECT (SELECT count(*) FROM rows) - (SELECT count(*) FROM rows"
    f" WHERE clip IN ({FORSAKEN}) OR clip NOT IN (SELECT id FROM clips))"
)
_RESTORE = "take it from a backup, or embed into a new one"
_PERMISSIONS = "check the permissions of the folder and of its files"
_ADVICE = dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _PERMISSIONS) | {
    errno.ENOENT: _RESTORE
}
_MAX_VALUE = 2**20  # bytes of one value: paths and reasons are shorter


def is_library(folder: Path) -> bool:
    """Whether a folder says that it is a library."""
    return os.path.lexists(folder / PASSPORT)


def connect(folder: Path, *, write: bool = False) -> sqlite3.Connection:
    """Open the database, which may be a stranger's, and check that it has our tables alone."""
    path = folder / ROWS
    if os.path.lexists(f"{path}-journal"):
        # SQLite would play it back, and delete the file that it may name.
        raise InputError(f"{path}-journal is not of a library: delete it, or the library")
    for name in (ROWS, f"{ROWS}-wal", f"{ROWS}-shm", VECTORS, CODES):
        if name in (ROWS, VECTORS) or os.path.lexists(folder / name):
            check_own(folder / name, write, "; delete it" if name == CODES else "")
    # The file is not opened here: to close it would drop the locks of another connection to it.
    options = "mode=rw" if write else "mode=ro"
    wal = Path(f"{path}-wal")
    if not write and not os.access(folder, os.W_OK) and not (wal.exists() and wal.stat().st_size):
        options += "&immutable=1"  # where nobody can write, SQLite cannot make its lock
    uri = f"{path.absolute().as_uri()}?{options}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30, check_same_thread=False)
    try:
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("PRAGMA synchronous = FULL" if write else "PRAGMA query_only = ON")
        mode = db.execute("PRAGMA journal_mode").fetchone()[0]
        found = db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchmany(99)
        if mode not in ("wal", "delete") or sorted(s for (s,) in found) != sorted(SCHEMA):
            raise InputError(f"{path} has another mode or other tables than a library: {_RESTORE}")
        if write and mode != "wal":
            # The first keeps the second from a journal on the disk, which a kill would leave.
            for name in ("MEMORY", "WAL"):
                db.execute(f"PRAGMA journal_mode = {name}")
    except BaseException:
        db.close()
        raise
    return db


def end_writing(db: sqlite3.Connection) -> None:
    """Close a connection that wrote; the files beside the database go, unless others read them."""
    try:
        with suppress(sqlite3.Error):  # a full disk, a reader: what was committed is in WAL's file
            db.rollback()
            db.execute("PRAGMA busy_timeout = 0")
            db.execute("PRAGMA journal_mode = MEMORY")  # it is not kept: the next one opens DELETE
    finally:
        with suppress(sqlite3.Error):
            db.close()


def committed(db: sqlite3.Connection, folder: Path, width: int) -> int:
    """How many vectors count; CheckError where the file of vectors has fewer."""
    found = db.execute("SELECT vectors FROM state").fetchmany(2)
    count: Any = found[0][0] if len(found) == 1 else None
    # Asked for together they would be looked for in all rows.
    ends = db.execute("SELECT (SELECT min(id) FROM rows), (SELECT max(id) FROM rows)").fetchone()
    size = os.stat(folder / VECTORS).st_size
    if isinstance(count, int) and 0 <= count <= size // (4 * width):
        if all(i is None or (isinstance(i, int) and 0 <= i < count) for i in ends):
            return count
    raise CheckError(
        f"library {folder} is damaged: its rows name {count} vectors of {width} numbers, and "
        f"{VECTORS} has {size} bytes; {_RESTORE}"
    )


def mapped(folder: Path, count: int, width: int) -> NDArray[np.float32]:
    """The first vectors of a library, read from the disk when they are used."""
    if not count:  # an empty file cannot be mapped
        return np.empty((0, width), np.float32)
    return np.memmap(folder / VECTORS, "<f4", "r", shape=(count, width))


def mapped_codes(folder: Path, count: int, width: int) -> NDArray[np.int8] | None:
    """The codes of the first vectors; None where they are not all there."""
    try:
        if count and os.stat(folder / CODES).st_size >= count * width:
            return np.memmap(folder / CODES, np.int8, "r", shape=(count, width))
    except FileNotFoundError:  # of an earlier version
        pass
    return None


def checksums(db: sqlite3.Connection, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places and checksums of the rows among the first `count` vectors; CheckError for text."""
    asked = "SELECT id, crc FROM rows WHERE id < ? ORDER BY id"
    try:
        found = np.fromiter(db.execute(asked, (count,)), [("id", "i8"), ("crc", "i8")])
    except (ValueError, OverflowError) as e:
        raise CheckError(f"the library is damaged: a row has no checksum ({e})") from e
    return found["id"].copy(), found["crc"].copy()


def failures(db: sqlite3.Connection) -> Iterator[tuple[Path, str]]:
    """Files that are there without vectors, or not all, with the reason."""
    asked = (
        "SELECT path, error FROM files WHERE error IS NOT NULL AND NOT gone UNION ALL"
        " SELECT files.path, clips.error FROM clips CROSS JOIN files"
        " ON files.sha256 = clips.sha256 WHERE clips.error IS NOT NULL AND NOT files.gone"
        " ORDER BY 1"
    )
    for path, error in db.execute(asked):
        yield named(path_of(path)), str(error)


def path_of(value: Any) -> str:
    """A path as it is kept; CheckError for what is none."""
    if not isinstance(value, bytes) or b"\0" in value:
        raise CheckError("the library is damaged: a file has no path")
    return os.fsdecode(value)


@contextmanager
def errors_named(folder: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the disk into InputError or CheckError, which name the folder.

    What was committed stays.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as e:
        if isinstance(e, sqlite3.OperationalError) and "locked" in str(e):
            raise InputError(f"library {folder} is in use by another program: {e}") from e
        code = getattr(e, "sqlite_errorname", "")
        reason = why_no_room(e, folder)
        if reason is None and code == "SQLITE_FULL":
            reason = os.strerror(28)
        if reason is None and isinstance(e, sqlite3.DatabaseError) and "IOERR" not in code:
            if code.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
                raise InputError(
                    f"library {folder} cannot be opened: {ROWS}: {e}; {_PERMISSIONS}"
                ) from e
            raise CheckError(f"library {folder} is damaged ({e}): {_RESTORE}") from e
        if isinstance(e, OSError) and e.errno in _ADVICE and not tells_no_space(reason or ""):
            name = "" if e.filename is None else f"{os.fsdecode(e.filename)}: "
            said = f"{name}{e.strerror or e}; {_ADVICE[e.errno]}"
            raise InputError(f"library {folder} cannot be used: {said}") from e
        reason = reason or (e.strerror if isinstance(e, OSError) else None) or str(e)
        more = "; free some space, and" if tells_no_space(reason) else ";"
        raise InputError(
            f"library {folder} cannot be used: {reason}{more} run the command again: it goes on "
            "where it stopped"
        ) from e


def check_own(path: Path, write: bool, how: str = "") -> None:
    """Refuse a link: what is read there, or written, would be another file. how: what to do."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: this is no whole library; {_RESTORE}") from None
    if not stat.S_ISREG(status.st_mode) or (write and status.st_nlink != 1):
        raise InputError(
            f"{path} is a link, a folder or a device; a library has files of its own{how}"
        )
