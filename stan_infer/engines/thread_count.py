"""How many CPU threads engines take where their caller does not say: `--threads` of a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from stan_infer.errors import InputError

_MOST = 4096
_VARIABLE = "OMP_NUM_THREADS"  # torch reads it when it is imported
_chosen: ContextVar[int | None] = ContextVar("threads", default=None)


def check_threads(count: object) -> None:
    """Raise InputError for a count of CPU threads that is no whole number from 1, nor None."""
    if count is not None and (type(count) is not int or not 1 <= count <= _MOST):
        raise InputError(f"threads is {count!r}; give a whole number from 1 to {_MOST}")


def chosen_threads() -> int | None:
    """The count inside `thread_count`, None where the runtime decides."""
    return _chosen.get()


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Let graphs that are opened inside take so many CPU threads, and torch, whose are global."""
    check_threads(count)
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
