"""A library that is searched by many, some at a time, and read again as it grows."""

from __future__ import annotations

import copy
import datetime
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stan_infer.engines.session import Session
from stan_infer.errors import InputError, StanError
from stan_infer.library.database import PASSPORT, ROWS
from stan_infer.library.library import Library, open_library
from stan_infer.library.search import Searcher, SearchResult
from stan_infer.library.second_stage import check_mug_head
from stan_infer.library.server.question import Question
from stan_infer.system.result import Say, silent
from stan_infer.text.templates import Templates

MAX_WAITING = 32  # searches, those that run among them
SEARCHES = 4  # that run at a time: the model serves one, while others read vectors or videos
LOOK_S = 2.0  # between two looks at whether the library has changed
_SHARE = 10  # reading the library again may take one part of so many of the time


class BusyError(Exception):
    """Too many wait already."""


@dataclass(frozen=True)
class Found:
    """A search: its result, the library that `Hit.row` is a place in, what was said."""

    result: SearchResult
    library: Library
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """A library as it was read. videos: how many files it has. at: when. took_s: to read it."""

    library: Library
    videos: int
    at: str
    took_s: float
    mark: list[Any]

    @classmethod
    def of(cls, path: Path) -> Reading:
        """Read it now; raises what open_library raises."""
        mark, at, start = _mark(path), datetime.datetime.now(), time.monotonic()
        library = open_library(path)
        videos = library.videos.files()
        return cls(library, videos, at.isoformat(" ", "seconds"), time.monotonic() - start, mark)


class Held:
    """A library with the session that searches it; in a `with` block.

    reading: of which searches are answered. problem: why it could not be read again, "" without.

    A run that embeds beside it adds rows: what is answered is the library as it was read last, at
    most some seconds ago.
    """

    def __init__(
        self,
        reading: Reading,
        session: Session,
        templates: Templates,
        mug: bool = False,
        timeout_s: float = 60.0,
        say: Say = silent,
    ) -> None:
        """Check that the session may search it; raises what Searcher raises.

        mug: whether searches may ask for the scores of a Mug head, which read videos; InputError
        for a model without one.
        """
        self.reading, self.mug, self.timeout_s = reading, mug, timeout_s
        self.session, self._said = session, say
        self._templates = templates
        templates.check(is_mug=session.config.is_mug)
        if mug:
            check_mug_head(session)
        self._turn = threading.Lock()  # of the session
        self._own = threading.local()  # what is said to whom asks
        self._searcher = self._new_searcher(reading.library)
        self.problem = ""
        self._lock, self._waiting = threading.Lock(), 0
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(SEARCHES, "search")
        self._looker = threading.Thread(target=self._look, name="changes", daemon=True)

    def __enter__(self) -> Held:
        """This object; it looks for changes from here on."""
        self._looker.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """End; a search that runs is waited for."""
        self._ended.set()
        self._pool.shutdown(cancel_futures=True)
        self._looker.join()

    def ask(self, asked: Question) -> Future[Found]:
        """Search when it is this question's turn.

        Raises BusyError where MAX_WAITING wait, InputError for Mug scores that are not offered.
        """
        if asked.mug and not self.mug:
            raise InputError("this server offers no scores of a Mug head: start it with --mug")
        with self._lock:
            if self._waiting >= MAX_WAITING:
                raise BusyError
            self._waiting += 1
        try:
            future = self._pool.submit(self._search, asked)
        except BaseException:
            self._done()
            raise
        future.add_done_callback(lambda _: self._done())
        return future

    def _done(self) -> None:
        with self._lock:
            self._waiting -= 1

    def _search(self, asked: Question) -> Found:
        searcher, self._own.notes = self._searcher, []
        try:
            result = searcher.search(
                asked.terms,
                top=asked.top,
                keep=asked.keep,
                templates=self._templates,
                mug=asked.mug,
            )
            assert isinstance(searcher.library, Library)
            return Found(result, searcher.library, tuple(self._own.notes))
        finally:
            self._own.notes = None

    def _say(self, text: str) -> None:
        """To whom asks, or to whom started it."""
        notes = getattr(self._own, "notes", None)
        if notes is None:
            self._said(text)
        else:
            notes.append(text)

    def _new_searcher(self, library: Library) -> Searcher:
        return Searcher(
            library, self.session, reads=self.mug, timeout_s=self.timeout_s, say=self._say,
            turn=self._turn,
        )  # fmt: skip

    def _look(self) -> None:
        path = self.reading.library.path
        while not self._ended.wait(max(LOOK_S, _SHARE * self.reading.took_s)):
            if _mark(path) == self.reading.mark:
                continue
            try:
                self._read_again(path)
            except StanError as e:
                self._tell(f"{path} has changed and cannot be read again: {e}")
            else:
                self.problem = ""

    def _read_again(self, path: Path) -> None:
        found = Reading.of(path)
        library = found.library
        if library.passport == self.reading.library.passport and len(library.ids):
            searcher = copy.copy(self._searcher)  # it is known that the model may search it
            searcher.library = library
        else:
            searcher = self._new_searcher(library)
        self._searcher, self.reading = searcher, found

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            self._said(f"warning: {problem}")
        self.problem = problem


def _mark(path: Path) -> list[Any]:
    """What differs once a library was written to."""
    found: list[Any] = []
    for name in (PASSPORT, ROWS, f"{ROWS}-wal"):
        with suppress(OSError):
            status = os.stat(path / name)
            if status.st_size:  # readers leave an empty -wal
                found.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
    return found
