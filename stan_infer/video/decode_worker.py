"""Decode users' videos in a process of their own, under a watchdog.

decord can hang for ever while it holds the GIL (when a container gives a wrong number of frames),
any decoder can crash on a stranger's file, and all leak memory. So the parent keeps a child, asks
it for one clip at a time over pipes, or for a group of parts of a long video, and kills it when it
does not answer. `decode_child` is the child. Messages have the format of system.child; the pixels
of clips follow their message, and the parent knows their size from what it asked for.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.errors import InputError, MissingError, check_number, check_whole
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
from stan_infer.video.grid import FramesRead, GridPlan
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Plan, Window, Windows

START_S = 60.0  # for the imports of a new worker, on a busy machine
MAX_WORKERS = 8  # by default: each holds 100 MB, and an engine needs cores, too
_COMMAND = python("stan_infer.video.decode_child")

# One thread each in a child: it multiplies nothing, and the threads of NumPy's OpenBLAS would spin
# for 0.1 s of each start.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

_spare: deque[tuple[Child, bool]] = deque()  # children that serve no worker; whether they are ready
_keeping = False  # whether early_workers waits for them


class CrashError(InputError):
    """The decode process ended without an answer."""


@contextmanager
def early_workers(workers: int | None, videos: int) -> Iterator[None]:
    """Start the processes now that `decode_pool` will use inside the block, each for one worker.

    They import their packages while this process does other things, such as opening a model, and
    serve one pool after the other. Those that are left are ended with the block.
    """
    global _keeping
    try:
        _keeping = True
        for _ in range(min(default_workers() if workers is None else workers, videos)):
            _spare.append((_new_child(), False))
        yield
    finally:
        _keeping = False
        while _spare:
            _spare.popleft()[0].end()


def _new_child() -> Child:
    return Child(_COMMAND, env={**os.environ, **_ENVIRONMENT})


def _spare_child() -> tuple[Child, bool]:
    """A child that runs, and whether it has said that it is ready."""
    with suppress(IndexError):  # none is left; several threads may ask
        while True:
            child, ready = _spare.popleft()
            if child.runs:
                return child, ready
            child.end()
    return _new_child(), False


def default_workers() -> int:
    """How many processes decode unless a number is given: one per CPU, at most MAX_WORKERS."""
    return min(usable_cpus(), MAX_WORKERS)


class DecodeWorker(AbstractContextManager["DecodeWorker"]):
    """One child process that decodes; started at the first clip, restarted when needed.

    Use as a context manager, from one thread; `close` may come from any thread and ends a read
    that is under way.
    """

    def __init__(self, *, recycle: int = 2000) -> None:
        """recycle: clips after which the child is replaced (decoders leak, 1 kB a clip)."""
        self._recycle = recycle
        self._clips = 0
        self._asking = False
        self.took_s = 0.0  # for the last answer, without the time that it waited for a core
        self._child: Child | None = None
        self._closed = False
        self._lock = threading.Lock()

    def __exit__(self, *_: object) -> None:
        """Kill the child."""
        self.close()

    def close(self) -> None:
        """Kill the child at once, whatever it does; the worker cannot be used again."""
        self._close(False)

    def leave(self) -> None:
        """As `close`; inside early_workers a child that does nothing goes to the next worker."""
        self._close(_keeping)

    def _close(self, keeping: bool) -> None:
        with self._lock:
            closed, self._closed = self._closed, True
            if closed or self._child is None:
                return
            if keeping and not self._asking and self._child.runs:
                _spare.append((self._child, True))
            else:
                self._child.end()

    def read(
        self, path: str | os.PathLike[str], spec: ClipSpec, *, timeout_s: float = 60.0
    ) -> Clip:
        """Return what `clip.read_clip_info` returns, from the child.

        Raises its InputError or MissingError, and InputError when the child does not answer within
        timeout_s seconds (it is killed) or dies. The next call starts a new child.
        """
        header, pixels = self._ask(path, {"spec": _as_dict(spec)}, timeout_s, math.prod(spec.shape))
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
        asked = {"spec": _as_dict(spec), "total_frames": total_frames, "windows": windows}
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

    def plan_grid(
        self, path: Path, windows: Windows, spec: ClipSpec, *, timeout_s: float = 60.0
    ) -> GridPlan:
        """Return what `grid.plan_grid` returns, from the child; raises as `read`."""
        asked = {"spec": _as_dict(spec), "grid": asdict(windows)}
        total, frames, parts, *rest = self._ask(path, asked, timeout_s, 0)[0]["plan"]
        return GridPlan(total, frames, [Window(*w) for w in parts], *rest)

    def read_frames(
        self,
        path: Path,
        spec: ClipSpec,
        total_frames: int,
        frames: Sequence[int],
        *,
        timeout_s: float = 60.0,
    ) -> FramesRead:
        """Return what `grid.read_frames` returns, from the child; raises as `read`.

        timeout_s: for as many of them as a window has.
        """
        asked = {"spec": _as_dict(spec), "total_frames": total_frames, "frames": frames}
        one, windows = math.prod(spec.shape[1:]), math.ceil(len(frames) / spec.frames)
        header, pixels = self._ask(path, asked, timeout_s * windows, one)
        facts = header["facts"]
        return FramesRead(
            pixels=np.frombuffer(pixels, np.uint8).reshape(-1, *spec.shape[1:]),
            errors={i: clip["error"] for i, clip in enumerate(header["clips"]) if "error" in clip},
            **facts | {"size": tuple(facts["size"])},
        )

    def _ask(
        self, path: str | os.PathLike[str], what: dict[str, Any], timeout_s: float, size: int
    ) -> tuple[dict[str, Any], bytearray]:
        """Send one request; return the reply and the pixels behind it, `size` bytes per clip."""
        check_reading(None, timeout_s)
        child = self._running()
        header: dict[str, Any] | None = None
        pixels: bytearray | None = None
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
            raise CrashError(
                f"{os.fspath(path)}: the decoder crashed ({how_it_ended(code)}); the file is "
                "likely damaged: re-encode it"
            )
        with self._lock:
            self._asking = False
        self._clips, self.took_s = self._clips + 1, float(header["took_s"])
        if self._clips >= self._recycle:
            child.end()
        if header["status"] == "done":
            return header, pixels
        raise _error(header)

    def _running(self) -> Child:
        with self._lock:
            if self._closed:
                raise ValueError("this DecodeWorker is closed")
            self._asking = True
            if self._child is not None:
                if self._child.runs:
                    return self._child
                self._child.end()
            child, ready = _spare_child()
            self._child, self._clips = child, 0
        if ready:
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


@functools.lru_cache(maxsize=8)
def _as_dict(spec: ClipSpec) -> dict[str, Any]:
    return asdict(spec)


def _clip(header: dict[str, Any], pixels: bytearray, spec: ClipSpec) -> Clip:
    height, width = header["source_size"]
    # Of a bytearray, so that the pixels are writable, as those of read_clip_info are.
    array = np.frombuffer(pixels, np.uint8).reshape(spec.shape)
    return Clip(
        pixels=array,
        indices=np.array(header["indices"], np.int64),
        total_frames=int(header["total_frames"]),
        decoder=str(header["decoder"]),
        source_size=(int(height), int(width)),
        gap_s=None if header["gap_s"] is None else float(header["gap_s"]),
        seconds=header["seconds"] and tuple(header["seconds"]),
        length_s=header["length_s"],
        hdr=header["hdr"],
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


def check_reading(workers: int | None, timeout_s: float) -> None:
    """Raise InputError for a count of processes, or of seconds to wait, that cannot be."""
    if workers is not None:
        check_whole("workers", workers, 1, 64)
    check_number("timeout_s", timeout_s, 0.001, threading.TIMEOUT_MAX, " seconds")
