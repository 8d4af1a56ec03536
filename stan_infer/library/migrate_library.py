"""Make a library that of another stack: `stan-infer library migrate`.

What must be embedded again is embedded into a new library beside the old one, which goes on after
any stop as every library does. At the end the two exchange their names in one step; until then
the old one is searched as before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.checkpoints.hub import located
from stan_infer.engines.opened import Source, opened, path_of
from stan_infer.engines.session import Session
from stan_infer.errors import CheckError, InputError, printable
from stan_infer.library import passport as pass_
from stan_infer.library.database import FILES, PASSPORT, connect, errors_named, is_library
from stan_infer.library.database import path_of as stored_path
from stan_infer.library.embed_library import embed_files
from stan_infer.library.embedded import EmbeddedLibrary, Files, LibraryOptions
from stan_infer.library.library import Library, open_library
from stan_infer.library.model_files import model_source
from stan_infer.library.place import locked
from stan_infer.library.readings import EmbedOptions
from stan_infer.library.store import open_store
from stan_infer.system import kept
from stan_infer.system.atomic import exchange, new_file
from stan_infer.system.json_file import json_line
from stan_infer.system.result import Progress, Result, Say, divided, no_progress, silent
from stan_infer.video.spec import ClipSpec

_NO_VECTORS = np.empty((0, 1), np.float32)


@dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
class MigratedLibrary(Result):
    """What a migration did.

    Attributes:
        path: the library.
        rows: vectors in it that files have.
        embedded: contents that were embedded by this run; 0 where the vectors could stay.
        lost: files that had vectors and have none now, with the reason; only with drop.
        stack: how the model compared with the passport; None: nothing could be compared.
    """

    path: Path
    rows: int
    embedded: int
    lost: dict[str, str]
    stack: pass_.Comparison | None

    def summary(self) -> str:
        """What was done."""
        lost = f", {len(self.lost)} files lost theirs" if self.lost else ""
        return f"{self.rows} rows in {self.path}, {self.embedded} contents embedded again{lost}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MigrateOptions:
    """everything: embed all again, also where the vectors could stay. drop: leave out files that
    have vectors and cannot be read now.
    """

    everything: bool = False
    drop: bool = False


def migrate_library(
    path: str | Path,
    source: Source,
    *,
    say: Say = silent,
    progress: Progress = no_progress,
    **options: Any,
) -> MigratedLibrary:
    """Make a library that of the model `source`, as it is opened here.

    Where each canary's cosine is at least passport.MIXED the vectors stay, and the passport gets
    the facts of this stack; its canary vectors stay too, so that several such steps are measured
    against what made the rows. Otherwise everything is embedded again, beside the library
    (.NAME.migrating, of the same size), which then takes its place. Stopped at any moment it goes
    on when it is run again.

    Args:
        path: the folder of the library.
        source: a checkpoint, an exported folder, a plan or an open session.
        say: called with a sentence for each video that fails.
        progress: see embed_videos.
        options: everything (embed all again), drop (go on where files that have vectors cannot be
            read now); frames, decoder, windows, batch in place of the library's own; workers and
            timeout_s as of embed_videos; those of open_session.

    Returns:
        MigratedLibrary: what was done.

    Raises:
        InputError: no library, wrong options, another run is writing, files that cannot be read
            now, a full disk; CheckError: a damaged library.

    Example:
        >>> import tempfile, stan_infer as si
        >>> from stan_infer.library.migrate_library import migrate_library
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model, clips = "examples/motion/motion.safetensors", "examples/motion/clips"
        ...     _ = si.embed_library(model, [clips], f"{folder}/clips", workers=1)
        ...     done = migrate_library(f"{folder}/clips", model, frames=4, workers=1)
        >>> done.rows, done.embedded
        (10, 10)
    """
    own, rest = divided(MigrateOptions, options)
    folder = Path(path).resolve()
    open_library(folder)  # before a lock is made in what is none
    with locked(folder):
        old = open_library(folder)
        wanted, rest = divided(LibraryOptions, _as_before(old) | rest)
        how, words = divided(EmbedOptions, {"batch": old.passport["batch"]} | rest)
        with opened(located(source), words, yielding=True) as session:
            return _Migration(old, session, wanted, how, say).run(own, progress)


def _as_before(old: Library) -> dict[str, Any]:
    """The options that a library was made with."""
    facts = old.passport["facts"]
    try:
        return {
            "frames": int(facts["reading.frames"]),
            "decoder": str(facts["reading.decoder"]).partition(" ")[0],
            "windows": pass_.windows_of(old.passport),
        }
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(
            f"{old.path / PASSPORT} does not say how the videos were read ({e}): embed into a new "
            "library"
        ) from e


class _Migration:
    """One run, in the lock of the library."""

    def __init__(
        self,
        old: Library,
        session: Session,
        wanted: LibraryOptions,
        how: EmbedOptions,
        say: Say,
    ) -> None:
        self.old, self.session = old, session
        self.part = old.path.with_name(f".{old.path.name}.migrating")
        self.wanted, self.how, self.say = wanted, how, say
        spec = ClipSpec.of(session.config, frames=wanted.frames, decoder=wanted.decoder)
        self._facts = pass_.facts_of(session, model_source(path_of(session), {}), spec)
        self._canaries = pass_.seen_canaries(session, spec, how.timeout_s, wanted.windows)

    def run(self, own: MigrateOptions, progress: Progress) -> MigratedLibrary:
        """Embed again, or keep the vectors."""
        compared = self.compared()
        rows, embedded, lost = len(self.old.ids), 0, {}
        if compared is not None and self.can_stay(compared) and not own.everything:
            self.keep(compared)
        else:
            done = self.embed(progress)
            rows, embedded, lost = done.rows, done.embedded, self.lost(done, own.drop)
            exchange(self.part, self.old.path)
            kept.note(self.old.path, "was embedded again")
            _remove(self.part)
        return MigratedLibrary(
            path=self.old.path, rows=rows, embedded=embedded, lost=lost, stack=compared
        )

    def compared(self) -> pass_.Comparison | None:
        """How the model compares; None where it has another width, or other canary clips."""
        try:
            return pass_.compare(self.old.passport, self._facts, self._canaries, self.old.sample())
        except CheckError:
            return None

    def can_stay(self, compared: pass_.Comparison) -> bool:
        """Whether the vectors are as good as those of this stack."""
        ways = (self.old.passport["batch"], pass_.windows_of(self.old.passport))
        frames = self.old.passport["facts"].get("reading.frames")
        same = ways == (self.how.batch, self.wanted.windows)
        same = same and frames == self._facts["reading.frames"]
        return same and compared.cosine >= pass_.MIXED

    def keep(self, compared: pass_.Comparison) -> None:
        """Give the passport the facts of this stack, and remove what another migration left."""
        if compared.changed or compared.pixels:
            now = {c["file"]: c["pixels"] for c in self._canaries}
            canaries = [{**c, "pixels": now[c["file"]]} for c in self.old.passport["canaries"]]
            made = {**self.old.passport, "facts": self._facts, "canaries": canaries}
            with new_file(self.old.path / PASSPORT) as file:
                file.write_text(json_line(made) + "\n")
        with open_store(self.old.path, pass_.read_passport(self.old.path)):
            pass  # it makes 8 bits of vectors that have none
        if self.part.is_dir():
            _remove(self.part)

    def embed(self, progress: Progress) -> EmbeddedLibrary:
        """Embed the files of the library into the new one, in the order of their rows."""
        paths = [*_paths(self.old)]
        if not paths:
            raise InputError(f"library {self.old.path} has no files: embed into a new one")
        try:
            if is_library(self.part):  # where it is complete, embed_files opens no model
                passport = pass_.read_passport(self.part)
                begun = pass_.compare(passport, self._facts, self._canaries, _NO_VECTORS)
                begun.check(pass_.MIXED, self.part, "going on with it")
            return embed_files(
                self.session, Files(paths), self.part, self.wanted, self.how,
                say=self.say, progress=progress,
            )  # fmt: skip
        except (InputError, CheckError) as e:
            if not is_library(self.part):
                raise
            raise type(e)(
                f"{e} (this is the new library that a migration of {self.old.path} makes; to begin "
                "it anew, delete it)"
            ) from e

    def lost(self, done: EmbeddedLibrary, drop: bool) -> dict[str, str]:
        """Files that have vectors in the old library and none in the new one; InputError for one.

        drop: they are left out.
        """
        new = open_library(self.part)
        here = {path for row in new.videos for path in row}
        gone = dict.fromkeys(p for row in self.old.videos for p in row if p not in here)
        lost = {path: done.failed.get(path, "it has no vectors") for path in gone}
        if lost and not drop:
            path, why = next(iter(lost.items()))
            raise InputError(
                f"{len(lost)} files of library {self.old.path} have vectors and cannot be embedded "
                f"now (the first: {printable(why)}): bring them back and run this again, or leave "
                "them out (--drop)"
            )
        return lost


def _paths(old: Library) -> Iterator[Path]:
    """The files of a library in the order of their rows, those without rows last."""
    asked = (
        "SELECT files.path FROM files LEFT JOIN clips ON clips.sha256 = files.sha256"
        " WHERE NOT files.gone ORDER BY clips.id IS NULL, clips.id, files.path"
    )
    db = connect(old.path)
    try:
        with errors_named(old.path):
            yield from (Path(stored_path(path)) for (path,) in db.execute(asked))
    finally:
        db.close()


def _remove(library: Path) -> None:
    """Delete what a migration left; a file that is not of a library stays, and the folder with it.

    The passport goes last, so that what a stop leaves is known again. Whoever writes there has the
    lock of the library beside it.
    """
    with errors_named(library):
        for name in sorted(FILES, key=lambda name: name == PASSPORT):
            (library / name).unlink(missing_ok=True)
        with suppress(OSError):
            library.rmdir()
