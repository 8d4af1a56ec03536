"""python -m benchmarks.repeat: how much two runs of `stan-infer bench` differ on one machine.

Runs the same command twice: alone, beside a process that computes on one CPU, and beside one on
every CPU. Two runs must give ratios to eager within 10 %, or say that they cannot be believed.
Appends one row per engine to benchmarks/results/.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.record import append_rows
from benchmarks.script import options, stan_infer
from stan_infer.benchmarking.rows import ratio_in_words

AGREE = 0.10
_COMPUTE = "import os; os.sched_setaffinity(0, {%d})\nwhile True: pass"


def main() -> None:
    """Run pairs and record; --beside: numbers of processes that compute meanwhile."""
    every = os.cpu_count() or 1
    args = options(
        __doc__, preset="stan-b32", engine="eager,ort,openvino", repeats=20, beside=(0, 1, every)
    )
    command = ["bench", "--preset", args.preset, "--engine", args.engine, "--no-memory"]
    command += ["--repeats", str(args.repeats)]
    rows: list[dict[str, Any]] = []
    for count in args.beside:
        with computing(range(count)):
            # 4: every row is starved, which is an answer here.
            first, second = (stan_infer(*command, codes=(0, 4)) for _ in range(2))
        rows += [_row(*pair, count, args.repeats) for pair in zip(first, second, strict=True)]
    append_rows("repeat", rows)


@contextmanager
def computing(cpus: Sequence[int]) -> Iterator[None]:
    """Keep each of these CPUs busy with a process of its own."""
    started = [subprocess.Popen([sys.executable, "-c", _COMPUTE % cpu]) for cpu in cpus]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _row(one: dict[str, Any], two: dict[str, Any], beside: int, repeats: int) -> dict[str, Any]:
    kept = ("model", "engine", "precision", "batch", "frames", "threads")
    apart = abs(one["speedup"] / two["speedup"] - 1)
    row = {k: one[k] for k in kept} | {
        "beside": beside,
        "speedups": [one["speedup"], two["speedup"]],
        "latencies_ms": [one["latency_ms_p50"], two["latency_ms_p50"]],
        "ratios": [ratio_in_words(one), ratio_in_words(two)],
        "apart": apart,
        "is_honest": apart <= AGREE or bool(one["doubts"] or two["doubts"]),
        "repeats": repeats,
    }
    print({k: row[k] for k in ("engine", "beside", "ratios", "latencies_ms", "is_honest")})
    return row


if __name__ == "__main__":
    main()
