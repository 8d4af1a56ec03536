"""What a library holds, in numbers: `stan-infer library inspect`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from stan_infer.errors import InputError
from stan_infer.library.codes import CODES
from stan_infer.library.database import (
    COUNT_ROWS,
    PASSPORT,
    ROWS,
    VECTORS,
    committed,
    connect,
    errors_named,
    failures,
    is_library,
)
from stan_infer.library.passport import Passport, read_passport
from stan_infer.system.result import Result

_COUNTS = {
    "files": "SELECT count(*) FROM files WHERE NOT gone",
    "gone": "SELECT count(*) FROM files WHERE gone",
    "contents": "SELECT count(DISTINCT sha256) FROM files WHERE NOT gone AND sha256 IN"
    " (SELECT sha256 FROM clips)",
    "waiting": "SELECT count(*) FROM files WHERE NOT gone AND sha256 IS NOT NULL AND sha256 NOT IN"
    " (SELECT sha256 FROM clips)",
    "rows": COUNT_ROWS,
    "stored": "SELECT count(*) FROM rows",
}


@dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
class LibraryFacts(Result):
    """What a library holds.

    Attributes:
        path: the folder.
        rows: vectors of files that are there; width: numbers in each.
        files, gone: files that are there, and that are not any more; contents: different ones of
            those that are there; waiting: files that the next run embeds, because one was stopped.
        kept: vectors of contents that no file has, known again if one comes back; unused: vectors
            without a row, of contents that were tried again.
        bytes: of all files of the library.
        failed: files without vectors, or not all, with the reason.
        passport: what made the vectors.
    """

    path: Path
    rows: int
    width: int
    files: int
    gone: int
    contents: int
    waiting: int
    kept: int
    unused: int
    bytes: int
    failed: dict[str, str]
    passport: Passport

    def summary(self) -> str:
        """How many rows of how many files."""
        return f"{self.rows} rows of {self.width} from {self.files} files in {self.path}"


def inspect_library(path: str | Path) -> LibraryFacts:
    """Count what a library holds; no vector is read.

    Raises InputError where it is no library, CheckError where its database is damaged.
    """
    folder = Path(path)
    if not is_library(folder):
        raise InputError(f"{folder} is not a library: it has no {PASSPORT}")
    passport = read_passport(folder)
    with errors_named(folder):
        db = connect(folder)
        try:
            db.execute("BEGIN")
            vectors = committed(db, folder, passport["width"])
            counts: dict[str, Any] = {k: db.execute(q).fetchone()[0] for k, q in _COUNTS.items()}
            failed = {str(p): e for p, e in failures(db)}
        finally:
            db.close()
        stored = counts.pop("stored")
        own = (folder / name for name in (PASSPORT, ROWS, VECTORS, CODES))
        size = sum(path.stat().st_size for path in own if path.exists())
    return LibraryFacts(
        path=folder,
        width=passport["width"],
        kept=stored - counts["rows"],
        unused=vectors - stored,
        bytes=size,
        failed=failed,
        passport=passport,
        **counts,
    )
