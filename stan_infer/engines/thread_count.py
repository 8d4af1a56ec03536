"""How many CPU threads engines take where their caller does not say: `--threads` of a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_VARIABLE = "OMP_NUM_THREADS"  # torch reads it when it is imported
_chosen: ContextVar[int | None] = ContextVar("threads", default=None)


def chosen_threads() -> int | None:
    """The count inside `thread_count`, None where the runtime decides."""
    return _chosen.get()


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Let graphs that are opened inside take so many CPU threads, and torch, whose are global."""
    token, before = _chosen.set(count), os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(count)
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else 0
    if torch is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        _chosen.reset(token)
        if torch is not None:
            torch.set_num_threads(threads)
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
