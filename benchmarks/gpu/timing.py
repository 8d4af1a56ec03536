"""Time calls on a GPU in turn, and the peak rates of GEMM and copies.

Short calls cannot be timed by events one by one, as the host takes some 12 us to launch a Triton
kernel: a CUDA graph of CALLS of them ("bundle") is replayed instead.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

CALLS = 20
FLUSH_BYTES = 256 * 2**20  # more than any L2 cache, so that kernels read from memory after it
WARM_SECONDS = 0.3
MAX_SECONDS = 8.0  # for all rounds of one comparison
MIN_ROUNDS = 5


class Device:
    """Where and how to time: events and graphs of torch.cuda, or of its stand-in in a dry run."""

    def __init__(self, name: str, cuda: Any = torch.cuda) -> None:
        """name: cuda or cuda:1; cpu with a stand-in."""
        self.name, self.cuda, self.is_dry = name, cuda, cuda is not torch.cuda
        self._flush: torch.Tensor | None = None
        if ":" in name:
            cuda.set_device(name)  # kernels and events use the current device
        self._pool = cuda.graph_pool_handle()

    @property
    def calls(self) -> int:
        """Calls in a bundle."""
        return 2 if self.is_dry else CALLS

    def bundle(self, *runs: Callable[[], Any]) -> Callable[[], Any]:
        """Return one call that runs `runs` in turn, CALLS times in all: a CUDA graph.

        Graphs share their memory: outputs mean nothing once another has been replayed.
        """
        with torch.inference_mode():
            for run in runs:
                run()
            self.cuda.synchronize()
            graph = self.cuda.CUDAGraph()
            with self.cuda.graph(graph, pool=self._pool):
                for i in range(self.calls):
                    runs[i % len(runs)]()
        return graph.replay

    def ms(self, run: Callable[[], Any], *, flush: bool) -> float:
        """Milliseconds of one call; flush: with nothing of use in the GPU's cache."""
        if flush and not self.is_dry:
            if self._flush is None:
                self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.name)
            self._flush.zero_()
        first, last = (self.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last))


def interleave(
    device: Device,
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    per_call: int = 1,
    flush: bool = False,
) -> dict[str, dict[str, Any]]:
    """Time every call in turn, `rounds` times.

    Returns name -> {ms_p10, ms_p50, ms_p90, rounds, ratios}; ratios: the median over rounds of
    another's time / its own, for all others. per_call: what each call repeats (Device.bundle).
    """
    if not device.is_dry:
        until = time.perf_counter() + WARM_SECONDS
        while True:
            for run in calls.values():
                run()
            if time.perf_counter() >= until:
                break
        once = sum(device.ms(run, flush=flush) for run in calls.values()) / 1e3
        rounds = min(rounds, max(MIN_ROUNDS, int(MAX_SECONDS / max(once, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, run in calls.items():
            times[name].append(device.ms(run, flush=flush) / per_call)
    return {
        name: {
            **_spread(own),
            "rounds": rounds,
            "ratios": {o: _median_ratio(times[o], own) for o in calls if o != name},
        }
        for name, own in times.items()
    }


def _spread(own: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(own, n=10) if len(own) > 1 else list(own) * 9
    return {"ms_p10": cuts[0], "ms_p50": statistics.median(own), "ms_p90": cuts[-1]}


def _median_ratio(theirs: Sequence[float], own: Sequence[float]) -> float:
    return statistics.median(b / t for b, t in zip(theirs, own, strict=True))


def peak_rates(device: Device, *, size: int = 8192) -> dict[str, float | None]:
    """Sustained rates: GEMM in bf16 and e4m3 (TFLOP/s; None: not on this GPU), copies (TB/s)."""
    a = torch.randn(size, size, device=device.name).bfloat16()
    b = torch.randn(size, size, device=device.name).bfloat16()
    out = torch.empty_like(a)
    runs: dict[str, Callable[[], Any]] = {"bf16": lambda: torch.mm(a, b, out=out)}
    runs["copy"] = lambda: out.copy_(a)
    if not device.is_dry and torch.cuda.get_device_capability(device.name) >= (8, 9):
        a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).T
        one = torch.ones((), device=device.name)

        def gemm() -> Any:
            # Fast accumulation, as Triton's GEMMs have it on sm_90.
            return torch._scaled_mm(a8, b8, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)

        try:
            gemm()
        except RuntimeError:
            pass  # this GPU or build has no such GEMM
        else:
            runs["fp8"] = gemm
    timed = interleave(device, runs, rounds=20)
    ms = {name: row["ms_p10"] for name, row in timed.items()}
    rate = 2 * size**3 / 1e9
    return {
        "bf16_tflops": rate / ms["bf16"],
        "fp8_tflops": rate / ms["fp8"] if "fp8" in ms else None,
        "copy_tbs": 2 * a.numel() * 2 / 1e9 / ms["copy"],
    }
