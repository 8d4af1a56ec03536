"""Decode users' videos in a process of their own, under a watchdog.

decord can hang for ever while it holds the GIL (when a container gives a wrong number of frames),
any decoder can crash on a stranger's file, and all leak memory. So the parent keeps a child, asks
it for one clip at a time over pipes, and kills it when it does not answer.
Messages have the format of system.child; a clip's pixels follow its message, and the parent knows
their size from what it asked for.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
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
from stan_infer.video.clip import Clip, read_clip_info
from stan_infer.video.spec import ClipSpec

MEMORY_LIMIT = 8 * 2**30  # bytes of address space of one worker
START_S = 60.0  # for the imports of a new worker, on a busy machine
MAX_WORKERS = 8  # by default: each holds 100 MB, and an engine needs cores, too
_PREFETCH = 2  # clips per worker that are being decoded or wait to be taken
_COMMAND = python("stan_infer.video.decode_worker")

_Result: TypeAlias = Clip | StanError
_Task: TypeAlias = tuple[Path, Future[_Result]]


# Children that serve no worker, and how many clips each has read; None: it may still be starting.
_spare: deque[tuple[Child, int | None]] = deque()
_blocks = 0  # of early_workers that are open


@contextmanager
def early_workers(workers: int | None, videos: int) -> Iterator[None]:
    """Start the processes now that `read_clips` will use inside the block, each for one worker.

    They import their packages while this process does other things, such as opening a model. Those
    that are idle when one `read_clips` ends serve the next. All are ended with the block.
    """
    global _blocks
    _blocks += 1
    try:
        for _ in range(min(default_workers() if workers is None else workers, videos)):
            _spare.append((Child(_COMMAND), None))
        yield
    finally:
        _blocks -= 1
        while _spare and not _blocks:
            _spare.popleft()[0].end()


def _new_child() -> tuple[Child, int | None]:
    with suppress(IndexError):  # none is left; several threads may ask
        while True:
            child, clips = _spare.popleft()
            if child.runs:
                return child, clips
            child.end()
    return Child(_COMMAND), None


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
        self.reading = threading.Lock()  # held by whoever calls read, where leave may be called

    def __exit__(self, *_: object) -> None:
        """Kill the child."""
        self.close()

    def close(self) -> None:
        """Kill the child at once, whatever it does; the worker cannot be used again."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.end()

    def leave(self) -> None:
        """As close, but inside a block of early_workers an idle child is left to other workers."""
        if not _blocks or not self.reading.acquire(blocking=False):
            self.close()
            return
        with self._lock:
            child, self._child, self._closed = self._child, None, True
        self.reading.release()
        if child is not None:
            _spare.append((child, self._clips))

    def read(
        self,
        path: str | os.PathLike[str],
        spec: ClipSpec,
        *,
        timeout_s: float = 60.0,
    ) -> Clip:
        """Return what `clip.read_clip_info` returns, from the child.

        Raises its InputError or MissingError, and InputError when the child does not answer within
        timeout_s seconds (it is killed) or dies. The next call starts a new child.
        """
        _check_timeout(timeout_s)
        child = self._running()
        header: dict[str, Any] | None = None
        pixels = b""
        asked = {"path": os.fspath(path), "spec": asdict(spec), "timeout_s": timeout_s}
        try:
            # A child that dies shows as a broken pipe or as the end of its output.
            with child.deadline(timeout_s) as expired, suppress(OSError, EOFError, ValueError):
                send(child.input, asked)
                header = receive(child.output)
                if header["status"] == "clip":
                    pixels = receive_bytes(child.output, math.prod(spec.shape))
        except BaseException:
            child.end()  # interrupted: the next reply read from it would be that of this clip
            raise
        late = expired.is_set()
        if late or header is None or (header["status"] == "clip" and not pixels):
            code = child.end()
            if late:
                raise InputError(
                    f"{os.fspath(path)}: reading it took longer than --timeout {timeout_s:g} s and "
                    "was stopped; for a long video or on a busy machine allow more (--timeout, "
                    "in Python timeout_s); if that does not help, re-encode the file"
                )
            raise InputError(
                f"{os.fspath(path)}: the decoder crashed ({how_it_ended(code)}); the file is "
                "likely damaged: re-encode it"
            )
        self._clips += 1
        if self._clips >= self._recycle:
            child.end()
        if header["status"] == "clip":
            return _clip(header, pixels, spec)
        raise _error(header)

    def _running(self) -> Child:
        with self._lock:
            if self._closed:
                raise ValueError("this DecodeWorker is closed")
            if self._child is not None:
                if self._child.runs:
                    return self._child
                self._child.end()
            child, clips = _new_child()
            self._child, self._clips = child, clips or 0
        if clips is not None:
            return child
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
    paths: Sequence[Path], spec: ClipSpec, *, workers: int | None = None, timeout_s: float = 60.0
) -> Generator[tuple[Path, _Result], None, None]:
    """Yield (path, clip or error) for every path, in order, decoded by `workers` processes.

    workers: None is one per CPU that this process may use, at most MAX_WORKERS. At most two clips
    per worker are decoded ahead. An error of one file is yielded, not raised; wrong options raise
    InputError at once. Closing the iterator, or Ctrl-C, kills all children.
    """
    _check_timeout(timeout_s)
    if workers is None:
        workers = default_workers()
    if workers < 1:
        raise InputError(f"workers is {workers}; at least 1 is needed")
    return _in_order(paths, spec, timeout_s, min(workers, max(1, len(paths))))


def _in_order(
    paths: Sequence[Path], spec: ClipSpec, timeout_s: float, workers: int
) -> Generator[tuple[Path, _Result], None, None]:
    tasks: SimpleQueue[_Task | None] = SimpleQueue()
    pool = [DecodeWorker() for _ in range(workers)]
    threads = [
        threading.Thread(target=_serve, args=(worker, tasks, spec, timeout_s), daemon=True)
        for worker in pool
    ]
    waiting: deque[_Task] = deque()
    try:
        for thread in threads:
            thread.start()
        todo = iter(paths)
        while True:
            while len(waiting) < _PREFETCH * workers and (path := next(todo, None)) is not None:
                waiting.append((path, Future()))
                tasks.put(waiting[-1])
            if not waiting:
                return
            path, future = waiting.popleft()
            yield path, future.result()
    finally:
        for worker in pool:
            worker.leave()
        for _ in threads:
            tasks.put(None)
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _serve(
    worker: DecodeWorker, tasks: SimpleQueue[_Task | None], spec: ClipSpec, timeout_s: float
) -> None:
    while (task := tasks.get()) is not None:
        path, future = task
        try:
            with worker.reading:
                clip = worker.read(path, spec, timeout_s=timeout_s)
            future.set_result(clip)
        except StanError as e:
            future.set_result(e)
        except Exception as e:
            future.set_exception(e)


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


def _check_timeout(timeout_s: float) -> None:
    if not 0 < timeout_s <= threading.TIMEOUT_MAX:
        raise InputError(f"timeout_s is {timeout_s}; it must be a number of seconds above 0")


def main() -> None:
    """Serve clips on standard input and output until the input ends (the child's side)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a C library prints must not come between replies
    _limit_memory()
    with suppress(Exception, SystemExit):  # a missing package is reported for the first clip
        import av  # noqa: F401
    send(replies, {"status": "ready"})
    # FFmpeg in decord prints every flaw of a file; the reply has the one that matters.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    while True:
        try:
            asked = receive(sys.stdin.buffer)
        except (EOFError, OSError):
            return
        header, pixels = _answer(asked)
        try:
            send(replies, header, pixels)
        except OSError:
            return  # the parent is gone


def _answer(asked: dict[str, Any]) -> tuple[dict[str, Any], bytes | memoryview]:
    timeout_s, values = asked["timeout_s"], asked["spec"]
    views = values["views"] and tuple(values["views"])  # a list in JSON
    spec = ClipSpec(**{**values, "views": views})
    # If the parent dies while this process hangs, the kernel ends it by this alarm.
    alarm = hasattr(signal, "setitimer")
    if alarm:
        signal.setitimer(signal.ITIMER_REAL, min(2 * timeout_s + 5, 1e6))
    try:
        clip = read_clip_info(asked["path"], spec)
    except InputError as e:
        return {"status": "input", "message": str(e)}, b""
    except MissingError as e:
        return {"status": "missing", "message": str(e)}, b""
    except Exception:
        import traceback

        return {"status": "bug", "message": traceback.format_exc()[-8000:]}, b""
    finally:
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
    header = {
        "status": "clip",
        "indices": clip.indices.tolist(),
        "total_frames": clip.total_frames,
        "decoder": clip.decoder,
        "source_size": list(clip.source_size),
        "gap_s": clip.gap_s,
    }
    return header, np.ascontiguousarray(clip.pixels).data.cast("B")


def _limit_memory() -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(hard, MEMORY_LIMIT)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()
