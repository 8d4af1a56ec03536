"""The process that decodes users' videos for `decode_worker`, which starts, asks and ends it."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.errors import InputError, MissingError
from stan_infer.system.child import receive, send
from stan_infer.video.clip import Clip, read_clip_info
from stan_infer.video.grid import FramesRead, plan_grid, read_frames
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Window, Windows, plan_windows, read_windows

MEMORY_LIMIT = 8 * 2**30  # bytes of address space


def main() -> None:
    """Serve clips on standard input and output until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a C library prints must not come between replies
    limit_memory()
    with suppress(Exception, SystemExit):  # a missing package is reported for the first clip
        import av  # noqa: F401
    try:
        send(replies, {"status": "ready"})
    except OSError:
        return  # the parent is gone
    # FFmpeg in decord prints every flaw of a file; the reply has the one that matters.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    while True:
        try:
            asked = receive(sys.stdin.buffer)
        except (EOFError, OSError):
            return
        start = _clock()
        header, pixels = _answer(asked)
        try:
            send(replies, {**header, "took_s": _clock() - start}, pixels)
        except OSError:
            return  # the parent is gone


def _clock() -> float:
    """Seconds that stand still while this process waits for a core, where the system tells it."""
    with suppress(OSError, ValueError, IndexError):  # Linux does
        return time.perf_counter() - int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    return time.perf_counter()


def _answer(asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    timeout_s = asked["timeout_s"]
    # If the parent dies while this process hangs, the kernel ends it by this alarm.
    alarm = hasattr(signal, "setitimer")
    if alarm:
        signal.setitimer(signal.ITIMER_REAL, min(2 * timeout_s + 5, 1e6))
    try:
        return _done(asked)
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


def _done(asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    path = Path(asked["path"])
    if "plan" in asked:
        plan = plan_windows(path, Windows(**asked["plan"]))
        return {"status": "done", "total_frames": plan.total_frames, "windows": plan.windows}, b""
    values = asked["spec"]
    views = values["views"] and tuple(values["views"])  # a list in JSON
    spec = ClipSpec(**{**values, "views": views})
    if "grid" in asked:
        return {"status": "done", "plan": plan_grid(path, Windows(**asked["grid"]), spec)}, b""
    if "frames" in asked:
        try:
            return _frames(read_frames(path, spec, asked["total_frames"], asked["frames"]))
        finally:
            # PyAV's containers and streams refer to each other: a decoder with its large frames
            # is there until Python looks for such circles, which it rarely does by itself here.
            gc.collect()
    found: Sequence[Clip | InputError]
    if "windows" in asked:
        windows = [Window(*w) for w in asked["windows"]]
        found = read_windows(path, spec, asked["total_frames"], windows)
    else:
        found = [read_clip_info(path, spec)]
    clips = [{"error": str(c)} if isinstance(c, InputError) else _facts(c) for c in found]
    good = [c.pixels for c in found if isinstance(c, Clip)]
    return {"status": "done", "clips": clips}, b"".join(np.ascontiguousarray(p).data for p in good)


def _frames(found: FramesRead) -> tuple[dict[str, Any], bytes]:
    count = len(found.pixels) + len(found.errors)
    clips = [{"error": found.errors[i]} if i in found.errors else {} for i in range(count)]
    facts = {k: v for k, v in found._asdict().items() if k not in ("pixels", "errors")}
    return {"status": "done", "clips": clips, "facts": facts}, found.pixels.tobytes()


def _facts(clip: Clip) -> dict[str, Any]:
    """A clip as JSON; its pixels follow."""
    return {
        "indices": clip.indices.tolist(),
        "total_frames": clip.total_frames,
        "decoder": clip.decoder,
        "source_size": list(clip.source_size),
        "gap_s": clip.gap_s,
        "seconds": clip.seconds,
        "length_s": clip.length_s,
        "hdr": clip.hdr,
    }


def limit_memory() -> None:
    """Let this process have at most MEMORY_LIMIT of address space, where the system can."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(hard, MEMORY_LIMIT)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()
