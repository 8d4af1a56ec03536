"""Embed videos into a library that goes on after any stop: `stan-infer embed DIR -o LIB`.

A content is embedded once, however many files have it, in the order of the files' names. What a
run does depends on what was committed and on the files alone, so that one that was stopped, and
the next, give the same rows as one that was not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from stan_infer.checkpoints.hub import located
from stan_infer.engines.opened import Source, opened, path_of
from stan_infer.engines.session import Session
from stan_infer.errors import InputError
from stan_infer.library import passport as pass_
from stan_infer.library.asked import check_ways, tell_unlike
from stan_infer.library.embed import embed_batches
from stan_infer.library.embedded import EmbeddedLibrary, Files, LibraryOptions
from stan_infer.library.files import HASHERS, changed, hashed, listed, seen
from stan_infer.library.levels import Level, normalised
from stan_infer.library.model_files import model_source
from stan_infer.library.place import check_place, is_library, locked
from stan_infer.library.readings import EmbedOptions, Reading, error_of_parts
from stan_infer.library.store import File, Part, Store, new_store, open_store
from stan_infer.system.atomic import files_of
from stan_infer.system.json_file import json_line
from stan_infer.system.result import Progress, Say, divided, no_progress, silent
from stan_infer.video.decode_worker import default_workers, early_workers
from stan_infer.video.spec import ClipSpec

COMMIT_ROWS, COMMIT_S = 256, 2.0  # a run that is stopped loses no more
_GROUP, _GROUP_S = 16, 0.1  # readings that are added together, and seconds in which they came
_SAMPLE = 100_000  # rows among which neighbours of the canaries are looked for


def embed_library(
    source: Source,
    videos: Iterable[str | Path],
    out: str | Path,
    *,
    say: Say = silent,
    progress: Progress = no_progress,
    **options: Any,
) -> EmbeddedLibrary:
    """Embed what is new in `videos` into a library, which goes on after a stop at any moment.

    Args:
        source: a checkpoint, an exported folder, a plan or an open session.
        videos: videos, folders, lists (.txt, a path a line). Copies of a content have one vector; a
            file that is gone from a folder is marked.
        out: the folder of the library, made if it is not there; open_library reads it.
        say: called with a sentence for each video that fails.
        progress: see embed_videos; its steps are the files that are not known.
        options: windows (a video.windows.Windows: a row for every part of a video), retry_failed
            (try again what failed in earlier runs); frames, decoder, batch, workers and timeout_s
            as of embed_videos; those of open_session.

    Returns:
        EmbeddedLibrary: what was done, and the files without vectors with the reason.

    Raises:
        InputError: wrong options, or others than the library was made with; another run is writing;
            a full disk. What was committed stays: run it again.
        CheckError: a damaged library; a model whose canary clips differ from the library's.
        MissingError: a package or device is not here.

    Example:
        >>> import stan_infer as si, tempfile
        >>> model, clips = "examples/motion/motion.safetensors", ["examples/motion/clips"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = si.embed_library(model, clips, f"{folder}/clips", workers=1)
        ...     again = si.embed_library(model, clips, f"{folder}/clips", workers=1)
        >>> (first.embedded, first.unchanged), (again.embedded, again.unchanged)
        ((10, 0), (0, 10))
    """
    wanted, rest = divided(LibraryOptions, options)
    how, words = divided(EmbedOptions, rest)
    folder, given = Path(out), [Path(os.path.abspath(v)) for v in videos]
    if not given:
        raise InputError("nothing to embed: give videos, folders of videos, or lists (.txt)")
    paths = list(dict.fromkeys(listed(given)))
    files = Files(paths, [folder for folder in given if folder.is_dir()])
    tell: Any = {"say": say, "progress": progress, "words": words}
    return embed_files(located(source), files, folder, wanted, how, **tell)


def embed_files(
    source: Source,
    files: Files,
    folder: Path,
    wanted: LibraryOptions,
    how: EmbedOptions,
    *,
    words: Mapping[str, Any] = MappingProxyType({}),
    say: Say = silent,
    progress: Progress = no_progress,
) -> EmbeddedLibrary:
    """As embed_library, of files that were found. words: for open_session."""
    name = path_of(source)
    check_place(folder, files_of(name) if name else [])
    with locked(folder), ThreadPoolExecutor(HASHERS) as threads:
        run = Run(folder, wanted, how, say, threads)
        return run.run(source, dict(words), files, progress)


class Run:
    """One run that writes: what it was asked for, what is being embedded, what it counts."""

    def __init__(
        self,
        folder: Path,
        wanted: LibraryOptions,
        how: EmbedOptions,
        say: Say,
        threads: ThreadPoolExecutor,
    ) -> None:
        """folder: of the library, in its lock. threads: for hashing files."""
        self.folder, self.wanted, self.how, self.say = folder, wanted, how, say
        self._threads = threads
        self._counts = dict.fromkeys(("unchanged", "embedded", "copies", "renamed", "gone"), 0)
        self._workers: int | None = None
        self._rows, self._last = 0, time.monotonic()  # since the last commit
        self._given: dict[Path, File] = {}  # files whose content is being embedded
        self._flying: set[bytes] = set()
        self._open: tuple[Path, list[Part], list[str], Reading] | None = None

    def run(
        self, source: Source, words: dict[str, Any], files: Files, progress: Progress
    ) -> EmbeddedLibrary:
        """Embed what is new of `files`. words: for open_session."""
        paths = files.paths
        name = path_of(source)
        with ExitStack() as stack:
            store, todo = None, paths
            if is_library(self.folder):
                store = stack.enter_context(self._store())
                todo = self.look(store, files)
                if not todo:
                    passport, decoder = pass_.read_passport(self.folder), self.wanted.decoder
                    tell_unlike(self.folder, passport, source, words, decoder, self.say)
                    return self.result(store, paths, None, {})
            # Workers start, files are hashed and the model is opened at the same time.
            stack.enter_context(early_workers(self.how.workers, len(todo)))
            hashes = self._threads.submit(model_source, name, {})
            session = stack.enter_context(opened(source, words, yielding=True))
            spec = ClipSpec.of(
                session.config, frames=self.wanted.frames, decoder=self.wanted.decoder
            )
            compared = self.check_stack(store, session, spec, hashes.result())
            store = store or stack.enter_context(self._store())
            with progress("embedding", len(todo)) as step:
                self.embed(store, session, spec, todo, step)
            return self.result(store, paths, compared, session.describe())

    def _store(self) -> Store:
        """The files of the library; InputError where it was made in another way than is wanted."""
        passport = pass_.read_passport(self.folder)
        self._check_ways(passport, self.wanted.frames)
        return open_store(self.folder, passport)

    def _check_ways(self, passport: pass_.Passport, frames: int | None) -> None:
        check_ways(self.folder, passport, self.how.batch, self.wanted.windows, frames)

    def look(self, store: Store, files: Files) -> list[Path]:
        """Mark files that are gone; return those that are new, changed, or to be tried again."""
        paths, here = files.paths, set(files.paths)
        gone = [p for folder in files.folders for p in store.below(folder) if p not in here]
        store.mark_gone(gone)
        self._counts["gone"] = len(gone)
        todo = []
        for path in paths:
            known = store.file(path)
            if known is None or known.gone or not self._is_current(store, path, known):
                todo.append(path)
        store.commit()
        self._counts["unchanged"] = len(paths) - len(todo)
        return todo

    def _is_current(self, store: Store, path: Path, known: File) -> bool:
        """Whether nothing is to be done: size and time are as they were, 0 of one never there."""
        if (self.seen(path) or (0, 0)) != known[:2]:
            return False
        if known.sha256 is None:
            return not self.wanted.retry_failed
        clip = store.clip(known.sha256)
        if clip is not None and clip[1] is not None and self.wanted.retry_failed:
            store.forget(known.sha256)
            return False
        return clip is not None

    def check_stack(
        self, store: Store | None, session: Session, spec: ClipSpec, hashes: dict[str, Any]
    ) -> pass_.Comparison | None:
        """Make a new library, or compare the model with what made the one that is there."""
        facts = pass_.facts_of(session, hashes, spec)
        canaries = pass_.seen_canaries(session, spec, self.how.timeout_s, self.wanted.windows)
        return self.compare_stack(store, facts, canaries)

    def compare_stack(
        self, store: Store | None, facts: dict[str, Any], canaries: list[pass_.Canary]
    ) -> pass_.Comparison | None:
        """As check_stack, with what is known of the session."""
        made = pass_.new_passport(facts, canaries, self.how.batch, self.wanted.windows)
        if store is None:
            new_store(self.folder, json_line(made))
            return None
        old = pass_.read_passport(self.folder)
        self._check_ways(old, facts["reading.frames"])
        compared = pass_.compare(old, facts, canaries, store.vectors(_SAMPLE))
        compared.check(pass_.MIXED, self.folder, "adding rows")
        if not compared.same:
            self.say(f"warning: library {self.folder} was made by another stack: {compared}")
        return compared

    def embed(
        self,
        store: Store,
        session: Session,
        spec: ClipSpec,
        todo: list[Path],
        step: Callable[..., None],
    ) -> None:
        """Embed contents that are new, and commit as it goes."""
        windows = self.wanted.windows
        self._decode_by(self.how.workers or default_workers())
        batches = embed_batches(
            session, self._new(store, todo, step), self.how,
            spec=spec, windows=windows, apart=windows is not None,
            told=self._decode_by,
        )  # fmt: skip
        with Level(session, "video") as level, closing(batches):
            for group in _in_groups(batches):
                for reading in group:
                    self.add(store, level.of_video, reading, step)
                if windows is None:
                    self.finish(store, step)
                self.commit_in_time(store, len(group))
            self.finish(store, step)
            store.commit()

    def _decode_by(self, workers: int) -> None:
        self._workers = workers

    def commit_in_time(self, store: Store, rows: int) -> None:
        """Commit where enough was added since the last time; rows: that were added now."""
        self._rows += rows
        if self._rows >= COMMIT_ROWS or time.monotonic() - self._last >= COMMIT_S:
            store.commit()
            self._rows, self._last = 0, time.monotonic()

    def _new(self, store: Store, todo: list[Path], step: Callable[..., None]) -> Iterator[Path]:
        """The files that have a content that nobody has embedded; the others are only noted."""
        for path, file in hashed(todo, self._threads):
            if self.note(store, path, file, step):
                yield path

    def note(self, store: Store, path: Path, file: File, step: Callable[..., None]) -> bool:
        """Note how a file was seen; whether it has a content that is to be embedded."""
        if file.sha256 is None:
            store.put_file(path, file)
            self.say(f"error: {file.error}")
        elif file.sha256 in self._flying or store.clip(file.sha256) is not None:
            before = store.file(path)
            store.put_file(path, file)
            self._note_known(store, path, file.sha256, before)
        else:
            store.put_file(path, file)
            self._flying.add(file.sha256)
            self._given[path] = file
            return True
        step()
        return False

    def _note_known(self, store: Store, path: Path, sha256: bytes, before: File | None) -> None:
        if before is not None and before.sha256 == sha256:
            self._counts["unchanged"] += 1  # only its time has changed, or it has come back
        elif all(other == path for other in store.paths_of(sha256)):
            self._counts["renamed"] += 1
        else:
            self._counts["copies"] += 1

    def add(
        self,
        store: Store,
        of_video: Callable[[NDArray[Any]], NDArray[Any]],
        reading: Reading,
        step: Callable[..., None],
    ) -> None:
        """Take one reading: a video, or a part of one. of_video: features -> the vector [E]."""
        if self._open is not None and self._open[0] != reading.path:
            self.finish(store, step)
        if self._open is None:
            self._open = (reading.path, [], [], reading)
        _, parts, errors, first = self._open
        if first.clip is None:
            self._open = (reading.path, parts, errors, reading)
        if reading.clip is None or reading.features is None:
            errors.append(reading.error or "")
            return
        try:
            vector = normalised(of_video(reading.features), str(reading.path))
        except InputError as e:
            errors.append(str(e))
            return
        parts.append(store.add_vector(vector, reading.clip.seconds))

    def finish(self, store: Store, step: Callable[..., None]) -> None:
        """Add the content whose last reading was taken."""
        if self._open is None:
            return
        path, parts, errors, reading = self._open
        self._open = None
        file = self._given.pop(path)
        assert file.sha256 is not None
        self._flying.discard(file.sha256)
        step()
        if (reason := changed(path, file, self.seen(path))) is not None:
            store.put_file(path, file._replace(sha256=None, error=reason, mtime_ns=0))
            self.say(f"error: {reason}")
            return
        error, clip = error_of_parts(errors), reading.clip
        store.add_clip(
            file.sha256,
            parts,
            frames=None if clip is None else clip.total_frames,
            length_s=None if clip is None else clip.length_s,
            decoder=None if clip is None else clip.decoder,
            error=error,
        )
        self._counts["embedded"] += bool(parts)
        if error:
            self.say(f"error: {error}")

    def seen(self, path: Path) -> tuple[int, int] | None:
        """Size and time of change of a file now; None: it is gone."""
        return seen(path)

    def result(
        self,
        store: Store,
        paths: list[Path],
        compared: pass_.Comparison | None,
        session: dict[str, Any],
    ) -> EmbeddedLibrary:
        """What was done, and which of the files have no vectors."""
        here = set(paths)
        failed = {str(path): error for path, error in store.failures() if path in here}
        return EmbeddedLibrary(
            out=self.folder,
            rows=store.rows(),
            videos=len(paths),
            failed=failed,
            stack=compared,
            session=session,
            workers=self._workers,
            **self._counts,
        )


def _in_groups(batches: Iterable[list[Reading]]) -> Iterator[list[Reading]]:
    """The same readings, some calls of the network together.

    Between two calls of a small model the caches hold nothing of Python and SQLite any more: added
    one by one, rows take twice the time. A list is emptied when the next is asked for, as pixels
    are large.
    """
    group: list[Reading] = []
    begun = time.monotonic()
    for batch in batches:
        group += batch
        if len(group) >= min(_GROUP, COMMIT_ROWS) or time.monotonic() - begun >= _GROUP_S:
            yield group
            group.clear()
            begun = time.monotonic()
    if group:
        yield group
