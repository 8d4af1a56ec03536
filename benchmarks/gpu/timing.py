"""Time calls on a GPU in turn, and the peak rates of GEMM and copies.

Short calls cannot be timed by events one by one, as the host takes some 12 us to launch a Triton
kernel: a CUDA graph of CALLS of them ("bundle") is replayed instead.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

CALLS = 20
FLUSH_BYTES = 256 * 2**20  # more than any L2 cache, so that kernels read from memory after it
WARM_SECONDS = 0.5
MAX_SECONDS = 20.0


class Device:
    """Where and how to time: cuda, with events and graphs; or cpu, for the suite's own tests."""

    def __init__(self, name: str) -> None:
        """name: cuda, cuda:1 or cpu."""
        self.name, self.is_cuda = name, name.startswith("cuda")
        self._flush: torch.Tensor | None = None

    def is_alive(self) -> bool:
        """Whether the GPU still answers this process."""
        try:
            if self.is_cuda:
                torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def describe(self) -> str:
        """The GPU's name, or cpu."""
        return torch.cuda.get_device_name(self.name) if self.is_cuda else "cpu"

    def bundle(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Return one call that runs `run` CALLS times; a CUDA graph on a GPU."""
        if not self.is_cuda:
            return run
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                run()
        return graph.replay

    def ms(self, run: Callable[[], Any], *, flush: bool) -> float:
        """Milliseconds of one call."""
        if not self.is_cuda:
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) * 1e3
        if flush:
            if self._flush is None:
                self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.name)
            self._flush.zero_()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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
    """Time every call in turn, `rounds` times; the first is the baseline of `ratio`.

    Returns name -> {ms_p10, ms_p50, ms_p90, ratio, rounds}; ratio is the median over rounds of
    baseline / own. per_call: what each call repeats inside (see Device.bundle).
    """
    until = time.perf_counter() + (WARM_SECONDS if device.is_cuda else 0)
    while True:
        for run in calls.values():
            run()
        if time.perf_counter() >= until:
            break
    times: dict[str, list[float]] = {name: [] for name in calls}
    # Long calls need fewer rounds: about MAX_SECONDS in all, and five at least.
    once = sum(device.ms(run, flush=flush) for run in calls.values()) / 1e3
    rounds = min(rounds, max(5, int(MAX_SECONDS / max(once, 1e-9))))
    for _ in range(rounds):
        for name, run in calls.items():
            times[name].append(device.ms(run, flush=flush) / per_call)
    base = times[next(iter(times))]
    found = {}
    for name, own in times.items():
        ratios = [b / t for b, t in zip(base, own, strict=True)]
        cuts = statistics.quantiles(own, n=10) if len(own) > 1 else own * 9
        found[name] = {
            "ms_p10": cuts[0],
            "ms_p50": statistics.median(own),
            "ms_p90": cuts[-1],
            "ratio": statistics.median(ratios),
            "rounds": rounds,
        }
    return found


def peak_rates(device: Device, *, size: int = 8192) -> dict[str, float | None]:
    """Sustained rates: GEMM in bf16 and e4m3 (TFLOP/s; None: not on this GPU), copies (TB/s)."""
    a = torch.randn(size, size, device=device.name).bfloat16()
    b = torch.randn(size, size, device=device.name).bfloat16()
    out = torch.empty_like(a)
    runs: dict[str, Callable[[], Any]] = {"bf16": lambda: torch.mm(a, b, out=out)}
    runs["copy"] = lambda: out.copy_(a)
    if device.is_cuda and torch.cuda.get_device_capability(device.name) >= (8, 9):
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
