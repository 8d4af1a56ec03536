"""Videos -> vectors: decode in worker processes, embed in batches, keep going past bad files."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.atomic import new_file
from stan_infer.decode_worker import read_clips
from stan_infer.engines.session import Session
from stan_infer.errors import MissingError, StanError
from stan_infer.video import Clip


@dataclasses.dataclass(frozen=True)
class Reading:
    """One video after decoding and embedding: features, or the reason why there are none."""

    path: Path
    clip: Clip | None
    features: np.ndarray | None  # [E], or [T, E] with a Mug head
    error: str | None


def embed_videos(
    session: Session,
    paths: Sequence[Path],
    *,
    batch: int = 1,
    workers: int = 1,
    decoder: str = "auto",
    timeout_s: float = 60.0,
) -> Iterator[Reading]:
    """Embed each video, in the given order; a bad one yields its error and does not stop the rest.

    batch: clips per call of the network. workers: decoding processes. timeout_s: how long one
    video may take to decode. Raises MissingError when the decoder itself is not installed.
    """
    config = session.config
    readings = read_clips(
        paths,
        frames=config.frames,
        short_side=config.short_side,
        crop=config.image_size,
        decoder=decoder,
        workers=workers,
        timeout_s=timeout_s,
    )
    waiting: list[tuple[Path, Clip | StanError]] = []
    with closing(readings):
        for path, result in readings:
            if isinstance(result, MissingError):
                raise result
            waiting.append((path, result))
            if sum(isinstance(r, Clip) for _, r in waiting) == batch:
                yield from _flush(session, waiting)
                waiting = []
        yield from _flush(session, waiting)


def save_embeddings(
    path: Path, readings: Sequence[Reading], session: Session, source: dict[str, Any]
) -> None:
    """Write the good readings as .npz, whole or not at all; readable with allow_pickle=False.

    Arrays: paths [n] (text), embeddings float32 [n, E] or [n, T, E], indices int64 [n, T] (the
    frames used), total_frames int64 [n], decoders [n]; info: JSON text with config, engine, source.
    """
    good = [(r, r.clip, r.features) for r in readings if r.clip is not None]
    info = {"config": session.config.to_dict(), "engine": session.describe(), "source": source}
    # Packed in memory: numpy's own writer prints a traceback when the disk is full.
    packed = io.BytesIO()
    np.savez(
        packed,
        paths=np.array([str(r.path) for r, _, _ in good]),
        embeddings=np.stack([x for _, _, x in good if x is not None]),
        indices=np.stack([c.indices for _, c, _ in good]),
        total_frames=np.array([c.total_frames for _, c, _ in good]),
        decoders=np.array([c.decoder for _, c, _ in good]),
        info=np.array(json.dumps(info, sort_keys=True)),
    )
    with new_file(path) as temporary:
        temporary.write_bytes(packed.getbuffer())


def collect(
    readings: Iterator[Reading], on_reading: Callable[[Reading], None]
) -> tuple[list[Reading], list[Reading]]:
    """Drain `readings` into the good (without their pixels, so memory stays flat) and the bad."""
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


def _flush(session: Session, waiting: list[tuple[Path, Clip | StanError]]) -> Iterator[Reading]:
    clips = [r.pixels for _, r in waiting if isinstance(r, Clip)]
    features = iter(np.asarray(session.embed_video(np.stack(clips)))) if clips else iter(())
    for path, result in waiting:
        if not isinstance(result, Clip):
            yield Reading(path, None, None, str(result))
            continue
        vector = next(features)
        if np.isfinite(vector).all():
            yield Reading(path, result, vector, None)
        else:
            yield Reading(path, None, None, f"{path}: the model gives values that are not finite")
