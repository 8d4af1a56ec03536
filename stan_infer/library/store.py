"""The files of a library: rows in SQLite, vectors beside them, as one run writes them.

    library.json   the passport: whose vectors these are (library.passport)
    rows.db        SQLite, the tables of SCHEMA
    vectors.f32    float32, little-endian, one vector after the other; row i begins at 4 * width * i
    lock           locked by the run that writes

A commit makes the new vectors durable and then adds their rows in one transaction: a stop at any
moment leaves what was committed. Vectors behind the last row are of no run that ended well; the
next one cuts them off.

Beside LanceDB and Parquet (benchmarks.stores measures all three) this needs no package, takes the
least disk and appends fastest, keeps two files where they keep thousands, and marks rows in place;
numpy maps the vectors and any program reads the rows. A search needs no index of another library
beside it: exact products, over a copy in 8 bits where that is too slow, serve a million vectors.

Libraries come from strangers: the tables must be exactly those of SCHEMA, so that no trigger or
view can run, links are refused, and nothing is unpickled.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import CheckError, InputError, storable
from stan_infer.system.temporary import tells_no_space, why_no_room

try:
    import fcntl
except ImportError:  # Windows: two runs at once are not noticed
    fcntl = None  # type: ignore[assignment]

PASSPORT, ROWS, VECTORS, LOCK = "library.json", "rows.db", "vectors.f32", "lock"
FILES = {PASSPORT, ROWS, f"{ROWS}-wal", f"{ROWS}-shm", VECTORS, LOCK}
MAX_WIDTH = 65536
SCHEMA = (
    # How many vectors of the file have been committed.
    "CREATE TABLE state (id INTEGER PRIMARY KEY, vectors INTEGER NOT NULL)",
    # A content that was embedded, or why it was not. Its rows: none after an error of all of it.
    "CREATE TABLE clips (id INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, frames INTEGER,"
    " decoder TEXT, error TEXT)",
    # id: place of the vector. start_s, end_s: the part of the video, NULL: all of it.
    "CREATE TABLE rows (id INTEGER PRIMARY KEY, clip INTEGER NOT NULL, start_s REAL, end_s REAL,"
    " crc INTEGER NOT NULL)",
    # sha256: NULL where the file could not be read, for the reason in error.
    "CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,"
    " sha256 BLOB, error TEXT, gone INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX files_sha256 ON files (sha256)",
    "CREATE INDEX rows_clip ON rows (clip)",
)
_MAX_VALUE = 2**20  # bytes of one value: paths and reasons are shorter
_WAL = b"\x02\x02"  # bytes 18 and 19 of a database in this mode


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
    """The files of a library, open for writing; use it inside `locked`."""

    def __init__(self, folder: Path, width: int) -> None:
        """Open what `new_store` made; what the last run did not commit is cut off.

        Raises InputError where the files are not a library's, CheckError where they are damaged.
        """
        self.folder, self.width = folder, width
        self._db: sqlite3.Connection | None = None
        self._file: IO[bytes] | None = None
        try:
            with errors_named(folder):
                self._db = connect(folder, write=True)
                self._file = _open_own(folder / VECTORS)
                self._done = self._begun = committed(self._db, folder, width)
                self._file.truncate(self._done * width * 4)
                self._file.seek(0, os.SEEK_END)
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
            with suppress(sqlite3.Error):
                self._db.close()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._db = self._file = None

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

    def paths_of(self, sha256: bytes) -> Iterator[Path]:
        """The files of this content that are not known to be gone."""
        asked = "SELECT path FROM files WHERE sha256 = ? AND NOT gone"
        return (Path(os.fsdecode(path)) for (path,) in self._run(asked, sha256))

    def rows(self) -> int:
        """How many rows belong to files that are there."""
        asked = (
            "SELECT count(*) FROM rows WHERE clip IN (SELECT clips.id FROM clips JOIN files"
            " ON files.sha256 = clips.sha256 WHERE NOT files.gone)"
        )
        return int(next(iter(self._run(asked)))[0])

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
        return (Path(os.fsdecode(p)) for (p,) in self._run(asked, first, first[:-1] + b"0"))

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
        part = Part(self._begun, seconds, zlib.crc32(data))
        self._begun += 1
        return part

    def add_clip(
        self,
        sha256: bytes,
        parts: Sequence[Part],
        *,
        frames: int | None = None,
        decoder: str | None = None,
        error: str | None = None,
    ) -> None:
        """Add a content with its vectors, or with the error for which it has none, or not all."""
        new = "INSERT INTO clips (sha256, frames, decoder, error) VALUES (?, ?, ?, ?)"
        reason = None if error is None else storable(error)
        clip = self._run(new, sha256, frames, decoder, reason).lastrowid
        for part in parts:
            row = (part.id, clip, *(part.seconds or (None, None)), part.crc)
            self._run("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", *row)
        self._done = parts[-1].id + 1 if parts else self._done

    def forget(self, sha256: bytes) -> None:
        """Drop a content, so that it is new; its vectors stay where they are, without rows."""
        self._run("DELETE FROM rows WHERE clip IN (SELECT id FROM clips WHERE sha256 = ?)", sha256)
        self._run("DELETE FROM clips WHERE sha256 = ?", sha256)

    def commit(self) -> None:
        """Make what was added durable, all or nothing."""
        assert self._db is not None and self._file is not None
        if not self._db.in_transaction:
            return
        self._run("UPDATE state SET vectors = ?", self._done)
        with errors_named(self.folder):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._db.execute("COMMIT")

    def _run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        assert self._db is not None
        with errors_named(self.folder):
            if not statement.startswith("SELECT") and not self._db.in_transaction:
                self._db.execute("BEGIN IMMEDIATE")
            return self._db.execute(statement, values)


def new_store(folder: Path) -> None:
    """Make the files of an empty library, without its passport, in a folder that is there."""
    with errors_named(folder):
        (folder / VECTORS).touch()
        # A run that was stopped here left a database without a row.
        for name in (ROWS, f"{ROWS}-wal", f"{ROWS}-shm"):
            (folder / name).unlink(missing_ok=True)
        db = sqlite3.connect(folder / ROWS, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("BEGIN")
            for statement in SCHEMA:
                db.execute(statement)
            db.execute("INSERT INTO state VALUES (0, 0)")
            db.execute("COMMIT")
        finally:
            db.close()


def connect(folder: Path, *, write: bool = False) -> sqlite3.Connection:
    """Open the database, which may be a stranger's, and check that it has our tables alone."""
    path = folder / ROWS
    if os.path.lexists(f"{path}-journal"):
        # SQLite would play it back, and delete the file that it may name.
        raise InputError(f"{path}-journal is not of a library: delete it, or the library")
    for name in (ROWS, f"{ROWS}-wal", f"{ROWS}-shm", VECTORS):
        if name in (ROWS, VECTORS) or os.path.lexists(folder / name):
            check_own(folder / name, write)
    with path.open("rb") as file:
        head = file.read(20)
    if not head.startswith(b"SQLite format 3\0") or head[18:] != _WAL:
        raise InputError(f"{path} is not the database of a library")
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
        found = db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchmany(99)
        if sorted(s for (s,) in found) != sorted(SCHEMA):
            raise InputError(f"{path} has other tables than a library has")
    except BaseException:
        db.close()
        raise
    return db


def committed(db: sqlite3.Connection, folder: Path, width: int) -> int:
    """How many vectors count; CheckError where the file of vectors has fewer."""
    found = db.execute("SELECT vectors FROM state").fetchmany(2)
    count: Any = found[0][0] if len(found) == 1 else None
    ends = db.execute("SELECT min(id), max(id) FROM rows").fetchone()
    size = os.stat(folder / VECTORS).st_size
    if isinstance(count, int) and 0 <= count <= size // (4 * width):
        if all(i is None or (isinstance(i, int) and 0 <= i < count) for i in ends):
            return count
    raise CheckError(
        f"library {folder} is damaged: its rows name {count} vectors of {width} numbers, and "
        f"{VECTORS} has {size} bytes; take it from a backup, or embed into a new one"
    )


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
                raise InputError(f"library {folder} cannot be opened: {e}") from e
            raise CheckError(
                f"library {folder} is damaged ({e}): take it from a backup, or embed into a new one"
            ) from e
        reason = reason or (e.strerror if isinstance(e, OSError) else None) or str(e)
        more = "; free some space, and" if tells_no_space(reason) else ";"
        raise InputError(
            f"library {folder} cannot be used: {reason}{more} run the command again: it goes on "
            "where it stopped"
        ) from e


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder if needed and let no other run write to it in this block.

    The system frees the lock when the process ends in any way. A folder that holds no library at
    the end is removed with what is ours in it. Raises InputError where another run has the lock.
    """
    with errors_named(folder):
        made = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        yield
    finally:
        if not os.path.lexists(folder / PASSPORT):
            with suppress(OSError):
                for name in FILES:
                    (folder / name).unlink(missing_ok=True)
                for path in made:
                    path.rmdir()
        os.close(lock)


def _lock(folder: Path) -> int:
    path = folder / LOCK
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with errors_named(folder):
        while True:
            if os.path.lexists(path):
                check_own(path, True)
            lock = os.open(path, flags, 0o644)
            if fcntl is None:
                return lock
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(lock), os.stat(path)):
                    return lock
            except BlockingIOError as e:
                os.close(lock)
                raise InputError(
                    f"another run is writing to library {folder}: wait until it has ended, or stop"
                    " it"
                ) from e
            except OSError:
                os.close(lock)
                raise
            os.close(lock)  # another run has just removed it


def check_own(path: Path, write: bool) -> None:
    """Refuse a link: what is read there, or written, would be another file."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: this is not a whole library") from None
    if not stat.S_ISREG(status.st_mode) or (write and status.st_nlink != 1):
        raise InputError(f"{path} is a link, a folder or a device; a library has files of its own")


def _open_own(path: Path) -> IO[bytes]:
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags), "r+b")
