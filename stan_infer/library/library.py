"""Read a library: its rows as arrays, its passport, and how a session compares with it."""

from __future__ import annotations

import dataclasses
import sqlite3
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.engines.opened import Source
from stan_infer.engines.opened import path_of as name_of
from stan_infer.engines.session import Session
from stan_infer.errors import CheckError, InputError
from stan_infer.library.codes import changed_codes, encoded
from stan_infer.library.database import (
    FORSAKEN,
    PASSPORT,
    VECTORS,
    checksums,
    committed,
    connect,
    errors_named,
    failures,
    is_library,
    mapped,
    mapped_codes,
)
from stan_infer.library.model_files import model_source
from stan_infer.library.passport import (
    PASSPORT_SCHEMA,
    Comparison,
    Passport,
    compare,
    facts_of,
    read_passport,
    seen_canaries,
)
from stan_infer.library.query import Given
from stan_infer.library.row_videos import RowVideos, identity
from stan_infer.library.search import SearchResult, search_library
from stan_infer.library.searched_model import library_spec
from stan_infer.system.result import Result, Say, silent

_SAMPLE = 100_000  # rows among which neighbours of the canaries are looked for


@dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
class Library(Result):
    """A library as it was when it was opened; a run that writes meanwhile changes nothing here but
    `videos`, which are read when they are used.

    n rows of files that are there, of R vectors. A video has one row, or one for each of its parts.

    Attributes:
        path: the folder.
        vectors: float32 [R, E] of length 1, read from the disk when they are used.
        codes: int8 [R, E], the same in 8 bits, which a search reads first; see library.codes.
            None: they are not all there, or an earlier version wrote the library.
        ids: int64 [n], the place of each row's vector: `vectors[ids]` are all of them. They rise;
            where nothing was changed or lost they are 0 to n - 1.
        videos: of each row, the files that have it, as absolute paths where they were embedded; see
            row_videos.RowVideos. A library may be a stranger's: do not open a path outside of
            folders that you trust.
        start, end: float64 [n], seconds; NaN where the row is of the whole video.
        failed: files without vectors, or not all, with the reason.
        passport: what made the vectors; see library.passport.
    """

    path: Path
    vectors: NDArray[np.float32]
    codes: NDArray[np.int8] | None
    ids: NDArray[np.int64]
    videos: RowVideos
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    failed: dict[str, str]
    passport: Passport

    def summary(self) -> str:
        """How many rows, their width, where."""
        failed = f", {len(self.failed)} files could not be read" if self.failed else ""
        return f"{len(self.ids)} rows of {self.vectors.shape[1]} in {self.path}{failed}"

    def to_dict(self) -> dict[str, Any]:
        """The passport and the rows without their vectors, as JSON types."""
        found = dataclasses.replace(self, vectors=np.empty((0, 0), np.float32), codes=None)
        told = super(Library, found).to_dict()
        return {k: v for k, v in told.items() if k not in ("vectors", "codes")}

    def compare(self, session: Session, *, timeout_s: float = 60.0) -> Comparison:
        """Embed the canary clips with a session and say what differs from what made the library.

        `compare(session).check(passport.SEARCHED, library.path, "searching")` refuses a session
        whose vectors are too far away. The decoder and the frames are those of the library.
        """
        spec = library_spec(self, session)
        now = facts_of(session, model_source(name_of(session), {}), spec)
        canaries = seen_canaries(session, spec, timeout_s)
        return compare(self.passport, now, canaries, self.sample())

    def sample(self) -> NDArray[np.float32]:
        """The first vectors [R, E], among which neighbours of the canary clips are looked for."""
        return self.vectors[:_SAMPLE]

    def search(
        self,
        texts: Given = (),
        *,
        model: Source | None = None,
        top: int = 10,
        say: Say = silent,
        **options: Any,
    ) -> SearchResult:
        """The rows that fit texts and examples best. Nothing in the library is changed.

        Every row is compared. Of many searches with one model library.search.Searcher opens and
        checks it once.

        Args:
            texts: a text, several, or {text: weight}; weights are above 0.
            model: the checkpoint or folder that made the library, or an open session of it; another
                engine or precision may be taken. Without it that file is looked for by its name and
                hash, in the current folder and beside the library.
            top: how many rows, 1 to 10,000.
            say: called with a sentence for what differs from what made the library.
            options: without (texts that lower the score), like (videos), like_frame (pictures, or
                VIDEO@SECONDS), each with weights as of texts; template (sentences with {} or a set,
                see read_templates); path, since, before, added_since, added_before, longer, shorter
                (see row_filter.RowFilter); overlapping (also windows that share half or more with a
                better one of their video); mug (score the best 100 with the Mug head, for which
                their videos are read again); timeout_s (seconds to read a video, 60); those of
                open_session.

        Returns:
            SearchResult: the hits, best first, with scores, paths and times.

        Raises:
            InputError: nothing to search for, a wrong value, an empty library, no model.
            CheckError: another model; a hit whose vector was changed.
            MissingError: a package or device is not here.

        Example:
            >>> import tempfile, stan_infer as si
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model, clips = "examples/motion/motion.safetensors", "examples/motion/clips"
            ...     _ = si.embed_library(model, [clips], f"{folder}/clips", workers=1)
            ...     library = si.open_library(f"{folder}/clips")
            ...     found = library.search("a shape fades in", model=model)
            >>> found.hits[0].video.rpartition("/")[2]
            'blue_square_fades_in.mp4'
        """
        return search_library(self, texts, model=model, top=top, say=say, **options)

    def check(self) -> None:
        """Read everything: CheckError for a vector that was changed, or a damaged database."""
        db = connect(self.path)
        try:
            with errors_named(self.path):
                said = db.execute("PRAGMA quick_check").fetchone()[0]
                if said != "ok":
                    raise CheckError(f"library {self.path} is damaged: {str(said)[:200]}")
                ids, sums = checksums(db, len(self.vectors))
        finally:
            db.close()
        for first in range(0, 0 if self.codes is None else len(ids), 4096):
            some = ids[first : first + 4096]
            if self.codes is not None and (self.codes[some] != encoded(self.vectors[some])).any():
                raise changed_codes(self.codes)
        for row, crc in zip(ids.tolist(), sums.tolist(), strict=True):
            vector = self.vectors[row]
            length = float(np.linalg.norm(vector))
            if zlib.crc32(vector.tobytes()) != crc or not abs(length - 1) < 1e-3:
                raise CheckError(
                    f"library {self.path}: vector {row} was changed after it was written; take "
                    f"{VECTORS} from a backup, or embed into a new library"
                )


def open_library(path: str | Path) -> Library:
    """Open a library for reading; a run may be writing to it.

    Args:
        path: the folder that `stan-infer embed -o` or embed_library made.

    Returns:
        Library: rows as arrays, vectors that are read from the disk when they are used.

    Raises:
        InputError: no library, another version's, one with links or tables that are not ours.
        CheckError: a damaged one.

    Example:
        >>> import tempfile, stan_infer as si
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model, clips = "examples/motion/motion.safetensors", "examples/motion/clips"
        ...     _ = si.embed_library(model, [clips], f"{folder}/clips", workers=1)
        ...     library = si.open_library(f"{folder}/clips")
        >>> library.vectors.shape[1], len(library.ids) == len(library.videos)
        (64, True)
    """
    folder = Path(path)
    if not is_library(folder):
        raise InputError(f"{folder} is not a library: it has no {PASSPORT}")
    own = identity(folder)
    passport = read_passport(folder)
    with errors_named(folder):
        db = connect(folder)
        try:
            db.execute("BEGIN")  # all of it is of one moment
            shape = (committed(db, folder, passport["width"]), passport["width"])
            vectors = mapped(folder, *shape)
            codes = mapped_codes(folder, *shape) if passport["schema"] == PASSPORT_SCHEMA else None
            ids, start, end = _rows(db, folder)
            failed = {str(p): e for p, e in failures(db)}
        finally:
            db.close()
    videos = RowVideos(folder, ids, own)
    videos.check()
    return Library(
        path=folder,
        vectors=vectors,
        codes=codes,
        ids=ids,
        videos=videos,
        start=start,
        end=end,
        failed=failed,
        passport=passport,
    )


def _rows(
    db: sqlite3.Connection, folder: Path
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Places, starts and ends of the rows of contents that a file has, in order."""
    count, last, times = db.execute(
        "SELECT count(*), max(id), count(start_s) + count(end_s) FROM rows"
    ).fetchone()
    without = [clip for (clip,) in db.execute(FORSAKEN)]
    if not without and not times and count == (last or 0) + bool(count):
        return np.arange(count), np.full(count, np.nan), np.full(count, np.nan)
    kinds = [("id", "i8"), ("clip", "i8"), ("start", "f8"), ("end", "f8")]
    asked = "SELECT id, clip, start_s, end_s FROM rows ORDER BY id"
    try:
        found = np.fromiter(db.execute(asked), kinds)
    except ValueError as e:
        raise CheckError(f"library {folder} is damaged: a row has no times ({e})") from e
    found = found[~np.isin(found["clip"], without)]
    return found["id"].copy(), found["start"].copy(), found["end"].copy()
