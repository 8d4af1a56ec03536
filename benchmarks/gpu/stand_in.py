"""A stand-in for torch.cuda on the CPU, for a dry run of everything that runs on a GPU.

`python -m benchmarks.gpu.suite --dry-run` walks every part with it: graphs are captured and
replayed, streams and events are there, kernels run in Triton's interpreter, on tiny shapes. Times
mean nothing; rows bear "stand_in": true and never get into a table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode,
)
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

from benchmarks.gpu.timing import Device


class Event:
    """A point in time."""

    def __init__(self, enable_timing: bool = False) -> None:
        """As torch.cuda.Event."""
        self._at = 0.0

    def record(self) -> None:
        """Take the time."""
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing is still running."""

    def elapsed_time(self, last: Event) -> float:
        """Milliseconds between two events; never zero."""
        return max((last._at - self._at) * 1e3, 1e-6)


class Stream:
    """A stream, in which everything has been done already."""

    cuda_stream = 0

    def wait_stream(self, other: Stream) -> None:
        """Nothing to wait for."""


class Graph(TorchDispatchMode):
    """Records operations and launches, and repeats them with the same tensors."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        """Record nothing yet."""
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note it."""
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]

        def again() -> None:
            """Put the results where they were the first time."""
            found = [t for t in tree_leaves(func(*args, **(kwargs or {})))]
            for old, new in zip(made, found, strict=True):
                if old is not new:
                    old.copy_(new)

        # A view is still one, and `empty` is what a launch has written meanwhile.
        if not (getattr(func, "is_view", False) or "empty" in str(func)):
            self.calls.append(again)
        return out

    def replay(self) -> None:
        """Run everything again."""
        with torch.inference_mode():
            for call in self.calls:
                call()


def _record_launches() -> None:
    """Let graphs record launches of interpreted kernels, not what the interpreter does in them."""
    launch = GridExecutor.__call__

    def call(self: Any, *args: Any, **options: Any) -> None:
        def run() -> None:
            with _disable_current_modes():
                launch(self, *args, **options)

        run()
        graph = _get_current_dispatch_mode()  # not there within an operation that is recorded
        if isinstance(graph, Graph):
            graph.calls.append(run)

    GridExecutor.__call__ = call


class StandIn:
    """What of torch.cuda the suite, the tuner and the engine use."""

    Event, Stream, CUDAGraph = Event, Stream, Graph

    def __init__(self) -> None:
        """One stream, on which everything runs."""
        self._stream = Stream()

    def current_stream(self) -> Stream:
        """The one stream."""
        return self._stream

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Stay on the one stream."""
        yield

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        """Stay on the CPU."""
        yield

    @contextmanager
    def graph(self, graph: Graph, **options: Any) -> Iterator[None]:
        """Record into the graph."""
        with graph:
            yield

    def graph_pool_handle(self) -> None:
        """Memory is not pooled."""

    def synchronize(self) -> None:
        """Nothing is still running."""

    def memory_reserved(self, device: Any) -> int:
        """No memory of a GPU."""
        return 0

    def empty_cache(self) -> None:
        """Nothing is kept."""

    def is_available(self) -> bool:
        """No GPU: nothing is pinned."""
        return False


def device() -> Device:
    """The CPU as a device of the suite; the engine takes it for its GPU from here on."""
    from stan_infer.engines import triton_session

    triton_session.unavailable = lambda device: None
    triton_session.torch_device = torch.device
    _record_launches()
    return Device("cpu", StandIn())
