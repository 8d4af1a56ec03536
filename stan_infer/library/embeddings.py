"""Videos -> their features in one object, and in a file if asked for: `stan-infer embed`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.engines.opened import Source, opened, path_of
from stan_infer.errors import InputError
from stan_infer.library import embed
from stan_infer.library.embed import EmbedOptions, Reading, collect, save_embeddings, why_keep
from stan_infer.system.atomic import check_file, files_of
from stan_infer.system.result import Progress, Result, Say, divided, no_progress, silent
from stan_infer.video.decode_worker import early_workers
from stan_infer.video.find import list_videos
from stan_infer.video.spec import ClipSpec


@dataclasses.dataclass(frozen=True, repr=False)
class Embeddings(Result):
    """The features of n videos, in the order in which they were given.

    Attributes:
        paths: the n videos that could be read.
        embeddings: float32 [n, E], not normalised; [n, T, E] with a Mug head.
        indices: int64 [n, T], the frames that were looked at, from 0.
        total_frames: int64 [n], of each video.
        decoders: the n decoders that read them.
        session: facts about what ran; see Session.describe.
        failed: videos that could not be read, with the reason.
    """

    paths: tuple[Path, ...]
    embeddings: NDArray[np.float32]
    indices: NDArray[np.int64]
    total_frames: NDArray[np.int64]
    decoders: tuple[str, ...]
    session: dict[str, Any]
    failed: dict[str, str]

    def summary(self) -> str:
        """How many, their shape, what ran."""
        s, failed = self.session, f", {len(self.failed)} could not be read" if self.failed else ""
        videos = f"{len(self.paths)} video{'s' * (len(self.paths) != 1)}"
        return (
            f"{videos}, float32 {list(self.embeddings.shape)}, engine "
            f"{s['engine']} in {s['precision']} on {s['device']}{failed}"
        )


def embed_videos(
    source: Source,
    videos: str | Path | Iterable[str | Path],
    out: str | Path | None = None,
    *,
    decoder: str = "auto",
    say: Say = silent,
    progress: Progress = no_progress,
    **options: Any,
) -> Embeddings:
    """Embed videos, decoded in processes beside the model; a bad one is named and left out.

    Args:
        source: a checkpoint, an exported folder, a plan or an open session.
        videos: a video, a folder of videos, or several of both.
        out: a file FILE.npz to write too: see save_embeddings for its arrays.
        decoder: "auto" (PyAV), "pyav", "decord", "decord-as-is".
        say: called with a sentence for each video that fails.
        progress: called with a title and the number of videos; a context manager that gives a
            function, which is called after each.
        options: batch (videos per call of the network, 1), workers (decoding processes),
            timeout_s (seconds allowed for one video, 60); and those of open_session.

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
    given = [videos] if isinstance(videos, (str, Path)) else list(videos)
    how, words = divided(EmbedOptions, options)
    name = path_of(source)
    target = None if out is None else Path(out)
    if target is not None and target.suffix != ".npz":
        raise InputError(f"--out {target} must end in .npz")
    paths = list_videos([Path(video) for video in given])
    sources = [*(files_of(name) if name else []), *_one(words.get("calibration")), *paths]
    if target is not None:
        check_file(target, why_keep, sources=sources)
    with early_workers(how.workers, len(paths)), opened(source, words, yielding=True) as session:
        spec = ClipSpec.of(session.config, decoder=decoder)
        readings = embed.embed_videos(session, paths, how, spec=spec)
        with progress("embedding", len(paths)) as step:
            good, bad = collect(readings, partial(_tell, step, say))
        if not good:
            written = "" if target is None else f"; {target} was not written"
            raise InputError(f"none of the {len(paths)} videos could be read{written}")
        if target is not None:
            save_embeddings(target, good, session, name or "", sources=sources)
        return _gathered(good, bad, session.describe())


def _one(path: Any) -> list[Any]:
    return [] if path is None else [path]


def _tell(step: Callable[..., None], say: Say, reading: Reading) -> None:
    step()
    if reading.error:
        say(f"error: {reading.error}")


def _gathered(good: list[Reading], bad: list[Reading], session: dict[str, Any]) -> Embeddings:
    clips = [r.clip for r in good if r.clip is not None]
    return Embeddings(
        paths=tuple(r.path for r in good),
        embeddings=np.stack([r.features for r in good if r.features is not None]),
        indices=np.stack([c.indices for c in clips]),
        total_frames=np.array([c.total_frames for c in clips]),
        decoders=tuple(c.decoder for c in clips),
        session=session,
        failed={str(r.path): r.error or "" for r in bad},
    )
