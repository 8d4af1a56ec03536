"""Embed many videos: decode in worker processes, embed in batches, go on after bad files."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from stan_infer.engines.inputs import as_numpy
from stan_infer.engines.session import Session
from stan_infer.errors import MissingError, StanError
from stan_infer.library.readings import AS_USUAL, EmbedOptions, Reading
from stan_infer.library.sliding import slide_batches
from stan_infer.video.clip import Clip
from stan_infer.video.decode_pool import read_all_windows, read_clips
from stan_infer.video.gaps import Gaps
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Windows

Read: TypeAlias = tuple[Path, Clip | StanError]  # a path, and what was read of it
_log = logging.getLogger(__name__)


def embed_videos(
    session: Session,
    paths: Iterable[Path],
    options: EmbedOptions = AS_USUAL,
    *,
    spec: ClipSpec | None = None,
    windows: Windows | None = None,
    note: bool = True,
) -> Generator[Reading, None, None]:
    """Embed each video, in the given order; a video that fails yields a Reading with its error.

    spec: how clips are read, by default as the model's config says. If it has views, features are
    [V, ...], one row per view. windows: yield a Reading for each of these parts of a video instead;
    those on a grid slide, and their clips have no pixels (library.sliding).
    note: one warning at the end tells of clips whose frames lie far apart. Raises MissingError if
    the decoder is not installed.
    """
    with closing(
        embed_batches(session, paths, options, spec=spec, windows=windows, note=note)
    ) as batches:
        for batch in batches:
            yield from batch


def embed_batches(
    session: Session,
    paths: Iterable[Path],
    options: EmbedOptions = AS_USUAL,
    *,
    spec: ClipSpec | None = None,
    windows: Windows | None = None,
    note: bool = True,
    apart: bool = False,
    told: Callable[[int], None] = lambda count: None,
) -> Generator[list[Reading], None, None]:
    """As embed_videos, yielding together what was embedded in one call of the network.

    The last bits of a vector may depend on what else was in the call: whoever goes on after one of
    these lists gets the same calls. apart: no call has parts of two videos. paths may be found
    while this runs; they are taken some ahead, in this thread. told: see read_clips; not called for
    windows.
    """
    spec = spec or ClipSpec.of(session.config)
    if windows is not None and windows.grid:
        yield from slide_batches(session, paths, options, spec, windows, note=note)
        return
    views = spec.views is not None
    gaps = Gaps()
    how: Any = {"workers": options.workers, "timeout_s": options.timeout_s}
    if windows is None:
        readings = read_clips(paths, spec, **how, told=told)
    else:
        readings = read_all_windows(paths, spec, windows, **how)
    running: _Batch | None = None
    with closing(readings):
        for call in in_calls(readings, options.batch, apart=apart):
            for path, result in call:
                if isinstance(result, Clip):
                    gaps.add(path, result.gap_s)
            started = _start(session, call, views)
            # A GPU works on the next batch while the features of this one are fetched.
            yield from _finish(running)
            running = started if session.runs_ahead else None
            if running is None:
                yield from _finish(started)
        yield from _finish(running)
    if note and (text := gaps.note(spec.frames)):
        _log.warning("%s", text)


def in_calls(readings: Iterable[Read], batch: int, *, apart: bool = False) -> Iterator[list[Read]]:
    """Divide what was read into calls of the network, of `batch` clips and the errors among them.

    apart: no call has parts of two videos. Raises MissingError where the decoder is not installed.
    """
    waiting: list[Read] = []
    for path, result in readings:
        if isinstance(result, MissingError):
            raise result
        if apart and waiting and waiting[-1][0] != path:
            yield waiting
            waiting = []
        waiting.append((path, result))
        if sum(isinstance(r, Clip) for _, r in waiting) == batch:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def embed_call(session: Session, call: Sequence[Read]) -> list[Reading]:
    """Embed what in_calls put into one call of the network."""
    return next(_finish(_start(session, call, False)))


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Clips that were given to the session, which may still be computing their features."""

    results: Sequence[Read]
    features: Sequence[Any]  # one per view: what embed_video returned for all clips
    views: bool


def _start(session: Session, waiting: Sequence[Read], views: bool) -> _Batch:
    clips = [r.pixels for _, r in waiting if isinstance(r, Clip)]
    if not clips:
        return _Batch(waiting, [], views)
    pixels = clips[0][None] if len(clips) == 1 else np.stack(clips)
    embed = partial(session.embed_video, as_tensor=session.has_tensors)
    if not views:
        return _Batch(waiting, [embed(pixels)], views)
    # One view after the other, so that no call has more clips than the batch size.
    parts = [embed(pixels[:, i]) for i in range(pixels.shape[1])]
    return _Batch(waiting, parts, views)


def _finish(batch: _Batch | None) -> Iterator[list[Reading]]:
    if batch is None or not batch.results:
        return
    parts = [as_numpy(part) for part in batch.features]
    features = iter(np.stack(parts, axis=1) if batch.views and parts else parts[0] if parts else ())
    found = []
    for path, result in batch.results:
        if not isinstance(result, Clip):
            found.append(Reading(path, None, None, str(result)))
            continue
        vector = next(features)
        if np.isfinite(vector).all():
            found.append(Reading(path, result, vector, None))
        else:
            error = f"{path}: the model gives values that are not finite"
            found.append(Reading(path, None, None, error))
    yield found
