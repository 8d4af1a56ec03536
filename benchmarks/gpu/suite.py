"""python -m benchmarks.gpu.suite: run every test and measurement that needs a GPU.

Measures the machine's peak rates (bf16 and e4m3 GEMM, copies), runs the tests marked `gpu`, times
each kernel against other ways to compute the same, and whole networks against eager mode and
torch.compile. Each result is written as a row at once; at the end a Markdown table. A run that was
stopped, or did not finish in --minutes, goes on when it is started again. It needs PyTorch, Triton
and this repository, but no internet; another package that is missing (pytest, ONNX Runtime) becomes
a row that says so.

--part tests | kernels | model | ablation | ort | trt selects parts. "ablation" times torch.compile
with max-autotune, and our network with one optimisation left out at a time; "ort" is ONNX Runtime,
"trt" both TensorRTs, whose graphs and plans take minutes to make.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.gpu import kernels, models
from benchmarks.gpu.cases import Shape
from benchmarks.gpu.timing import Device, peak_rates
from benchmarks.record import RESULTS, ROOT, commit
from benchmarks.tables.markdown import markdown, percent
from stan_infer.system.gpus import nvidia_gpus

# Tests of other engines need packages that this suite does not need.
_TESTS = ("tests/kernels", "tests/engines/test_triton_session.py")
PARTS = ("tests", "kernels", "model", "ablation", "ort", "trt")
KERNEL_SHAPES = [Shape(batch=8, frames=t) for t in (12, 8, 16, 64)] + [Shape(1, 12, 49, 768, 32)]
MODELS = ("stan-b16", "stan-b32", "stan-l14")
MODEL_SHAPES = [(1, 12), (8, 12), (1, 8), (8, 8), (32, 12), (1, 16), (8, 16), (32, 8)]
MODEL_SHAPES += [(1, 64), (8, 64), (32, 16), (32, 64)]
SHORT = [(1, 12), (8, 12)]
PART_SHAPES = {"model": MODEL_SHAPES, "ablation": SHORT, "ort": SHORT, "trt": SHORT}


class Suite:
    """Runs the units of work that are not done yet, until the time is over."""

    def __init__(self, path: Path, device: Device, minutes: float, log: Callable[[str], None]):
        """path: JSONL file; its rows of this commit, GPU and these versions count as done."""
        self.path, self.device, self._log = path, device, log
        self._until = time.monotonic() + 60 * minutes
        self._common = {
            "kind": "gpu",
            "gpu": device.describe(),
            "versions": {"torch": torch.__version__, "triton": triton.__version__},
            "cuda": torch.version.cuda,
            "driver": next((gpu["driver"] for gpu in nvidia_gpus()), None),
            "python": platform.python_version(),
            "commit": commit(),
        }
        rows = [json.loads(s) for s in path.read_text().splitlines()] if path.exists() else []
        same = ("gpu", "commit", "versions")
        self.rows = [r for r in rows if all(r[k] == self._common[k] for k in same)]
        self.left: list[str] = []

    @property
    def seconds_left(self) -> float:
        """Seconds until the time is over."""
        return self._until - time.monotonic()

    def unit(self, name: str, run: Callable[[], Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Run one unit, unless it is done or the time is over; a failure becomes a row."""
        done = [r for r in self.rows if r["unit"] == name]
        if any(r.get("last") for r in done) and not any("failed" in r for r in done):
            return done
        self.rows = [r for r in self.rows if r["unit"] != name]  # the newest try counts
        if time.monotonic() >= self._until:
            self.left.append(name)
            return []
        self._log(name)
        start = time.monotonic()
        try:
            found = list(run())
        except Exception as e:
            # The other units still run, whatever this one raised.
            found = [{"failed": _reason(e)}]
            if not self.device.is_alive():
                self._until = 0.0  # an illegal access ends the process's CUDA context
        found = found or [{"failed": "no result"}]
        found[-1] = {**found[-1], "last": True, "unit_seconds": round(time.monotonic() - start, 1)}
        date = datetime.date.today().isoformat()
        rows = [{**self._common, "unit": name, "date": date, **row} for row in found]
        with self.path.open("a") as f:
            f.writelines(json.dumps(r, sort_keys=True) + "\n" for r in rows)
        self.rows += rows
        return rows


def run_suite(suite: Suite, parts: Iterable[str], *, quick: bool = False) -> None:
    """Run all units, the most useful first; quick: tiny shapes, for the suite's own tests."""
    wanted, rounds = set(parts), 2 if quick else 30
    size = 64 if quick else 8192
    first = suite.unit("peak rates", lambda: [dict(peak_rates(suite.device, size=size))])
    peaks = first[0] if first and "bf16_tflops" in first[0] else None
    if peaks is None:
        suite.left.append("everything else: it is compared with the peak rates, which are missing")
        return
    if "kernels" in wanted:
        dtype = torch.float32 if quick else torch.bfloat16
        for shape in [Shape(2, 3, 4, 32, 8, 16)] if quick else KERNEL_SHAPES:
            _run_kernels(suite, shape, dtype, peaks, rounds)
    networks = cache(partial(models.open_networks, suite.device))
    for part, cells in PART_SHAPES.items():
        if part not in wanted:
            continue
        for b, t in [(1, 2)] if quick else cells:
            for model in ("stan-tiny",) if quick else MODELS:
                suite.unit(
                    f"{part} {model} B={b} T={t}",
                    lambda part=part, model=model, b=b, t=t: models.measure(
                        suite.device, networks(model, part), b, t, peaks["bf16_tflops"], rounds
                    ),
                )
    # Last, because compiling takes minutes, in the time that is left.
    if "tests" in wanted:
        suite.unit("tests", lambda: [_gpu_tests(suite.seconds_left)])


def _run_kernels(
    suite: Suite, shape: Shape, dtype: torch.dtype, peaks: dict[str, Any], rounds: int
) -> None:
    sizes = {"batch": shape.batch, "frames": shape.frames, "patches": shape.patches}
    has_fp8 = peaks["fp8_tflops"] is not None
    found = kernels.comparisons(shape, suite.device.name, dtype, fp8=has_fp8)
    while True:
        try:
            one = next(found)
        except StopIteration:
            return
        except Exception as e:
            # No memory, or no backend: the iterator makes the tensors of each comparison.
            reason = _reason(e)
            suite.unit(f"kernels at {shape}", lambda reason=reason: [{"failed": reason}])
            return
        suite.unit(
            f"kernels {one.operation} B={shape.batch} T={shape.frames} P={shape.patches}",
            lambda one=one: (
                sizes | row for row in kernels.measure(suite.device, one, peaks, rounds)
            ),
        )


def _reason(e: Exception) -> str:
    return f"{type(e).__name__}: {e}"[:500]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of one GPU's rows."""
    parts = [f"{rows[0]['gpu']}, torch {rows[0]['versions']['torch']}, {rows[0]['date']}:"]
    for r in rows:
        if r["unit"] == "peak rates" and "failed" not in r:
            fp8 = "none" if r["fp8_tflops"] is None else f"{r['fp8_tflops']:.0f} TFLOP/s"
            bf16, copy = f"{r['bf16_tflops']:.0f} TFLOP/s", f"{r['copy_tbs']:.2f} TB/s"
            parts.append(f"Peak GEMM: bf16 {bf16}, fp8 {fp8}; copies {copy}.")
        if r["unit"] == "tests":
            parts.append(f"Tests on the GPU: {r.get('summary') or r.get('failed')}.")
    lines = [
        f"{r['operation']} | {r['batch']}, {r['frames']}, {r['patches']} | {r['lane']} "
        f"| {1e3 * r['ms_p50']:.1f} | {r['ratio']:.2f}x "
        f"| {'in L2' if r['share_of_floor'] is None else percent(r['share_of_floor'])}"
        for r in rows
        if "operation" in r and "refused" not in r
    ]
    head = "kernel | B, T, P | candidate | us | against the first | share of roofline"
    parts += [markdown(head, lines)] if lines else []
    lines = [
        f"{r['model']} | {r['batch']}, {r['frames']} | {r['lane']} | "
        + (
            f"{r['refused']} |  |  | "
            if "refused" in r
            else f"{r['ms_p50']:.3f} | {r['ratio']:.2f}x "
            f"| {percent(r['share_of_ceiling'])} | {r['max_rel_error']:.1e}"
        )
        for r in rows
        if "model" in r
    ]
    head = "model | B, T | engine | ms | against eager | of peak GEMM | error"
    parts += [markdown(head, lines)] if lines else []
    parts += [f"{r['unit']}: failed, {r['failed']}" for r in rows if "failed" in r]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Run the parts, write the table, say which units are left."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="folder of rows and table")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            f"error: torch {torch.__version__} finds no NVIDIA GPU; the kernels' other proofs need "
            "none: python -m pytest tests/kernels",
            file=sys.stderr,
        )
        return 3
    if ":" in args.device:
        torch.cuda.set_device(args.device)  # kernels and events use the current device
    device = Device(args.device)
    folder = args.out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", device.describe().lower()).strip("-")
    suite = Suite(folder / f"{name}.jsonl", device, args.minutes, lambda s: print(s, flush=True))
    run_suite(suite, args.part or ("tests", "kernels", "model"))
    text = table(suite.rows)
    (folder / f"{name}.md").write_text(text)
    print(text)
    if suite.left:
        print(f"not done for lack of time, start again: {', '.join(suite.left)}", file=sys.stderr)
    return 4 if any("failed" in r for r in suite.rows) else 0


def _gpu_tests(seconds: float) -> dict[str, Any]:
    """Run the tests that need a GPU, in a process where kernels are compiled."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow", *_TESTS]
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    limit = max(60.0, seconds)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {limit:.0f} s: --part tests --minutes 30"}
    said = done.stdout.split("\n") + done.stderr.split("\n") * (not done.stdout.strip())
    last = next((line for line in reversed(said) if line.strip()), "pytest printed nothing")
    if done.returncode == 0:
        return {"summary": last}
    return {"failed": last, "output": done.stdout[-4000:]}


if __name__ == "__main__":
    sys.exit(main())
