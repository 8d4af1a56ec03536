"""Embed videos into a library with the machines of a Ray cluster.

A Ray Data pipeline: actors on CPUs read videos, actors on GPUs or CPUs have the model
(library.ray_actors). This program, the only one that writes, takes what they found in the order of
the videos' names, each video once whatever the cluster computed twice, and adds the rows as a run
on one machine does.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.errors import InputError, StanError, check_number, check_whole
from stan_infer.library import address as address_
from stan_infer.library import passport as pass_
from stan_infer.library.address import Address
from stan_infer.library.asked import tell_unlike
from stan_infer.library.embed_library import Run
from stan_infer.library.embedded import EmbeddedLibrary, Files, LibraryOptions
from stan_infer.library.files import listed
from stan_infer.library.place import check_place, is_library, locked
from stan_infer.library.ray_actors import (
    EmbedVideos,
    Found,
    ReadVideos,
    Stack,
    Work,
    group_rows,
    look_at_stack,
)
from stan_infer.library.readings import EmbedOptions
from stan_infer.library.store import Store
from stan_infer.system.atomic import files_of
from stan_infer.system.packages import require
from stan_infer.system.result import Progress, Say, divided, no_progress, silent

_PURPOSE = "embedding with a cluster"
_ANSWER_S = 10.0  # for a connection to the cluster's first machine
_TASK = 16  # groups that an actor is given at once; a killed actor's are done again
_MAX_TASKS = 10_000  # each costs this program a millisecond before the first begins


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where the work is done.

    cluster: address of a Ray cluster, as ray.init takes it; None: that to which this program is
    connected, or else one of this machine alone, for this run. decoders: actors that read videos,
    of one CPU each; None: the CPUs that the models leave. models: actors that have the model open.
    model_cpus, model_gpus: of each; None: 1 CPU, and 1 GPU where `device` is cuda.
    """

    cluster: str | None = None
    decoders: int | None = None
    models: int = 1
    model_cpus: int = 1
    model_gpus: float | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        for name, least in (("models", 1), ("model_cpus", 1), ("decoders", 1)):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value, least, 100_000)
        if self.model_gpus is not None:
            check_number("model_gpus", self.model_gpus, 0, 64, " GPUs")


def embed_with_ray(
    source: str | Path,
    videos: Iterable[str | Path],
    out: str | Path,
    *,
    say: Say = silent,
    progress: Progress = no_progress,
    **options: Any,
) -> EmbeddedLibrary:
    """Do what embed_library does with the machines of a Ray cluster.

    The library is written here, on the machine of this program; its rows are those of
    embed_library, whichever machines do the work and however many of them die. Every machine has
    this package, and finds the model and the videos under the names that are given, on a shared
    file system or in an object store; nothing is sent to them but pixels between the actors. Each
    actor reads or embeds the canary clips first, and refuses where it differs from the first.

    Args:
        source: a checkpoint, an exported folder or hf:OWNER/NAME.
        videos: as of embed_library, also addresses (s3://bucket/videos, gs://, file://): of one
            video, or of all below it. Rows of these have the address as their name.
        out: the folder of the library, on a disk of this machine.
        say, progress: as of embed_library.
        options: cluster, decoders, models, model_cpus, model_gpus (see RayOptions); threads, by
            default model_cpus where the model runs on CPUs; those of embed_library but workers.

    Returns:
        EmbeddedLibrary: what was done, and the files without vectors with the reason.

    Raises:
        InputError: as of embed_library; a cluster with fewer CPUs or GPUs than the actors need, or
            where none answers.
        CheckError: as of embed_library; a machine with another stack.
        MissingError: Ray is not installed (extra `ray`), or a package or device on a machine.
        ray.exceptions.RayError: the cluster ended. What was committed stays: run it again.

    Example:
        >>> from stan_infer.library.ray import embed_with_ray
        >>> embed_with_ray("folder", ["s3://bucket/videos"], "library")  # doctest: +SKIP
    """
    where, rest = divided(RayOptions, options)
    wanted, rest = divided(LibraryOptions, rest)
    how, words = divided(EmbedOptions, rest)
    if how.workers is not None:
        raise InputError("workers is for one machine: give decoders, the actors that read videos")
    if not isinstance(source, (str, Path)):
        raise InputError("give the name of the model: each machine opens it by itself")
    source = os.path.abspath(source) if os.path.exists(source) else str(source)
    for package in ("ray", "ray.data"):
        require(package, _PURPOSE, "ray")
    where, words = _completed(where, words)
    folder = Path(out)
    check_place(folder, files_of(source))
    work = Work(source, words, wanted.frames, wanted.decoder, wanted.windows, how)
    files, at = _files([address_.given(v) for v in videos])
    with locked(folder), ThreadPoolExecutor(1) as threads:
        run = _RayRun(folder, wanted, how, say, threads)
        return run.on(where, work, files, at, progress)


def _completed(where: RayOptions, words: dict[str, Any]) -> tuple[RayOptions, dict[str, Any]]:
    """The options with what follows from others; words: for open_session."""
    if where.model_gpus is None:
        cuda = str(words.get("device") or "").startswith("cuda")
        where = dataclasses.replace(where, model_gpus=float(cuda))
    if not where.model_gpus and words.get("threads") is None:
        words = words | {"threads": where.model_cpus}
    return where, words


def _files(given: list[Path]) -> tuple[Files, dict[Path, address_.Seen]]:
    """The videos in order, once each, and those at addresses as they are seen now."""
    paths: list[Path] = []
    folders: list[Path] = []
    at: dict[Path, address_.Seen] = {}
    if not given:
        raise InputError("nothing to embed: give videos, folders of videos, lists, or addresses")
    for one in given:
        if isinstance(one, Address):
            found, is_folder = address_.list_address(one)
            at |= found
            paths += found
            folders += [one] if is_folder else []
        else:
            paths += listed([one])
            folders += [one] if one.is_dir() else []
    return Files(list(dict.fromkeys(paths)), folders), at


class _RayRun(Run):
    """A run whose readings come from a cluster."""

    def on(
        self,
        where: RayOptions,
        work: Work,
        files: Files,
        at: Mapping[Path, address_.Seen],
        progress: Progress,
    ) -> EmbeddedLibrary:
        """Embed what is new of `files`. at: addresses among them as they are seen now."""
        self._seen: dict[Path, address_.Seen | None] = dict(at)
        self._told: set[str] = set()
        with ExitStack() as stack:
            store, todo = None, files.paths
            if is_library(self.folder):
                store = stack.enter_context(self._store())
                todo = self.look(store, files)
                if not todo:
                    passport, name = pass_.read_passport(self.folder), work.source
                    tell_unlike(self.folder, passport, name, work.words, work.decoder, self.say)
                    return self.result(store, files.paths, None, {})
            cluster = stack.enter_context(_connected(where, work))
            first = cluster.stack()
            compared = self.compare_stack(store, first.facts, first.canaries)
            store = store or stack.enter_context(self._store())
            with progress("embedding", len(todo)) as step:
                for found in cluster.found(todo, first, store.contents()):
                    self.take(store, found, step)
                store.commit()
            return self.result(store, files.paths, compared, first.session)

    def take(self, store: Store, found: Found, step: Callable[..., None]) -> None:
        """Add the videos of one group, all of it or nothing."""
        for note in found.notes:
            if note not in self._told:
                self._told.add(note)
                self.say(note)
        for path, before, after in found.videos:
            self._seen[path] = after
            if self.note(store, path, before, step):
                for reading in (r for r in found.readings if r.path == path):
                    self.add(store, lambda vector: vector, reading, step)
                self.finish(store, step)
        self.commit_in_time(store, len(found.readings))

    def seen(self, path: Path) -> address_.Seen | None:
        """As an actor, or the listing of an object store, saw it."""
        return self._seen[path] if path in self._seen else super().seen(path)


class _Cluster:
    """The cluster and what it is to do."""

    def __init__(self, ray: Any, where: RayOptions, work: Work) -> None:
        self.ray, self.where, self.work = ray, where, work
        has = ray.cluster_resources()
        cpus, gpus = int(has.get("CPU", 0)), has.get("GPU", 0.0)
        of_models = where.models * where.model_cpus
        self.decoders = max(1, cpus - of_models) if where.decoders is None else where.decoders
        needs = (self.decoders + of_models, where.models * (where.model_gpus or 0.0))
        if needs[0] > cpus or needs[1] > gpus:
            raise InputError(
                f"the cluster has {cpus} CPUs and {gpus:g} GPUs; {self.decoders} decoders and "
                f"{where.models} models need {needs[0]} and {needs[1]:g}: give fewer (decoders, "
                "models, model_cpus, model_gpus), or wait until more machines have joined"
            )
        self._of_model = {"num_cpus": where.model_cpus, "num_gpus": where.model_gpus or 0}

    def stack(self) -> Stack:
        """The model as a machine of the cluster opens it."""
        task = self.ray.remote(**self._of_model, max_calls=1)(look_at_stack)
        found = self.ray.get(task.remote(self.work))
        if isinstance(found, StanError):
            raise found
        assert isinstance(found, Stack)
        return found

    def found(self, paths: list[Path], stack: Stack, known: list[bytes]) -> Iterator[Found]:
        """What is found in the videos, in order, each of them once."""
        # As many videos are read together as are embedded in one call.
        size = 1 if self.work.windows is not None else self.work.how.batch
        groups = [paths[i : i + size] for i in range(0, len(paths), size)]
        with _settings(self.ray):
            yield from in_order(self._rows(groups, stack, known), len(groups))

    def _rows(self, groups: list[list[Path]], stack: Stack, known: list[bytes]) -> Iterator[Any]:
        data = self.ray.data
        tasks = min(len(groups), max(len(groups) // _TASK, 4 * self.decoders), _MAX_TASKS)
        options = {"batch_format": "pyarrow", "batch_size": None, "zero_copy_batch": True}
        videos = data.from_items(group_rows(groups), override_num_blocks=tasks)
        hashes = np.array(known, "S32")
        clips = videos.map_batches(
            ReadVideos,
            fn_constructor_args=(self.work, stack, hashes),
            compute=data.ActorPoolStrategy(size=self.decoders),
            num_cpus=1,
            **options,
        )
        vectors = clips.map_batches(
            EmbedVideos,
            fn_constructor_args=(self.work, stack),
            compute=data.ActorPoolStrategy(size=self.where.models),
            **self._of_model,
            **options,
        )
        for table in vectors.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from table.to_pylist()


def in_order(rows: Iterable[Mapping[str, Any]], groups: int) -> Iterator[Found]:
    """The groups 0, 1, ... of rows that come in any order, some of them perhaps twice.

    Raises the StanError that a row brings, and RuntimeError where rows are missing at the end.
    """
    waiting: dict[int, dict[int, Found]] = {}
    calls: dict[int, int] = {}  # of groups whose last row has come
    next_group = 0
    for row in rows:
        found = pickle.loads(row["data"])
        if isinstance(found, StanError):
            raise found
        group = row["group"]
        if group < next_group:
            continue
        waiting.setdefault(group, {})[row["call"]] = found
        if row["last"]:
            calls[group] = row["call"] + 1
        while len(waiting.get(next_group, ())) == calls.get(next_group, math.inf):
            parts = waiting.pop(next_group)
            del calls[next_group]
            next_group += 1
            every = [parts[i] for i in range(len(parts))]
            notes = tuple(dict.fromkeys(n for p in every for n in p.notes))
            yield Found([r for p in every for r in p.readings], every[-1].videos, notes)
    if next_group != groups:
        raise RuntimeError(
            f"the cluster returned {next_group} of {groups} groups of videos; what was committed "
            "stays: run it again"
        )


@contextmanager
def _connected(where: RayOptions, work: Work) -> Iterator[_Cluster]:
    """Connect to a cluster unless this program is connected, and end what was begun here."""
    ray = require("ray", _PURPOSE, "ray")
    if ray.is_initialized():
        if where.cluster is not None:
            raise InputError("this program is connected to a cluster already: leave cluster out")
        yield _Cluster(ray, where, work)
        return
    options: dict[str, Any] = {"address": where.cluster}
    if where.cluster is None:  # on this machine alone
        options = {"address": "local", "include_dashboard": False}
    _check_answers(where.cluster)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None  # ray.init puts its own there
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise _no_answer(where.cluster, e) from e
    try:
        yield _Cluster(ray, where, work)
    finally:
        ray.shutdown()
        if main:
            signal.signal(signal.SIGTERM, handler)


def _check_answers(cluster: str | None) -> None:
    """Raise InputError where nothing listens at HOST:PORT; Ray would try for many minutes."""
    host, colon, port = (cluster or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
        except (OSError, OverflowError) as e:
            raise _no_answer(cluster, e) from e


def _no_answer(cluster: str | None, reason: Exception) -> InputError:
    return InputError(
        f"no Ray cluster answers at {cluster or 'this machine'}: {reason}; start one by `ray start "
        "--head`, or leave cluster out for this machine alone"
    )


@contextmanager
def _settings(ray: Any) -> Iterator[None]:
    """No progress bars and lines of Ray Data in this block."""
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        context.enable_progress_bars, level = before
        log.setLevel(level)
