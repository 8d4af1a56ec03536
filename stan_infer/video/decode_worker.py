"""Decode users' videos in a process of their own, under a watchdog.

decord can hang for ever while it holds the GIL (when a container gives a wrong number of frames),
any decoder can crash on a stranger's file, and all leak memory. So the parent keeps a child, asks
it for one clip at a time over pipes, or for a group of parts of a long video, and kills it when it
does not answer. `decode_child` is the child. Messages have the format of system.child; the pixels
of clips follow their message, and the parent knows their size from what it asked for.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import asdict
from operator import methodcaller
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np

from stan_infer.errors import InputError, MissingError, StanError
from stan_infer.system.child import (
    Child,
    how_it_ended,
    python,
    receive,
    receive_bytes,
    send,
)
from stan_infer.system.machine import usable_cpus
from stan_infer.system.packages import install_command
from stan_infer.video.clip import Clip
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Plan, Window, Windows

START_S = 60.0  # for the imports of a new worker, on a busy machine
MAX_WORKERS = 8  # by default: each holds 100 MB, and an engine needs cores, too
PREFETCH = 2  # clips per worker that are being decoded or wait to be taken
_COMMAND = python("stan_infer.video.decode_child")

Result: TypeAlias = Clip | StanError

_spare: deque[Child] = deque()  # children that were started early and serve no worker yet


class _CrashError(InputError):
    """The decode process ended without an answer."""


@contextmanager
def early_workers(workers: int | None, videos: int) -> Iterator[None]:
    """Start the processes now that `read_clips` will use inside the block, each for one worker.

    They import their packages while this process does other things, such as opening a model.
    Those that are not used are ended with the block.
    """
    try:
        for _ in range(min(default_workers() if workers is None else workers, videos)):
            _spare.append(Child(_COMMAND))
        yield
    finally:
        while _spare:
            _spare.popleft().end()


def _new_child() -> Child:
    with suppress(IndexError):  # none is left; several threads may ask
        while True:
            child = _spare.popleft()
            if child.runs:
                return child
            child.end()
    return Child(_COMMAND)


def default_workers() -> int:
    """How many processes decode unless a number is given: one per CPU, at most MAX_WORKERS."""
    return min(usable_cpus(), MAX_WORKERS)


class DecodeWorker(AbstractContextManager["DecodeWorker"]):
    """One child process that decodes; started at the first clip, restarted when needed.

    Use as a context manager, from one thread; `close` may come from any thread and ends a read
    that is under way.
    """

    def __init__(self, *, recycle: int = 500) -> None:
        """recycle: clips after which the child is replaced (decoders leak)."""
        self._recycle = recycle
        self._clips = 0
        self._child: Child | None = None
        self._closed = False
        self._lock = threading.Lock()

    def __exit__(self, *_: object) -> None:
        """Kill the child."""
        self.close()

    def close(self) -> None:
        """Kill the child at once, whatever it does; the worker cannot be used again."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.end()

    def read(
        self, path: str | os.PathLike[str], spec: ClipSpec, *, timeout_s: float = 60.0
    ) -> Clip:
        """Return what `clip.read_clip_info` returns, from the child.

        Raises its InputError or MissingError, and InputError when the child does not answer within
        timeout_s seconds (it is killed) or dies. The next call starts a new child.
        """
        header, pixels = self._ask(path, {"spec": asdict(spec)}, timeout_s, math.prod(spec.shape))
        return _clip(header["clips"][0], pixels, spec)

    def plan(self, path: Path, windows: Windows, *, timeout_s: float = 60.0) -> Plan:
        """Return what `windows.plan_windows` returns, from the child; raises as `read`."""
        header, _ = self._ask(path, {"plan": asdict(windows)}, timeout_s, 0)
        return Plan(header["total_frames"], [Window(*w) for w in header["windows"]])

    def read_windows(
        self,
        path: Path,
        spec: ClipSpec,
        total_frames: int,
        windows: Sequence[Window],
        *,
        timeout_s: float = 60.0,
    ) -> list[Clip | InputError]:
        """Return what `windows.read_windows` returns, from the child; raises as `read`.

        timeout_s: for each of them.
        """
        asked = {"spec": asdict(spec), "total_frames": total_frames, "windows": windows}
        size = math.prod(spec.shape)
        header, pixels = self._ask(path, asked, timeout_s * len(windows), size)
        found: list[Clip | InputError] = []
        at = 0
        for one in header["clips"]:
            if "error" in one:
                found.append(InputError(one["error"]))
            else:
                found.append(_clip(one, pixels[at : at + size], spec))
                at += size
        return found

    def _ask(
        self, path: str | os.PathLike[str], what: dict[str, Any], timeout_s: float, size: int
    ) -> tuple[dict[str, Any], bytes]:
        """Send one request; return the reply and the pixels behind it, `size` bytes per clip."""
        _check_timeout(timeout_s)
        child = self._running()
        header: dict[str, Any] | None = None
        pixels: bytes | None = None
        asked = {"path": os.fspath(path), "timeout_s": timeout_s, **what}
        try:
            # A child that dies shows as a broken pipe or as the end of its output.
            with child.deadline(timeout_s) as expired, suppress(OSError, EOFError, ValueError):
                send(child.input, asked)
                header = receive(child.output)
                good = sum("error" not in clip for clip in header.get("clips", ()))
                pixels = receive_bytes(child.output, size * good)
        except BaseException:
            child.end()  # interrupted: the next reply read from it would be that of this clip
            raise
        late = expired.is_set()
        if late or header is None or pixels is None:
            code = child.end()
            if late:
                raise InputError(
                    f"{os.fspath(path)}: reading it took longer than --timeout {timeout_s:g} s and "
                    "was stopped; for a long video or on a busy machine allow more (--timeout, "
                    "in Python timeout_s); if that does not help, re-encode the file"
                )
            raise _CrashError(
                f"{os.fspath(path)}: the decoder crashed ({how_it_ended(code)}); the file is "
                "likely damaged: re-encode it"
            )
        self._clips += 1
        if self._clips >= self._recycle:
            child.end()
        if header["status"] == "done":
            return header, pixels
        raise _error(header)

    def _running(self) -> Child:
        with self._lock:
            if self._closed:
                raise ValueError("this DecodeWorker is closed")
            if self._child is not None:
                if self._child.runs:
                    return self._child
                self._child.end()
            child = self._child = _new_child()
            self._clips = 0
        with child.deadline(START_S) as expired, suppress(OSError, EOFError, ValueError):
            if receive(child.output)["status"] == "ready" and not expired.is_set():
                return child
        child.end()
        if self._closed:
            raise ValueError("this DecodeWorker is closed")
        raise MissingError(
            "the decode process did not start; to see why, run: "
            f"{' '.join(_COMMAND)} < {os.devnull}; to repair it: "
            f"{install_command('runtime', options='--force-reinstall')}"
        )


def read_clips(
    paths: Iterable[Path], spec: ClipSpec, *, workers: int | None = None, timeout_s: float = 60.0
) -> Generator[tuple[Path, Result], None, None]:
    """Yield (path, clip or error) for every path, in order, decoded by `workers` processes.

    workers: None is one per CPU that this process may use, at most MAX_WORKERS. At most two clips
    per worker are decoded ahead. An error of one file is yielded, not raised; wrong options raise
    InputError at once. Closing the iterator, or Ctrl-C, kills all children.
    """
    workers = _checked(workers, timeout_s)
    if isinstance(paths, Sized):
        workers = min(workers, max(1, len(paths)))
    return _in_order(paths, spec, timeout_s, workers)


def read_all_windows(
    paths: Iterable[Path],
    spec: ClipSpec,
    windows: Windows,
    *,
    workers: int | None = None,
    timeout_s: float = 60.0,
) -> Generator[tuple[Path, Result], None, None]:
    """As `read_clips`, for the parts of every video: (path, clip or error) part after part.

    Several processes share one long video. timeout_s: for the packets of a video, and then for
    each of its parts; a process that hangs is noticed after a group of them (windows.Plan.groups).
    """
    workers = _checked(workers, timeout_s)
    return _windows_in_order(paths, spec, windows, timeout_s, workers)


def _in_order(
    paths: Iterable[Path], spec: ClipSpec, timeout_s: float, workers: int
) -> Generator[tuple[Path, Result], None, None]:
    with closing(_Pool(workers)) as pool:

        def tasks() -> Iterator[tuple[Path, Future[Any]]]:
            for path in paths:
                yield path, pool.submit(methodcaller("read", path, spec, timeout_s=timeout_s))

        for path, future in _ahead(tasks(), PREFETCH * workers):
            yield path, future.result()


def _windows_in_order(
    paths: Iterable[Path], spec: ClipSpec, windows: Windows, timeout_s: float, workers: int
) -> Generator[tuple[Path, Result], None, None]:
    with closing(_Pool(workers)) as pool:

        def plans() -> Iterator[tuple[Path, Future[Any]]]:
            for path in paths:
                yield path, pool.submit(methodcaller("plan", path, windows, timeout_s=timeout_s))

        def tasks() -> Iterator[tuple[Path, Future[Any]]]:
            for path, planned in _ahead(plans(), PREFETCH):
                plan = planned.result()
                if isinstance(plan, StanError):
                    yield path, planned
                    continue
                for group in plan.groups(spec):
                    asked = (path, spec, plan.total_frames, group)
                    work = methodcaller("read_windows", *asked, timeout_s=timeout_s)
                    yield path, pool.submit(work)

        for path, future in _ahead(tasks(), PREFETCH * workers):
            found = future.result()
            for result in found if isinstance(found, list) else [found]:
                yield path, result


def _ahead(
    tasks: Iterator[tuple[Path, Future[Any]]], count: int
) -> Iterator[tuple[Path, Future[Any]]]:
    """The tasks in order, of which `count` are begun before the first has to be done."""
    waiting: deque[tuple[Path, Future[Any]]] = deque()
    while True:
        while len(waiting) < count and (task := next(tasks, None)) is not None:
            waiting.append(task)
        if not waiting:
            return
        yield waiting.popleft()


class _Pool:
    """Workers, each served by a thread, that take what is submitted in order."""

    def __init__(self, workers: int) -> None:
        self._tasks: SimpleQueue[tuple[Callable[[DecodeWorker], Any], Future[Any]] | None]
        self._tasks = SimpleQueue()
        self._workers = [DecodeWorker() for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), daemon=True)
            for worker in self._workers
        ]
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.close()
            raise

    def submit(self, work: Callable[[DecodeWorker], Any]) -> Future[Any]:
        """Give work to the next free worker; its result is what it returns, or its StanError."""
        future: Future[Any] = Future()
        self._tasks.put((work, future))
        return future

    def close(self) -> None:
        """Kill all children and wait for the threads."""
        for worker in self._workers:
            worker.close()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _serve(self, worker: DecodeWorker) -> None:
        while (task := self._tasks.get()) is not None:
            work, future = task
            try:
                future.set_result(_twice(work, worker))
            except StanError as e:
                future.set_result(e)
            except Exception as e:
                future.set_exception(e)


def _twice(work: Callable[[DecodeWorker], Any], worker: DecodeWorker) -> Any:
    """Do it again if the process died: it may have been killed for others' use of memory."""
    with suppress(_CrashError):
        return work(worker)
    return work(worker)


def _clip(header: dict[str, Any], pixels: bytes, spec: ClipSpec) -> Clip:
    height, width = header["source_size"]
    # A bytearray, so that the pixels are writable, as those of read_clip_info are.
    array = np.frombuffer(bytearray(pixels), np.uint8).reshape(spec.shape)
    return Clip(
        pixels=array,
        indices=np.array(header["indices"], np.int64),
        total_frames=int(header["total_frames"]),
        decoder=str(header["decoder"]),
        source_size=(int(height), int(width)),
        gap_s=None if header["gap_s"] is None else float(header["gap_s"]),
        seconds=header["seconds"] and tuple(header["seconds"]),
    )


def _error(header: dict[str, Any]) -> Exception:
    message = str(header.get("message"))
    kinds = {"input": InputError, "missing": MissingError}
    if header["status"] in kinds:
        return kinds[header["status"]](message)
    last = message.strip().splitlines()[-1]
    error = RuntimeError(f"the decode process failed: {last}")
    error.add_note(message)  # the child's traceback, shown where ours is
    return error


def _checked(workers: int | None, timeout_s: float) -> int:
    """The number of processes; InputError for wrong options."""
    _check_timeout(timeout_s)
    workers = default_workers() if workers is None else workers
    if workers < 1:
        raise InputError(f"workers is {workers}; at least 1 is needed")
    return workers


def _check_timeout(timeout_s: float) -> None:
    if not 0 < timeout_s <= threading.TIMEOUT_MAX:
        raise InputError(f"timeout_s is {timeout_s}; it must be a number of seconds above 0")
