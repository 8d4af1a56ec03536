"""Compiles kernels ahead of their use, in processes beside the one that times them (see tune).

A compiled kernel gets into Triton's cache on disk, where the process with the GPU finds it: it is
specialised for the same types, values and options, from tensors without memory. So that costs no
memory of a GPU, and no more than the slowest of as many kernels as there are processors. Imports
nothing that is slow: processes of a dry run, which compile nothing, start at once.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

AHEAD, HERE = "ahead", "here"  # where a lane's kernel was compiled
MOST_PROCESSES = 16


class Ahead:
    """Processes that compile jobs in the order in which they are given.

    They end with this process, however that ends.
    """

    def __init__(self, compile: Callable[..., None], processes: int | None = None) -> None:
        """compile: called with what `add` is given, in one of the processes.

        processes: default: one per processor, but one of those for this process.
        """
        here = len(os.sched_getaffinity(0))
        self._compile = compile
        self._pool = ProcessPoolExecutor(
            processes or min(MOST_PROCESSES, max(1, here - 1)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_end_with_parent,
        )
        self._jobs: dict[str, Future[str]] = {}

    def add(self, name: str, *args: Any) -> None:
        """Compile a job when a process is free."""
        try:
            self._jobs[name] = self._pool.submit(_run, self._compile, args)
        except BrokenProcessPool:
            pass  # wait_for says so of every job

    def wait_for(self, name: str) -> str:
        """Wait until a job is done; return AHEAD, or HERE for one that was not given, or whose
        process died: the lane then compiles it.

        Raises RuntimeError with the compiler's reason if it refused.
        """
        job = self._jobs.pop(name, None)
        if job is None:
            return HERE
        try:
            refused = job.result()
        except BrokenProcessPool:
            return HERE
        if refused:
            raise RuntimeError(refused)
        return AHEAD

    def drop(self) -> None:
        """Forget the jobs that have not begun."""
        for job in self._jobs.values():
            job.cancel()
        self._jobs.clear()


def _run(compile: Callable[..., None], args: tuple[Any, ...]) -> str:
    """Compile; return why not, as a compiler's own exceptions do not travel between processes."""
    try:
        compile(*args)
    except Exception as e:
        return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"[:300]
    return ""


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def compile_way(
    family: str, shape: dict[str, Any], choice: str, dtype: str, tile: list[Any]
) -> None:
    """Compile one tile of the tuner for a GPU family; nothing in a dry run, which interprets."""
    if family == "cpu":
        return
    import torch

    from benchmarks.gpu import cases, without_gpu
    from benchmarks.gpu.tune import case_of
    from stan_infer.kernels.tuned import Tile

    new = cases.empty(getattr(torch, dtype), "meta")
    case = case_of(cases.Shape(**shape), choice, new)
    with without_gpu.launches(
        family, lambda kernel, *args, **options: kernel.warmup(*args, **options)
    ):
        dataclasses.replace(case, tile=Tile(*tile)).run()
