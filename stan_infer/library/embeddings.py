"""Videos and texts -> their features, in memory or in a file: `stan-infer embed`."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import stan_infer
from stan_infer.engines.inputs import as_numpy, token_ids
from stan_infer.engines.opened import Source, opened, path_of
from stan_infer.engines.session import TEXT_CHUNK, Session
from stan_infer.errors import InputError, first_reasons, storable
from stan_infer.library import embed
from stan_infer.library.embedded import EmbeddedFile, VectorOptions
from stan_infer.library.embedding_file import check_embeddings, new_embeddings
from stan_infer.library.files import HASHERS, changed, hashed, seen
from stan_infer.library.levels import Level, normalised
from stan_infer.library.model_files import model_source
from stan_infer.library.reading import reading_facts
from stan_infer.library.readings import EmbedOptions, Reading, error_of_parts
from stan_infer.library.store import File
from stan_infer.system.atomic import files_of
from stan_infer.system.json_file import plain
from stan_infer.system.result import Progress, Result, Say, divided, no_progress, silent
from stan_infer.video.clip import Clip
from stan_infer.video.decode_worker import early_workers
from stan_infer.video.find import list_videos
from stan_infer.video.spec import ClipSpec


@dataclasses.dataclass(frozen=True, repr=False)
class Embeddings(Result):
    """The features of n videos, or parts of videos, in the order in which they were given.

    Attributes:
        paths: the n videos that could be read; of parts the video of each.
        embeddings: float32 [n, E]; [n, T, E] with a Mug head or of the level "frame".
        indices: int64 [n, T], the frames that were looked at, from 0.
        total_frames: int64 [n], of each video.
        decoders: the n decoders that read them.
        sha256: of the content of each of the n files, in hex.
        start, end: float64 [n], seconds in the video; NaN for a whole one.
        session: facts about what ran; see Session.describe.
        failed: videos that could not be read, or not all of their parts, with the reason.
    """

    paths: tuple[Path, ...]
    embeddings: NDArray[np.float32]
    indices: NDArray[np.int64]
    total_frames: NDArray[np.int64]
    decoders: tuple[str, ...]
    sha256: tuple[str, ...]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    session: dict[str, Any]
    failed: dict[str, str]

    def summary(self) -> str:
        """How many, their shape, what ran."""
        s, failed = self.session, f", {len(self.failed)} could not be read" if self.failed else ""
        what = "part" if np.isfinite(self.start).any() else "video"
        videos = f"{len(self.paths)} {what}{'s' * (len(self.paths) != 1)}"
        return (
            f"{videos}, float32 {list(self.embeddings.shape)}, engine "
            f"{s['engine']} in {s['precision']} on {s['device']}{failed}"
        )


def embed_videos(
    source: Source,
    videos: str | Path | Iterable[str | Path],
    out: str | Path | None = None,
    *,
    say: Say = silent,
    progress: Progress = no_progress,
    **options: Any,
) -> Embeddings:
    """Embed videos, decoded in processes beside the model; a bad one is named and left out.

    Args:
        source: a checkpoint, an exported folder, a plan or an open session.
        videos: a video, a folder of videos, or several of both.
        out: a file to write too: FILE.npz, .npy (with a .json beside it) or .parquet.
        say: called with a sentence for each video that fails.
        progress: called with a title and the number of videos; a context manager that gives a
            function, which is called after each.
        options: level ("video": one vector each, "frame": one for every frame; by default what the
            model's head scores), normalise (divide every vector by its length), windows (a
            video.windows.Windows: a vector for every part of a video), frames (of each video or
            part, by default the config's), decoder ("auto", which is PyAV, "pyav", "decord",
            "decord-as-is"), batch (videos per call of the network, 1), workers (decoding
            processes), timeout_s (seconds allowed for one video, 60); and those of open_session.

    Returns:
        Embeddings: arrays, paths, and the videos that failed.

    Raises:
        InputError: no video, or none that can be read; a wrong option; an `out` that holds
            something else.
        MissingError: a package or device is not here.

    Example:
        >>> import stan_infer as si
        >>> clips = "examples/motion/clips/green_bar_grows.mp4"
        >>> si.embed_videos("examples/motion/motion.safetensors", clips, workers=1)
        <Embeddings: 1 video, float32 [1, 64], engine eager in fp32 on cpu>
    """
    wanted, rest = divided(VectorOptions, options)
    if wanted.level == "token":
        raise InputError('level "token" is of texts: give "video" or "frame"')
    given = [videos] if isinstance(videos, (str, Path)) else list(videos)
    how, words = divided(EmbedOptions, rest)
    gathered = _Gathered()
    job = _Job(source, [Path(v) for v in given], (), wanted, how, say, progress)
    told = job.run(words, None if out is None else Path(out), (), gathered)
    return Embeddings(
        paths=tuple(gathered.paths),
        embeddings=np.stack(gathered.features),
        indices=np.stack([c.indices for c in gathered.clips]),
        total_frames=np.array([c.total_frames for c in gathered.clips]),
        decoders=tuple(c.decoder for c in gathered.clips),
        sha256=tuple(gathered.sha256),
        start=np.array([(c.seconds or (np.nan, np.nan))[0] for c in gathered.clips]),
        end=np.array([(c.seconds or (np.nan, np.nan))[1] for c in gathered.clips]),
        session=told.session,
        failed=told.failed,
    )


def embed_to_file(
    source: Source,
    videos: Iterable[str | Path],
    texts: Sequence[str],
    out: str | Path,
    *,
    read: Iterable[str | Path] = (),
    say: Say = silent,
    progress: Progress = no_progress,
    **options: Any,
) -> EmbeddedFile:
    """Write the vectors of videos and texts as they come: memory does not grow with them.

    read: other files that were read, which are not replaced. options: as of embed_videos; level
    "token" gives one vector for every token of a text. The rest, and errors: see embed_videos.
    """
    wanted, rest = divided(VectorOptions, options)
    if wanted.level == "token" and not texts:
        raise InputError("--level token is of texts: give --text or --texts, or --level frame")
    how, words = divided(EmbedOptions, rest)
    job = _Job(source, [Path(v) for v in videos], texts, wanted, how, say, progress)
    return job.run(words, Path(out), tuple(read), None)


class _Sink(Protocol):
    def add_video(self, path: Path, clip: Clip, features: NDArray[Any], sha256: str) -> None: ...

    def add_texts(
        self, texts: Sequence[str], ids: NDArray[np.int64], features: NDArray[Any]
    ) -> None: ...


class _Gathered:
    """The vectors of videos in memory, without their pixels."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.clips: list[Clip] = []
        self.features: list[NDArray[Any]] = []
        self.sha256: list[str] = []

    def add_video(self, path: Path, clip: Clip, features: NDArray[Any], sha256: str) -> None:
        self.paths.append(path)
        self.clips.append(clip)
        self.features.append(features)
        self.sha256.append(sha256)

    def add_texts(
        self, texts: Sequence[str], ids: NDArray[np.int64], features: NDArray[Any]
    ) -> None:
        raise AssertionError("embed_videos has no texts")


@dataclasses.dataclass(frozen=True)
class _Job:
    source: Source
    videos: Sequence[Path]
    texts: Sequence[str]
    wanted: VectorOptions
    how: EmbedOptions
    say: Say
    progress: Progress

    def run(
        self,
        words: dict[str, Any],
        out: Path | None,
        read: Sequence[str | Path],
        gathered: _Gathered | None,
    ) -> EmbeddedFile:
        """Embed into the file `out`, into `gathered`, or both. words: for open_session."""
        if not self.videos and not self.texts:
            raise InputError("nothing to embed: give videos, --text or --texts")
        name, paths = path_of(self.source), list_videos(self.videos)
        if self.wanted.windows is not None:
            paths = list(dict.fromkeys(paths))  # the parts of one are told by its path
            if not paths:
                raise InputError("--windows is about videos, and none is given")
        more = [words["calibration"]] if words.get("calibration") is not None else []
        sources = [*(files_of(name) if name else []), *more, *read, *paths]
        if out is not None:
            check_embeddings(out, videos=bool(paths), texts=bool(self.texts), sources=sources)
        with (
            early_workers(self.how.workers, len(paths) if self.wanted.windows is None else 64),
            opened(self.source, words, yielding=True) as session,
            Level(session, self.wanted.level) as level,
            self.progress("embedding", len(paths) + len(self.texts)) as step,
            ExitStack() as stack,
        ):
            info: dict[str, Any] = {}
            sinks: list[_Sink] = [] if gathered is None else [gathered]
            if out is not None:
                info = self._info(session, name, level)
                sinks.append(stack.enter_context(new_embeddings(out, info, sources=sources)))
            for part, ids, features in self._texts(session, level):
                for sink in sinks:
                    sink.add_texts(part, ids, features)
                step(len(part))
            videos, rows, failed, decoders = self._videos(session, level, paths, sinks, step)
            ran = session.describe()
            if paths and not videos:
                why = first_reasons(failed.values(), "")
                end = "" if out is None else f"; {out} was not written"
                raise InputError(f"none of the {len(paths)} videos could be read: {why}{end}")
        return EmbeddedFile(
            out=out or Path(),
            videos=videos,
            rows=rows,
            texts=len(self.texts),
            failed=failed,
            level=level.to_dict(),
            normalised=self.wanted.normalise,
            session=ran,
            decoders=tuple(sorted(decoders)),
            info=info,
        )

    def _videos(
        self,
        session: Session,
        level: Level,
        paths: list[Path],
        sinks: Sequence[_Sink],
        step: Callable[..., None],
    ) -> tuple[int, int, dict[str, str], set[str]]:
        """Give every video to the sinks; return how many had rows, how many rows, what failed and
        why, and the decoders.
        """
        videos, rows = 0, 0
        failed: dict[str, str] = {}
        decoders: set[str] = set()
        with closing(self._readings(session, paths)) as readings:
            for path, file, parts in readings:
                step()
                found, errors = self._vectors(level, parts)
                if (reason := changed(path, file, seen(path))) is not None:
                    found, errors = [], errors or [reason]
                for clip, vector in found:
                    assert file.sha256 is not None
                    for sink in sinks:
                        sink.add_video(path, clip, vector, file.sha256.hex())
                    decoders.add(clip.decoder)
                videos, rows = videos + bool(found), rows + len(found)
                if (error := error_of_parts(errors)) is not None:
                    failed[str(path)] = error
                    self.say(f"error: {error}")
        return videos, rows, failed, decoders

    def _vectors(
        self, level: Level, parts: Iterable[Reading]
    ) -> tuple[list[tuple[Clip, NDArray[Any]]], list[str]]:
        """What the file holds of one video, and why parts of it have nothing."""
        found, errors = [], []
        for reading in parts:
            if reading.clip is None or reading.features is None:
                errors.append(reading.error or "")
                continue
            try:
                vector = self._kept(level.of_video(reading.features), str(reading.path))
            except InputError as e:
                errors.append(str(e))
                continue
            pixels = np.empty(0, np.uint8)  # an hour has thousands of parts
            found.append((dataclasses.replace(reading.clip, pixels=pixels), vector))
        return found, errors

    def _readings(
        self, session: Session, paths: Iterable[Path]
    ) -> Generator[tuple[Path, File, Iterable[Reading]], None, None]:
        """Every video with its hash, which threads compute before it is read, and its parts."""
        hashes: deque[File] = deque()  # of videos that are being read

        def given() -> Generator[Path, None, None]:
            for path, file in hashed(paths, threads):
                hashes.append(file)
                yield path

        windows = self.wanted.windows
        with ThreadPoolExecutor(HASHERS) as threads, closing(given()) as begun:
            how: Any = {"spec": self._spec(session), "windows": windows}
            with closing(embed.embed_videos(session, begun, self.how, **how)) as readings:
                if windows is None:
                    for reading in readings:
                        yield reading.path, hashes.popleft(), [reading]
                    return
                for path, parts in groupby(readings, key=lambda reading: reading.path):
                    yield path, hashes.popleft(), parts

    def _kept(self, features: NDArray[Any], name: str) -> NDArray[Any]:
        return normalised(features, name) if self.wanted.normalise else features

    def _texts(
        self, session: Session, level: Level
    ) -> Iterator[tuple[Sequence[str], NDArray[np.int64], NDArray[Any]]]:
        """Texts, ids [Q, L] and features, some texts at a time."""
        for i in range(0, len(self.texts), TEXT_CHUNK):
            part = self.texts[i : i + TEXT_CHUNK]
            ids = token_ids(session.config, part, session.vocabulary)
            features = level.of_texts(as_numpy(session.embed_text(ids)), ids)
            yield part, ids, self._kept(features, "texts")

    def _info(self, session: Session, name: str | None, level: Level) -> dict[str, Any]:
        """What a file says of itself; see embedding_file."""
        spec, windows = self._spec(session), self.wanted.windows
        config = session.config.to_dict() | {"frames": spec.frames}
        source = model_source(name, config)
        source["sha256"] = {storable(file): value for file, value in source["sha256"].items()}
        return {
            "config": config,
            "reading": reading_facts(spec),
            "settings": plain(session.options.get("settings") or {}),
            "engine": session.describe(),
            "source": {"checkpoint": storable(Path(name or "").name), **source},
            "level": level.to_dict(),
            "normalised": self.wanted.normalise,
            "windows": None if windows is None else dataclasses.asdict(windows),
            "stan_infer": stan_infer.__version__,
        }

    def _spec(self, session: Session) -> ClipSpec:
        return ClipSpec.of(session.config, frames=self.wanted.frames, decoder=self.wanted.decoder)
