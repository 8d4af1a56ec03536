"""Embed many videos: decode in worker processes, embed in batches, go on after bad files."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.engines.inputs import as_numpy
from stan_infer.engines.session import Session
from stan_infer.errors import InputError, MissingError, StanError, storable
from stan_infer.system import earlier_result
from stan_infer.system.atomic import new_file
from stan_infer.video.clip import Clip
from stan_infer.video.decode_worker import read_clips
from stan_infer.video.gaps import Gaps
from stan_infer.video.spec import ClipSpec

_ARRAYS = ("paths", "embeddings", "indices", "total_frames", "decoders", "info")
_log = logging.getLogger(__name__)
why_keep = earlier_result.arrays(_ARRAYS, "stan-infer embed")


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """How the work is divided; no option changes a feature.

    batch: videos per call of the network. workers: decoding processes, None: see read_clips.
    timeout_s: seconds that one video may take to decode.
    """

    batch: int = 1
    workers: int | None = None
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what no command takes: 0 videos per call would be all of them at once."""
        if not isinstance(self.batch, int) or not 1 <= self.batch <= 64:
            raise InputError(f"batch is {self.batch!r}; allowed are 1 to 64 videos per call")
        if not isinstance(self.timeout_s, (int, float)):
            raise InputError(f"timeout_s is {self.timeout_s!r}; give seconds")


@dataclasses.dataclass(frozen=True)
class Reading:
    """One video after decoding and embedding: clip and features, or the error."""

    path: Path
    clip: Clip | None
    features: np.ndarray | None  # [E], or [T, E] with a Mug head; [V, ...] if views were asked for
    error: str | None


def embed_videos(
    session: Session,
    paths: Sequence[Path],
    options: EmbedOptions = EmbedOptions(),
    *,
    spec: ClipSpec | None = None,
) -> Generator[Reading, None, None]:
    """Embed each video, in the given order; a video that fails yields a Reading with its error.

    spec: how clips are read, by default as the model's config says. If it has views, features are
    [V, ...], one row per view. One warning at the end tells of videos whose frames lie far apart.
    Raises MissingError if the decoder is not installed.
    """
    spec = spec or ClipSpec.of(session.config)
    views = spec.views is not None
    gaps = Gaps()
    readings = read_clips(paths, spec, workers=options.workers, timeout_s=options.timeout_s)
    waiting: list[tuple[Path, Clip | StanError]] = []
    running: _Batch | None = None
    with closing(readings):
        for path, result in readings:
            if isinstance(result, MissingError):
                raise result
            waiting.append((path, result))
            if isinstance(result, Clip):
                gaps.add(path, result.gap_s)
            if sum(isinstance(r, Clip) for _, r in waiting) == options.batch:
                started = _start(session, waiting, views)
                # A GPU works on the next batch while the features of this one are fetched.
                yield from _finish(running)
                running, waiting = started, []
        yield from _finish(running)
        yield from _finish(_start(session, waiting, views))
    if note := gaps.note(spec.frames):
        _log.warning("%s", note)


def save_embeddings(
    path: Path,
    readings: Sequence[Reading],
    session: Session,
    checkpoint: str,
    *,
    sources: Sequence[str | Path],
) -> None:
    """Write the readings that have features as .npz, readable with allow_pickle=False.

    checkpoint: what the session runs; its file name goes into `info`. sources: files that are read,
    which are not replaced; a file at `path` is replaced only if it is an earlier one of this kind.
    The file appears whole or not at all. Raises InputError.

    Arrays: paths [n] (text, see errors.storable), embeddings float32 [n, E] or [n, T, E], indices
    int64 [n, T] (the frames used), total_frames int64 [n], decoders [n] (text); info: JSON text
    with config, engine and source.
    """
    good = [(r, r.clip, r.features) for r in readings if r.clip is not None]
    source = {"checkpoint": storable(Path(checkpoint).name)}
    info = {"config": session.config.to_dict(), "engine": session.describe(), "source": source}
    # Packed in memory first: numpy's writer prints a traceback when the disk is full.
    packed = io.BytesIO()
    np.savez(
        packed,
        paths=np.array([storable(r.path) for r, _, _ in good]),
        embeddings=np.stack([x for _, _, x in good if x is not None]),
        indices=np.stack([c.indices for _, c, _ in good]),
        total_frames=np.array([c.total_frames for _, c, _ in good]),
        decoders=np.array([c.decoder for _, c, _ in good]),
        info=np.array(json.dumps(info, sort_keys=True)),
    )
    with new_file(path, why_keep, sources=sources) as temporary:
        temporary.write_bytes(packed.getbuffer())


def collect(
    readings: Iterator[Reading], on_reading: Callable[[Reading], None]
) -> tuple[list[Reading], list[Reading]]:
    """Split readings into good and bad ones; pixels are dropped, so that memory does not grow."""
    good: list[Reading] = []
    bad: list[Reading] = []
    for reading in readings:
        on_reading(reading)
        if reading.clip is None:
            bad.append(reading)
            continue
        bare = dataclasses.replace(reading.clip, pixels=np.empty(0, np.uint8))
        good.append(dataclasses.replace(reading, clip=bare))
    return good, bad


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Clips that were given to the session, which may still be computing their features."""

    results: Sequence[tuple[Path, Clip | StanError]]
    features: Sequence[Any]  # one per view: what embed_video returned for all clips
    views: bool


def _start(session: Session, waiting: list[tuple[Path, Clip | StanError]], views: bool) -> _Batch:
    clips = [r.pixels for _, r in waiting if isinstance(r, Clip)]
    if not clips:
        return _Batch(waiting, [], views)
    pixels = np.stack(clips)
    embed = partial(session.embed_video, as_tensor=session.has_tensors)
    if not views:
        return _Batch(waiting, [embed(pixels)], views)
    # One view after the other, so that no call has more clips than the batch size.
    parts = [embed(pixels[:, i]) for i in range(pixels.shape[1])]
    return _Batch(waiting, parts, views)


def _finish(batch: _Batch | None) -> Iterator[Reading]:
    if batch is None:
        return
    parts = [as_numpy(part) for part in batch.features]
    features = iter(np.stack(parts, axis=1) if batch.views and parts else parts[0] if parts else ())
    for path, result in batch.results:
        if not isinstance(result, Clip):
            yield Reading(path, None, None, str(result))
            continue
        vector = next(features)
        if np.isfinite(vector).all():
            yield Reading(path, result, vector, None)
        else:
            yield Reading(path, None, None, f"{path}: the model gives values that are not finite")
