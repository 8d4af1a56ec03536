"""What a run that embeds into a file or a library is given, and what it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stan_infer.library import passport as pass_
from stan_infer.system.result import Result
from stan_infer.video.windows import Windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorOptions:
    """Which vectors are wanted.

    level: "video", "frame" or "token", see levels.Level; None: what the model's head scores.
    normalise: divide every vector by its length. frames: of each video, by default the config's.
    decoder: see read_clip. windows: the parts that every video is cut into; None: whole videos.
    """

    level: str | None = None
    normalise: bool = False
    frames: int | None = None
    decoder: str = "auto"
    windows: Windows | None = None


@dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
class EmbeddedFile(Result):
    """A file of embeddings that was written.

    Attributes:
        out: the file; see embedding_file for what it holds.
        videos: how many have vectors. rows: their vectors, or groups of them, more than one where
            videos were cut into parts. texts: how many vectors, or groups of them, are of texts.
        failed: videos that could not be read, or not all of their parts, with the reason.
        level: what a vector of "videos" and of "texts" stands for: video, frame, text or token.
        normalised: whether the vectors have length 1.
        session: facts about what ran; see Session.describe.
        decoders: those that read the videos.
        info: what the file says of itself; empty where none was written.
    """

    out: Path
    videos: int
    rows: int
    texts: int
    failed: dict[str, str]
    level: dict[str, str]
    normalised: bool
    session: dict[str, Any]
    decoders: tuple[str, ...]
    info: dict[str, Any]

    def summary(self) -> str:
        """How many of what are where."""
        failed = f", {len(self.failed)} videos could not be read" if self.failed else ""
        rows = "" if self.rows == self.videos else f" in {self.rows} parts"
        return f"{self.videos} videos{rows} and {self.texts} texts in {self.out}{failed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LibraryOptions:
    """What a library is made with, and what this run does.

    frames, decoder: as of embed_videos. windows: every video in parts, a row for each.
    retry_failed: try files again that failed in earlier runs.
    """

    frames: int | None = None
    decoder: str = "auto"
    windows: Windows | None = None
    retry_failed: bool = False


@dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
class EmbeddedLibrary(Result):
    """What a run did to a library.

    Attributes:
        out: the library.
        rows: vectors in it that files have, all runs together.
        videos: files that were given; unchanged: those that were known; embedded: contents that
            are new; copies: further files of a known content; renamed: files whose content was
            known by a name that is gone; gone: files that are not there any more.
        failed: files that were given and have no vectors, or not all, with the reason.
        stack: how the model compares with the library's passport; None: the library is new, or
            nothing was to be embedded.
        session: facts about what ran, see Session.describe; empty if nothing was to be embedded.
        workers: processes that decoded, those that were kept where no number was given; None if
            nothing was to be embedded, and with Ray.
    """

    out: Path
    rows: int
    videos: int
    unchanged: int
    embedded: int
    copies: int
    renamed: int
    gone: int
    failed: dict[str, str]
    stack: pass_.Comparison | None
    session: dict[str, Any]
    workers: int | None = None

    def summary(self) -> str:
        """How many of what, and where."""
        kinds = ("embedded", "unchanged", "copies", "renamed", "gone")
        counts = [f"{getattr(self, k)} {k}" for k in kinds if getattr(self, k)]
        counts += [f"{len(self.failed)} could not be read"] if self.failed else []
        return f"{self.rows} rows in {self.out}; {', '.join(counts) or 'no videos'}"


class Files(NamedTuple):
    """Absolute paths of videos, once each. folders: these are all there is below them; what is
    known of them and gone is marked.
    """

    paths: list[Path]
    folders: Sequence[Path] = ()
