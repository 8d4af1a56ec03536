"""Search a library: texts and examples -> the rows that fit best, exactly.

`Searcher` is a library with a session that was checked, for many searches; `search_library` is one
search. Nothing here writes to the library.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from stan_infer.engines.opened import Source, opened
from stan_infer.engines.session import Session
from stan_infer.errors import CheckError, InputError, check_whole
from stan_infer.library.codes import read_first
from stan_infer.library.nearest import NotFiniteError, nearest
from stan_infer.library.passport import Comparison
from stan_infer.library.query import (
    Given,
    Term,
    check_terms,
    combined,
    place_of,
    shares,
    term_vectors,
    terms,
)
from stan_infer.library.row_filter import RowFilter
from stan_infer.library.row_reader import RowReader
from stan_infer.library.row_videos import RowVideos
from stan_infer.library.searched_model import Made, check_model, find_model, library_spec
from stan_infer.library.second_stage import FIRST, MugScores
from stan_infer.system.result import Result, Say, divided, silent
from stan_infer.text.templates import PLAIN, Templates, read_templates
from stan_infer.video.moments import Moments
from stan_infer.video.spec import ClipSpec

MAX_TOP = 10_000


class Rows(Made, Protocol):
    """What is asked of a library that is searched."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """All vectors."""

    @property
    def codes(self) -> NDArray[np.int8] | None:
        """All vectors in 8 bits, or None."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """The vector of each row."""

    @property
    def videos(self) -> RowVideos:
        """The files of each row."""

    @property
    def start(self) -> NDArray[np.float64]:
        """Where each row begins in its video."""

    @property
    def end(self) -> NDArray[np.float64]:
        """Where it ends."""


@dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
class Hit(Result):
    """A row that was found.

    Attributes:
        rank: from 1.
        score: the weighted mean of `cosines`, in which those of "without" count negative.
        video: its file, as an absolute path where it was embedded; of several that have this
            content the first that the filter takes.
        start_s, end_s: seconds in the video; None: the row is of all of it.
        copies: further files of this content that the filter takes.
        row: the number of the row, in Library.ids.
        cosines: one for each text and example, in the order of SearchResult.asked; with `mug` those
            of texts are the scores of the Mug head.
    """

    rank: int
    score: float
    video: str
    start_s: float | None
    end_s: float | None
    copies: tuple[str, ...]
    row: int
    cosines: tuple[float, ...]

    def summary(self) -> str:
        """Rank, score, path and time."""
        time = "" if self.start_s is None else f", {self.start_s:g} to {self.end_s:g} s"
        return f"{self.rank}. {self.score:.4f} {self.video}{time}"


@dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
class SearchResult(Result):
    """What a search found.

    Attributes:
        library: its folder.
        asked: the texts and examples with their weights, a query.Term each.
        query: float64 [E], whose product with a row's vector is its score; not in to_dict.
        hits: the best rows, best first, a Hit each.
        mug: whether the scores of the hits are of the Mug head.
        rows: how many rows were looked at.
        model_s: seconds in which the model embedded what was asked for.
        search_s: seconds for the rest; with `mug` that is most of the time.
        session: facts about what embedded the texts; see Session.describe.
        stack: how the model compares with the library's passport; None: its files and config are
            those that made it.
    """

    library: Path
    asked: tuple[Term, ...]
    query: NDArray[np.float64]
    hits: tuple[Hit, ...]
    mug: bool
    rows: int
    model_s: float
    search_s: float
    session: dict[str, Any]
    stack: Comparison | None

    def summary(self) -> str:
        """How many of how many, and the best."""
        best = f"; {self.hits[0]}" if self.hits else ""
        return f"{len(self.hits)} of {self.rows} rows of {self.library}{best}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        asked = [dataclasses.asdict(term) for term in self.asked]
        hits = [hit.to_dict() for hit in self.hits]
        stack = None if self.stack is None else self.stack.to_dict()
        told = super().to_dict() | {"asked": asked, "hits": hits, "stack": stack}
        del told["query"]
        return told


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What else a search asks for; see Library.search."""

    without: Given = ()
    like: Given = ()
    like_frame: Given = ()
    template: str | Sequence[str] = PLAIN
    path: str | None = None
    since: str | None = None
    before: str | None = None
    added_since: str | None = None
    added_before: str | None = None
    longer: float | None = None
    shorter: float | None = None
    overlapping: bool = False
    mug: bool = False
    timeout_s: float = 60.0

    def filter(self) -> RowFilter:
        """The filter that these options describe; InputError for wrong values."""
        names = [field.name for field in dataclasses.fields(RowFilter)]
        return RowFilter(**{name: getattr(self, name) for name in names})


class Searcher:
    """A library and a session that may search it.

    Example:
        >>> import tempfile, stan_infer as si
        >>> from stan_infer.library.search import Searcher
        >>> model, clips = "examples/motion/motion.safetensors", "examples/motion/clips"
        >>> with tempfile.TemporaryDirectory() as folder, si.open_session(model) as session:
        ...     _ = si.embed_library(session, [clips], f"{folder}/clips", workers=1)
        ...     searcher = Searcher(si.open_library(f"{folder}/clips"), session)
        ...     [searcher.search(text, top=1).hits[0].rank for text in ("a shape", "a bar")]
        [1, 1]
    """

    def __init__(
        self,
        library: Rows,
        session: Session,
        *,
        reads: bool = False,
        timeout_s: float = 60.0,
        say: Say = silent,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Check that the session's model made the library's vectors; see check_model.

        reads: whether examples will be searched for. turn: a lock, held while the model computes;
        give one where something else uses the session. Several threads may search at a time. Raises
        InputError for an empty library, CheckError for another model.
        """
        _check_rows(library)
        self._turn = threading.Lock() if turn is None else turn
        self.library, self.session, self.timeout_s = library, session, timeout_s
        self.reads, self._say = reads, say
        read_first(library.codes, len(library.ids), say)  # which says what makes it slow
        with self._turn:
            self.stack = check_model(library, session, reads=reads, timeout_s=timeout_s, say=say)

    def search(
        self,
        asked: Given | Sequence[Term],
        *,
        top: int = 10,
        keep: RowFilter | None = None,
        templates: Templates | None = None,
        overlapping: bool = False,
        mug: bool = False,
    ) -> SearchResult:
        """The `top` rows that fit best. asked: texts, or terms of library.query.

        overlapping: also windows that share half or more with a better one of their video; see
        video.moments.
        mug: score the best 100 rows (or `top`, if that is more) with the model's Mug head, for
        which their videos are read and embedded again; those that cannot be read are left out.
        Raises InputError for wrong values and an example that cannot be read, CheckError for a
        damaged vector.
        """
        found = terms("text", asked)
        check_terms(found)
        check_whole("top", top, 1, MAX_TOP)
        examples = any(t.kind in ("like", "like_frame") for t in found)
        if (examples or mug) and not self.reads:
            raise InputError("this Searcher was opened for texts: give reads=True")
        keep = keep or RowFilter()
        spec = library_spec(self.library, self.session) if examples or mug else None
        templates = templates or read_templates(PLAIN)
        stored = {t: self._stored(t.value) for t in found if t.kind == "like_row"}
        with self._turn:
            began = time.perf_counter()
            second = MugScores(self.session, found, templates) if mug else None
            vectors = term_vectors(self.session, found, templates, spec, self.timeout_s, stored)
        embedded = time.perf_counter()
        query = combined(found, vectors)
        if len(query) != self.library.vectors.shape[1]:
            raise CheckError(
                f"library {self.library.path} has vectors of {self.library.vectors.shape[1]} "
                f"numbers, the model's have {len(query)}"
            )
        first = max(top, FIRST) if mug else top
        places, count = self._ranked(query, first, keep, overlapping)
        hits = [*self._hits(places, found, vectors, keep)]
        if second is not None and spec is not None:
            hits = self._rescored(hits, second, spec)
        hits = sorted(hits, key=lambda hit: -hit.score)[:top]
        return SearchResult(
            library=self.library.path,
            asked=tuple(found),
            query=query,
            hits=tuple(dataclasses.replace(h, rank=i) for i, h in enumerate(hits, 1)),
            mug=mug,
            rows=count,
            model_s=embedded - began,
            search_s=time.perf_counter() - embedded,
            session=self.session.describe(),
            stack=self.stack,
        )

    def _stored(self, number: str) -> NDArray[np.float32]:
        """The vector of a row, by its number in Library.ids."""
        library = self.library
        place = place_of(library.ids, number)
        if place is None:
            raise InputError(f"library {library.path} has no row {number[:40]!r}")
        return library.vectors[library.ids[place]]

    def _ranked(
        self, query: NDArray[np.float64], top: int, keep: RowFilter, overlapping: bool
    ) -> tuple[list[int], int]:
        """Numbers of the best rows, and of how many."""
        library = self.library
        rows = keep.rows(library.path, library.ids)
        ids = library.ids if rows is None else library.ids[rows]
        try:
            codes = read_first(library.codes, len(library.ids))
            ranked = nearest(library.vectors, codes, query, ids, top)
            if rows is not None:
                ranked = (int(rows[i]) for i in ranked)
            if not overlapping:
                ranked = self._distinct(ranked)
            return [*islice(ranked, top)], len(ids)
        except NotFiniteError as e:
            self._damaged(e.place if rows is None else int(rows[e.place]))

    def _distinct(self, ranked: Iterable[int]) -> Iterator[int]:
        """The rows, from the best on, without windows that show a moment of a better one."""
        library, moments = self.library, Moments()
        for row in ranked:
            start, end = float(library.start[row]), float(library.end[row])
            is_whole = math.isnan(start) or math.isnan(end)
            if is_whole or moments.take(library.videos[row], start, end):
                yield row

    def _hits(
        self,
        places: list[int],
        asked: Sequence[Term],
        vectors: NDArray[np.float64],
        keep: RowFilter,
    ) -> Iterator[Hit]:
        library = self.library
        found = library.videos.take(places)
        fitting = keep.files(library.path, (path for files in found for path in files))
        for row, files in zip(places, found, strict=True):
            vector = library.vectors[library.ids[row]].astype(np.float64)
            if not abs(np.linalg.norm(vector) - 1) < 1e-3:
                self._damaged(row)
            cosines = vectors @ vector
            if not (own := [path for path in files if path in fitting]):
                continue  # they have gone since the library was opened
            video, *copies = own
            start, end = float(library.start[row]), float(library.end[row])
            yield Hit(
                rank=0,
                score=_score(asked, cosines),
                video=video,
                start_s=None if math.isnan(start) else start,
                end_s=None if math.isnan(end) else end,
                copies=tuple(copies),
                row=row,
                cosines=tuple(cosines.tolist()),
            )

    def _rescored(self, hits: Sequence[Hit], second: MugScores, spec: ClipSpec) -> list[Hit]:
        """The hits with the scores of the Mug head, without those that cannot be read."""
        found = []
        with RowReader(self.library.path, spec, self.timeout_s) as reader:
            for hit in hits:
                times = hit.start_s, hit.end_s
                try:
                    with self._turn:
                        scores = second.of(reader, hit.video, times, np.array(hit.cosines))
                except InputError as e:
                    self._say(f"warning: {hit.video} is left out: {e}")
                    continue
                score = _score(second.asked, scores)
                found.append(dataclasses.replace(hit, score=score, cosines=tuple(scores.tolist())))
        self._say(f"note: the videos of {len(found)} rows were read again for their Mug scores")
        return found

    def _damaged(self, row: int) -> NoReturn:
        raise CheckError(
            f"library {self.library.path}: vector {self.library.ids[row]} has not length 1: it was "
            "changed after it was written; take the file from a backup, or embed into a new library"
        )


def search_library(
    library: Rows, texts: Given, *, model: Source | None, top: int, say: Say, **options: Any
) -> SearchResult:
    """One search; see Library.search."""
    own, words = divided(SearchOptions, options)
    asked = terms("text", texts)
    for kind in ("without", "like", "like_frame"):
        asked += terms(kind, getattr(own, kind))
    check_terms(asked)
    check_whole("top", top, 1, MAX_TOP)
    keep, templates = own.filter(), read_templates(own.template)
    reads = own.mug or any(t.kind in ("like", "like_frame") for t in asked)
    _check_rows(library)
    source = find_model(library) if model is None else model
    with opened(source, words) as session:
        searcher = Searcher(library, session, reads=reads, timeout_s=own.timeout_s, say=say)
        return searcher.search(
            asked,
            top=top,
            keep=keep,
            templates=templates,
            overlapping=own.overlapping,
            mug=own.mug,
        )


def _score(asked: Sequence[Term], cosines: NDArray[np.float64]) -> float:
    return float(shares(asked) @ cosines)


def _check_rows(library: Rows) -> None:
    if not len(library.ids):
        raise InputError(f"library {library.path} has no rows: embed videos into it first")
