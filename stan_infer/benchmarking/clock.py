"""Time one call: on the wall for a CPU, by CUDA events for a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol


class Clock(Protocol):
    """Runs a call and says how long it took."""

    def time(self, run: Callable[[], Any]) -> tuple[Any, float, float | None]:
        """Return what `run` returned, its milliseconds, and those until it returned (None: all)."""
        ...


class WallClock:
    """For calls that return when their work is done."""

    def time(self, run: Callable[[], Any]) -> tuple[Any, float, float | None]:
        start = time.perf_counter()
        out = run()
        return out, (time.perf_counter() - start) * 1e3, None


class CudaClock:
    """For calls that leave work on torch's current CUDA stream: events around it."""

    def __init__(self, cuda: Any, device: str = "cuda") -> None:
        """cuda: torch.cuda, which this file does not import. device: whose stream is timed."""
        self._cuda, self._device = cuda, device

    def time(self, run: Callable[[], Any]) -> tuple[Any, float, float | None]:
        """See Clock.time; the events are in milliseconds."""
        with self._cuda.device(self._device):
            return self._time(run)

    def _time(self, run: Callable[[], Any]) -> tuple[Any, float, float | None]:
        first, last = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._cuda.synchronize()
        start = time.perf_counter()
        first.record()
        out = run()
        last.record()
        host = (time.perf_counter() - start) * 1e3
        last.synchronize()
        return out, float(first.elapsed_time(last)), host
