"""Time calls, and turn the samples of one engine into percentiles, ratios and warnings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

# Thresholds of the warnings; an idle machine stays below them (BENCHMARKS.md, "Reading a row").
UNSTABLE = 1.25  # p95 over p50
SLOWED = 1.10  # median of the last third over that of the first
LAUNCH_BOUND = 0.9  # host time over device time; above it the GPU waits for launches
_TREND_SAMPLES = 9  # fewer samples are not tested for a trend
_MISSED = 0.05  # how often the interval of a ratio may miss the true one


class Clock(Protocol):
    """Measures how long a call takes."""

    def time(self, run: Callable[[], Any]) -> tuple[Any, float, float | None]:
        """Return what `run` returned, its milliseconds, and the host's milliseconds in the call.

        The last is None where the call returns when its work is done.
        """
        ...


class WallClock:
    """For calls that return when their work is done."""

    def time(self, run: Callable[[], Any]) -> tuple[Any, float, float | None]:
        """See Clock.time."""
        start = time.perf_counter()
        out = run()
        return out, (time.perf_counter() - start) * 1e3, None


class CudaClock:
    """For calls that leave work on torch's current CUDA stream; uses events on that stream."""

    def __init__(self, cuda: Any, device: str = "cuda") -> None:
        """cuda: torch.cuda, which this file does not import. device: whose stream is timed."""
        self._cuda, self._device = cuda, device

    def time(self, run: Callable[[], Any]) -> tuple[Any, float, float | None]:
        """See Clock.time."""
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


def summarise(
    samples_ms: Sequence[float], baseline_ms: Sequence[float], *, clips: int, flops: int | None
) -> dict[str, Any]:
    """Figures of one engine from all its samples, outliers included.

    samples_ms, baseline_ms: latencies of the same rounds, in milliseconds. clips: per call. flops:
    of one clip. Percentiles interpolate linearly. speedup: see paired_ratio, with the interval
    speedup_low to speedup_high; speedup_p20 and _p80 are the spread of single rounds.
    """
    ms, base = np.asarray(samples_ms), np.asarray(baseline_ms)
    p20, p50, p95, p99 = (float(p) for p in np.percentile(ms, (20, 50, 95, 99)))
    p20_ratio, p80_ratio = (float(p) for p in np.percentile(base / ms, (20, 80)))
    ratio = paired_ratio(baseline_ms, samples_ms)
    return {
        "latency_ms_p20": p20,
        "latency_ms_p50": p50,
        "latency_ms_p95": p95,
        "latency_ms_p99": p99,
        "latency_ms_min": float(ms.min()),
        "clips_per_s": clips / p50 * 1e3,
        "gflop_per_s": None if flops is None else clips * flops / p50 / 1e6,
        "speedup": ratio.middle,
        "speedup_low": ratio.low if ratio.is_known else None,
        "speedup_high": ratio.high if ratio.is_known else None,
        "speedup_p20": p20_ratio,
        "speedup_p80": p80_ratio,
        "rounds": len(ms),
        "samples_ms": [float(x) for x in ms],
    }


class Ratio(NamedTuple):
    """A ratio of speeds and its interval, which is 0 to infinity where the rounds are too few."""

    low: float
    middle: float
    high: float

    @property
    def is_known(self) -> bool:
        """Whether there were rounds enough for an interval."""
        return math.isfinite(self.high)


def paired_ratio(baseline_ms: Sequence[float], samples_ms: Sequence[float]) -> Ratio:
    """How many times as fast as the baseline: the median over rounds that ran both.

    Pairs of one round cancel drifts of the machine's speed. The interval holds the true median in
    at least 95 % of runs if rounds are independent, whatever their distribution: that of order
    statistics (David and Nagaraja, Order Statistics, 7.1), of which there is none below 6 rounds.
    As work beside a run comes and goes, it also spans the medians of both halves.
    """
    ratios = np.asarray(baseline_ms, float) / np.asarray(samples_ms, float)
    ordered, n = np.sort(ratios), len(ratios)
    middle = float(np.median(ratios))
    rank = _rank(n)
    if rank is None:
        return Ratio(0.0, middle, math.inf)
    halves = [float(np.median(half)) for half in np.array_split(ratios, 2)]
    low, high = float(ordered[rank]), float(ordered[n - 1 - rank])
    return Ratio(min(low, *halves), middle, max(high, *halves))


def _rank(n: int) -> int | None:
    """How many of n sorted values to leave out at each end; None: even all of them miss too often.

    With k left out, the interval misses the median if at most k of n fair coins show heads, or
    tails.
    """
    heads, rank = 0.0, None
    for k in range(n):
        heads += math.exp(
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
        )
        if 2 * heads > _MISSED:
            break
        rank = k
    return rank


def diagnose(samples_ms: Sequence[float], host_ms: Sequence[float] | None = None) -> list[str]:
    """Warnings about samples that may not show the engine's speed.

    host_ms: the host's time in each call, where a GPU works on after the call returns.
    """
    ms = np.asarray(samples_ms)
    found = []
    p50, p95 = np.percentile(ms, (50, 95))
    if p95 > UNSTABLE * p50:
        found.append(
            f"unstable: p95 is {p95 / p50:.2f} times the median; is something else running?"
        )
    third = len(ms) // 3
    if len(ms) >= _TREND_SAMPLES:
        slower = np.median(ms[-third:]) / np.median(ms[:third])
        if slower > SLOWED:
            found.append(
                f"throttled: the last third took {slower:.2f} times the first; the machine slowed"
            )
    if host_ms is not None:
        share = float(np.median(host_ms)) / p50
        if share > LAUNCH_BOUND:
            found.append(
                f"launch-bound: the host needs {100 * share:.0f} % of the time to launch the work; "
                "larger batches or CUDA graphs help, faster kernels do not"
            )
    return found
