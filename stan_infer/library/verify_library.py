"""Check all of a library and, if asked, its videos and a model: `stan-infer library verify`."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sqlite3
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.engines.opened import Source, opened
from stan_infer.errors import CheckError, printable
from stan_infer.library.codes import CODES, encoded
from stan_infer.library.database import VECTORS, checksums, connect, errors_named, path_of
from stan_infer.library.files import HASHERS, hashed, seen
from stan_infer.library.library import Library, open_library
from stan_infer.library.passport import CANARIES, MIXED, SEARCHED, Comparison
from stan_infer.system.result import Progress, Result, no_progress

_CHUNK = 4096  # vectors that are read at once
_SHOWN = 100  # problems that are kept in words
Known = dict[Path, tuple[Any, Any, Any]]
_TOLERANCE = 1e-3  # of a vector's length

_WRONG = {
    "rows of no content": "SELECT count(*) FROM rows WHERE clip NOT IN (SELECT id FROM clips)",
    "contents with neither rows nor an error": "SELECT count(*) FROM clips WHERE error IS NULL AND"
    " id NOT IN (SELECT clip FROM rows)",
    "contents without a SHA-256": "SELECT count(*) FROM clips WHERE typeof(sha256) != 'blob' OR"
    " length(sha256) != 32",
    "files with neither a SHA-256 nor an error": "SELECT count(*) FROM files WHERE sha256 IS NULL"
    " AND error IS NULL",
    "files whose path is not absolute": "SELECT count(*) FROM files WHERE typeof(path) != 'blob' OR"
    " (substr(path, 1, 1) != x'2f' AND instr(path, x'3a2f2f') < 2)",
    "rows whose end is not behind their start": "SELECT count(*) FROM rows WHERE NOT"
    " ((start_s IS NULL AND end_s IS NULL) OR (start_s >= 0 AND end_s >= start_s))",
}


@dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
class VerifiedLibrary(Result):
    """What was found in a library.

    Attributes:
        path: the folder.
        vectors: how many were read; files: how many were hashed again.
        problems: what is wrong, the first 100 in words; count: how many there are.
        notes: what is not wrong and may surprise.
        stack: how the model compares with the passport; None: none was given.
    """

    path: Path
    vectors: int
    files: int
    problems: tuple[str, ...]
    count: int
    notes: tuple[str, ...]
    stack: Comparison | None

    def summary(self) -> str:
        """Whether it is whole."""
        what = f"{self.count} problems" if self.count else "nothing wrong"
        return f"{what} in {self.vectors} vectors of {self.path}"

    def check(self) -> None:
        """Raise CheckError where something is wrong."""
        if self.count:
            how = ": take it from a backup, or embed into a new one"
            if self.problems[0].startswith(CODES):  # which says what to do
                how = ""
            raise CheckError(
                f"library {self.path} has {self.count} problem{'s' * (self.count > 1)} (the first: "
                f"{self.problems[0]}){how}"
            )


def verify_library(
    path: str | Path,
    source: Source | None = None,
    *,
    files: bool = False,
    progress: Progress = no_progress,
    timeout_s: float = 60.0,
    **words: Any,
) -> VerifiedLibrary:
    """Read all of a library and say what is wrong; nothing is changed.

    Args:
        path: the folder.
        source: a model, whose canary clips are compared with the passport's.
        files: also hash the videos again, which finds those that changed and kept size and time.
        progress: see embed_videos; its steps are vectors and files.
        timeout_s: seconds that a canary clip may take to decode.
        words: of open_session.

    Returns a VerifiedLibrary, whose check() raises CheckError for what is wrong. Raises InputError
    where there is no library, CheckError for one so damaged that it cannot be opened.

    Example:
        >>> import tempfile, stan_infer as si
        >>> from stan_infer.library.verify_library import verify_library
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model, clips = "examples/motion/motion.safetensors", "examples/motion/clips"
        ...     _ = si.embed_library(model, [clips], f"{folder}/clips", workers=1)
        ...     found = verify_library(f"{folder}/clips", model)
        >>> found.count, found.stack.same
        (0, True)
    """
    library = open_library(path)
    found = _Found()
    hashes = _Files(library) if files else None
    db = connect(library.path)
    try:
        with errors_named(library.path):
            db.execute("BEGIN")
            steps = len(library.vectors) + (0 if hashes is None else hashes.count(db))
            with progress("verifying", steps) as step:
                for problem in _problems(library, db, hashes, step, found.notes):
                    found.add(problem)
    finally:
        db.close()
    stack = None
    if source is not None:
        with opened(source, words, yielding=True) as session:
            stack = library.compare(session, timeout_s=timeout_s)
        found.compare(stack)
    return VerifiedLibrary(
        path=library.path,
        vectors=len(library.vectors),
        files=0 if hashes is None else hashes.read,
        problems=tuple(found.problems),
        count=found.count,
        notes=tuple(found.notes),
        stack=stack,
    )


class _Found:
    """What was found, counted."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.count = 0

    def add(self, problem: str) -> None:
        """Count a problem; the first ones are kept."""
        self.count += 1
        self.problems += [problem] if len(self.problems) < _SHOWN else []

    def compare(self, stack: Comparison) -> None:
        """Note another stack; one that cannot search the library is a problem."""
        if not stack.cosine >= SEARCHED:
            self.add(f"another stack made it: {stack}")
        elif not stack.same:
            can = "rows can be added" if stack.cosine >= MIXED else "it can only be searched"
            self.notes.append(f"another stack made it, {can}: {stack}")


class _Files:
    """The videos of a library, hashed again."""

    def __init__(self, library: Library) -> None:
        self.library, self.read = library, 0

    def count(self, db: sqlite3.Connection) -> int:
        """How many there are."""
        asked = "SELECT count(*) FROM files WHERE NOT gone AND sha256 IS NOT NULL"
        return int(db.execute(asked).fetchone()[0])

    def known(self, db: sqlite3.Connection) -> Known:
        """Size, time and hash of each."""
        asked = "SELECT path, size, mtime_ns, sha256 FROM files WHERE NOT gone AND sha256 NOTNULL"
        return {Path(path_of(p)): (size, time, sha) for p, size, time, sha in db.execute(asked)}

    def problems(self, known: Known, step: Any, notes: list[str]) -> Iterator[str]:
        """Files with another content than their size and time of change say."""
        changed = [p for p, (size, time, _) in known.items() if seen(p) != (size, time)]
        if changed:
            notes.append(
                f"{len(changed)} files are gone or were changed, which the next run of embed sees "
                f"(the first: {printable(str(changed[0]))})"
            )
        step(len(changed))
        there = [path for path in known if path not in set(changed)]
        with ThreadPoolExecutor(HASHERS) as threads:
            for path, file in hashed(there, threads):
                self.read += 1
                step()
                if file.sha256 != known[path][2]:
                    why = file.error or "another content with the same size and time of change"
                    yield f"{printable(str(path))}: {why}"


def _problems(
    library: Library, db: sqlite3.Connection, files: _Files | None, step: Any, notes: list[str]
) -> Iterator[str]:
    said = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if said != "ok":
        yield f"the database is damaged: {printable(str(said)[:200])}"
    yield from _of_database(library, db, notes)
    yield from _of_canaries(library)
    ids, sums = checksums(db, len(library.vectors))
    known = None if files is None else files.known(db)
    db.execute("COMMIT")  # what follows takes long, and no run could begin to write
    yield from _of_vectors(library, ids, sums, step, notes)
    if files is not None and known is not None:
        yield from files.problems(known, step, notes)


def _of_database(library: Library, db: sqlite3.Connection, notes: list[str]) -> Iterator[str]:
    parts = "IS NULL" if library.passport["windows"] else "NOTNULL"
    of_parts = f"SELECT count(*) FROM rows WHERE start_s {parts}"
    for what, asked in (_WRONG | {"rows of parts and of whole videos": of_parts}).items():
        if count := db.execute(asked).fetchone()[0]:
            yield f"{count} {what}"
    for name, part in ((VECTORS, library.vectors), (CODES, library.codes)):
        extra = 0 if part is None else os.stat(library.path / name).st_size - part.nbytes
        if extra:
            notes.append(f"{name} ends with {extra} bytes of a run that was stopped, or goes on")
    unused = len(library.vectors) - db.execute("SELECT count(*) FROM rows").fetchone()[0]
    if unused:
        notes.append(f"{unused} vectors have no row: their files were tried again")


def _of_canaries(library: Library) -> Iterator[str]:
    for canary in library.passport["canaries"]:
        path = CANARIES / os.path.basename(canary["file"])
        there = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()
        if there != canary["sha256"]:
            yield f"canary clip {printable(canary['file'])} is not that of this version"


def _of_vectors(
    library: Library,
    ids: NDArray[np.int64],
    sums: NDArray[np.int64],
    step: Any,
    notes: list[str],
) -> Iterator[str]:
    others: list[int] = []  # vectors that have 8 bits of others
    for first in range(0, len(ids), _CHUNK):
        some = ids[first : first + _CHUNK]
        vectors = library.vectors[some]
        wrong = dict(_wrong(vectors, some, sums[first : first + _CHUNK].tolist()))
        yield from wrong.values()
        if library.codes is not None:
            found = some[(library.codes[some] != encoded(vectors)).any(1)].tolist()
            others += [row for row in found if row not in wrong]
        step(len(some))
    step(len(library.vectors) - len(ids))
    if others:
        yield (
            f"{CODES} is not of these vectors, {len(others)} of {len(ids)} differ (the first: "
            f"{others[0]}): delete it, and the next run of embed makes it again"
        )
    if library.codes is None and len(library.vectors):
        notes.append(
            f"{CODES} is missing or not whole, which searches of many rows read first: the next "
            "run of embed or migrate makes it"
        )


def _wrong(
    vectors: NDArray[np.float32], ids: NDArray[np.int64], sums: list[Any]
) -> Iterator[tuple[int, str]]:
    """What is wrong in some vectors [n, E], whose checksums are known, by their places."""
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(vectors).all(1))
    with np.errstate(over="ignore"):  # of numbers that were changed
        lengths = np.linalg.norm(np.where(finite[:, None], vectors, 0), axis=1)
    rows = zip(ids.tolist(), vectors, finite, lengths, sums, strict=False)
    for row, vector, good, length, crc in rows:
        if zlib.crc32(vector.tobytes()) != crc:
            yield row, f"vector {row} was changed after it was written"
        elif not good or not abs(length - 1) < _TOLERANCE:
            yield row, f"vector {row} is not of length 1"
