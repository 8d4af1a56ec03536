"""What the actors of library.ray do: one kind reads videos, the other embeds them.

Nothing here imports Ray. Rows are tables of Arrow: `group`, a few videos that are read together;
`call`, which call of the network it is in the group, or which segment of windows on a grid; `last`,
whether it is the group's last; `data`, a pickle.
"""

from __future__ import annotations

import dataclasses
import pickle
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import stan_infer
from stan_infer.checkpoints.hub import located
from stan_infer.engines.opened import opened, path_of
from stan_infer.engines.stream import Stream
from stan_infer.errors import CheckError, MissingError, StanError
from stan_infer.library import passport as pass_
from stan_infer.library.address import Address, fetched
from stan_infer.library.embed import embed_call, in_calls
from stan_infer.library.files import hash_file, seen
from stan_infer.library.levels import Level
from stan_infer.library.model_files import model_source
from stan_infer.library.reading import reading_facts
from stan_infer.library.readings import EmbedOptions, Reading
from stan_infer.library.sliding import Segment, embed_segment, segments, stream_of
from stan_infer.library.store import File
from stan_infer.system.packages import require
from stan_infer.system.temporary import NoTemporaryFolderError
from stan_infer.video.decode_pool import read_by, read_grid_by
from stan_infer.video.decode_worker import DecodeWorker
from stan_infer.video.grid import FramesRead, GridPlan
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Windows


@dataclasses.dataclass(frozen=True)
class Work:
    """What every actor is told. words: for open_session."""

    source: str
    words: dict[str, Any]
    frames: int | None
    decoder: str
    windows: Windows | None
    how: EmbedOptions
    version: str = stan_infer.__version__


@dataclasses.dataclass(frozen=True)
class Stack:
    """The model as one actor opened it, with which all others are compared."""

    spec: ClipSpec
    facts: dict[str, Any]
    canaries: list[pass_.Canary]
    session: dict[str, Any]


class Seen(NamedTuple):
    """A video: how it was before it was read, and size and time of change afterwards."""

    path: Path
    before: File
    after: tuple[int, int] | None


class Found(NamedTuple):
    """One call of the network, and with the last of a group its videos."""

    readings: list[Any]  # of Read, or (path, Segment), before the network, of Reading behind it
    videos: list[Seen]
    notes: tuple[str, ...] = ()


def look_at_stack(work: Work) -> Stack | StanError:
    """Open the model as an actor does, and say what it is; an error is returned."""
    try:
        with _Model(work) as model:
            return model.stack
    except StanError as e:
        return _here(e)


class _Model:
    """The model, open, and what is known of it."""

    def __init__(self, work: Work) -> None:
        _check_version(work)
        source = located(work.source)
        self._opened = opened(source, dict(work.words), yielding=True)
        self.session = self._opened.__enter__()
        spec = ClipSpec.of(self.session.config, frames=work.frames, decoder=work.decoder)
        hashes = model_source(path_of(source), {})
        facts = pass_.facts_of(self.session, hashes, spec)
        canaries = pass_.seen_canaries(self.session, spec, work.how.timeout_s, work.windows)
        self.stack = Stack(spec, facts, canaries, self.session.describe())

    def __enter__(self) -> _Model:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._opened.__exit__(*raised)


class ReadVideos:
    """An actor that fetches, hashes and decodes groups of videos, in a process under a watchdog.

    known: sorted hashes of contents that are not needed, as bytes of length 32.
    """

    def __init__(self, work: Work, stack: Stack, known: NDArray[Any]) -> None:
        """Read the canary clips: CheckError for each group where their pixels are others."""
        self._work, self._spec, self._known = work, stack.spec, known
        self._notes: tuple[str, ...] = ()
        self._fault: StanError | None = None
        try:
            _check_version(work)
            self._compare(stack)
            self._worker = DecodeWorker()
        except StanError as e:
            self._fault = _here(e)

    def _compare(self, stack: Stack) -> None:
        facts = {f"reading.{k}": v for k, v in reading_facts(self._spec).items()}
        wanted = {k: v for k, v in stack.facts.items() if k.startswith("reading.")}
        pixels = {c["file"]: c["pixels"] for c in stack.canaries}
        clips = pass_.read_canaries(self._spec, self._work.how.timeout_s)
        other = tuple(p.name for p, c in clips if pixels.get(p.name) != pass_.pixels_hash(c))
        compared = pass_.Comparison(pass_.changed_facts(wanted, facts), other, 1.0)
        if other:
            raise CheckError(
                f"videos are read to other pixels than where the model is "
                f"({compared.differences()}): install the same packages on every machine"
            )
        self._notes = _notes(compared)

    def __call__(self, table: Any) -> Iterator[Any]:
        """Rows with `group` and `data`, the paths of its videos -> a row for each call."""
        for row in table.to_pylist():
            if self._fault is not None:
                yield _row(row["group"], 0, True, self._fault)
                return
            videos: list[Seen] = []
            readings = self._readings(pickle.loads(row["data"]), videos)
            before: list[Any] = []
            call = 0
            try:
                for now in self._calls(readings):
                    if before:
                        yield _row(row["group"], call, False, Found(before, []))
                        call += 1
                    before = now
            except StanError as e:
                yield _row(row["group"], call, True, _here(e))
                return
            yield _row(row["group"], call, True, Found(before, videos, self._notes))

    def _calls(self, readings: Iterable[Any]) -> Iterator[list[Any]]:
        """What is read, as the network takes it; of windows on a grid a segment at a time."""
        windows = self._work.windows
        if windows is None or not windows.grid:
            yield from in_calls(readings, self._work.how.batch, apart=windows is not None)
            return
        for path, found in readings:
            if isinstance(found, MissingError):
                raise found
            yield [(path, found)]

    def _readings(self, paths: Iterable[Path], videos: list[Seen]) -> Iterator[Any]:
        """What is read of the videos; `videos` gets what they are."""
        for path in paths:
            if not isinstance(path, Address):
                file = hash_file(path)
                yield from self._parts(path, file, path)
                videos.append(Seen(path, file, seen(path)))
                continue
            try:
                with fetched(path) as (copy, (size, mtime_ns)):
                    found = hash_file(copy)
                    file = found._replace(size=size, mtime_ns=mtime_ns)
                    yield from self._parts(path, file, copy)
            except NoTemporaryFolderError:
                raise
            except StanError as e:
                file = File(0, 0, None, str(e))
            videos.append(Seen(path, file, file[:2]))

    def _parts(self, path: Path, file: File, where: Path) -> Iterator[tuple[Path, Any]]:
        if file.sha256 is None or self._is_known(file.sha256):
            return
        windows, timeout_s = self._work.windows, self._work.how.timeout_s
        if windows is not None and windows.grid:
            read = read_grid_by(self._worker, where, self._spec, windows, timeout_s=timeout_s)
            found = (_named(result, where, path) for result in read)
            plan = next(found)
            if not isinstance(plan, GridPlan):
                yield path, plan
                return
            yield from ((path, segment) for segment in segments(plan, found))
            return
        for _, result in read_by(self._worker, where, self._spec, windows, timeout_s=timeout_s):
            yield path, _named(result, where, path)

    def _is_known(self, sha256: bytes) -> bool:
        place = int(np.searchsorted(self._known, np.bytes_(sha256)))
        return place < len(self._known) and self._known[place] == np.bytes_(sha256)


class EmbedVideos:
    """An actor that has the model open."""

    def __init__(self, work: Work, stack: Stack) -> None:
        """Open the model: CheckError for each group where it is another than `stack`."""
        self._notes: tuple[str, ...] = ()
        self._fault: StanError | None = None
        self._stream: Stream | None = None
        try:
            self._model = _Model(work)
            self._compare(stack)
            self._level = Level(self._model.session, "video")
            if work.windows is not None and work.windows.grid:
                session, spec = self._model.session, self._model.stack.spec
                self._stream = stream_of(session, spec, work.windows)
        except StanError as e:
            self._fault = _here(e)

    def _compare(self, stack: Stack) -> None:
        own, width = self._model.stack, len(stack.canaries[0]["vector"])
        wanted = pass_.new_passport(stack.facts, stack.canaries, 1, None)
        none = np.empty((0, width), np.float32)
        compared = pass_.compare(wanted, own.facts, own.canaries, none)
        if not compared.cosine >= pass_.MIXED:
            raise CheckError(
                f"the model gives other vectors than on the first machine ({compared}): install "
                "the same packages, and give the same files, on every machine"
            )
        self._notes = _notes(compared)

    def __call__(self, table: Any) -> Iterator[Any]:
        """Rows of ReadVideos -> the same with vectors [E] in the place of pixels."""
        for row in table.to_pylist():
            found: Found | StanError = pickle.loads(row["data"])
            if isinstance(found, Found):
                found = self._fault or self._embedded(found)
            yield _row(row["group"], row["call"], row["last"], found)

    def _embedded(self, found: Found) -> Found:
        readings = self._embed(found.readings) if found.readings else []
        return Found([self._small(r) for r in readings], found.videos, found.notes + self._notes)

    def _embed(self, call: list[Any]) -> list[Reading]:
        if self._stream is None:
            return embed_call(self._model.session, call)
        ((path, result),) = call
        if isinstance(result, Segment):
            return embed_segment(self._stream, path, result)
        return [Reading(path, None, None, str(result))]

    def _small(self, reading: Reading) -> Reading:
        if reading.clip is None or reading.features is None:
            return reading
        clip = dataclasses.replace(reading.clip, pixels=np.empty(0, np.uint8))
        vector = self._level.of_video(reading.features)
        return dataclasses.replace(reading, clip=clip, features=vector)


def _named(result: Any, where: Path, path: Path) -> Any:
    """What was read of a copy, with the video's own name in errors."""
    old, new = str(where), str(path)
    if old != new and isinstance(result, StanError):
        return type(result)(str(result).replace(old, new))
    if old != new and isinstance(result, FramesRead):
        errors = {place: error.replace(old, new) for place, error in result.errors.items()}
        return result._replace(errors=errors)
    return result


def group_rows(groups: Iterable[list[Path]]) -> list[dict[str, Any]]:
    """The rows that ReadVideos takes."""
    return [{"group": i, "data": pickle.dumps(paths)} for i, paths in enumerate(groups)]


def _row(group: int, call: int, last: bool, found: Found | StanError) -> Any:
    arrow = require("pyarrow", "the actors of Ray", "ray")
    columns = {
        "group": arrow.array([group], arrow.int64()),
        "call": arrow.array([call], arrow.int64()),
        "last": arrow.array([last], arrow.bool_()),
        "data": arrow.array([pickle.dumps(found, 5)], arrow.large_binary()),
    }
    return arrow.table(columns)


def _check_version(work: Work) -> None:
    if stan_infer.__version__ != work.version:
        raise CheckError(
            f"stan_infer {stan_infer.__version__} is installed, and {work.version} where the run "
            "was started: install the same on every machine"
        )


def _here(error: StanError) -> StanError:
    """The same with the name of this machine."""
    return type(error)(f"on {platform.node()}: {error}")


def _notes(compared: pass_.Comparison) -> tuple[str, ...]:
    if compared.same:
        return ()
    return (f"warning: {platform.node()} has another stack: {compared.differences()}",)
