"""python -m benchmarks.gpu.suite: run every test and measurement that needs a GPU.

First come the machine's peak rates and the headline: B/16 on 8 clips of 12 frames with eager mode,
our engine, our engine with the library's linears, and torch.compile (max-autotune, CUDA graphs).
They are given three minutes; a lane that needs longer is tried again at the end. Then come the
headline's other networks, each kernel against other ways to compute the same, whole networks at
many shapes, and the tests marked `gpu`. Each figure is written as a row as soon as it is known; at
the end a Markdown table. A run that was stopped, killed or did not finish in --minutes goes on when
it is started again.

It needs PyTorch, Triton, NumPy and this folder, neither git nor the internet; another package that
is missing (pytest, ONNX Runtime) becomes a row that says so. --dry-run walks through everything on
the CPU, on tiny shapes, with a stand-in for torch.cuda: nothing is measured.

--part headline | kernels | model | ablation | ort | trt | tests selects parts. "ablation" times our
network with one optimisation left out at a time, and torch.compile on the rewritten network; "ort"
is ONNX Runtime, "trt" both TensorRTs, whose graphs and plans take minutes to make.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

try:
    import numpy  # noqa: F401
    import torch
    import triton  # noqa: F401
except ModuleNotFoundError as e:
    print(f"error: {e.name} is missing; this needs torch, triton and numpy", file=sys.stderr)
    raise SystemExit(3) from None

from benchmarks.gpu import journal
from benchmarks.gpu.cases import Shape
from benchmarks.gpu.journal import BusyError, Journal
from benchmarks.gpu.models import LANES
from benchmarks.gpu.rows import table
from benchmarks.gpu.runner import Runner, Unit
from benchmarks.record import RESULTS
from stan_infer.system.gpus import nvidia_gpus

PARTS = ("headline", "kernels", "model", "ablation", "ort", "trt", "tests")
USUAL = ("headline", "kernels", "model", "tests")
KERNEL_SHAPES = [Shape(batch=8, frames=t) for t in (12, 8, 16, 64)] + [Shape(1, 12, 49, 768, 32)]
MODELS = ("stan-b16", "stan-b32", "stan-l14")
MODEL_SHAPES = [(1, 12), (8, 12), (1, 8), (8, 8), (32, 12), (1, 16), (8, 16), (32, 8)]
MODEL_SHAPES += [(1, 64), (8, 64), (32, 16), (32, 64)]
SHORT = [(1, 12), (8, 12)]
HEADLINES = [("stan-b16", 8, 12), ("stan-b32", 1, 12), ("stan-l14", 8, 12), ("stan-b16", 1, 12)]
TINY = Shape(2, 3, 4, 32, 8, 16)


def units(parts: Sequence[str], *, dry: bool = False) -> Iterator[Unit]:
    """What to run, the most useful first; dry: on tiny shapes."""
    rounds = 1 if dry else 30
    yield Unit("peak rates", "rates", {"size": 64 if dry else 8192})

    def cell(part: str, model: str, b: int, t: int) -> Unit:
        spec = {"model": model, "lanes": LANES[part], "batch": b, "frames": t, "rounds": rounds}
        return Unit(f"{part} {model} B={b} T={t}", "network", spec)

    if "headline" in parts:
        for model, b, t in [("stan-tiny", 1, 2)] if dry else HEADLINES:
            yield cell("headline", model, b, t)
    if "kernels" in parts:
        for shape in [TINY] if dry else KERNEL_SHAPES:
            sizes, dtype = dataclasses.asdict(shape), "float32" if dry else "bfloat16"
            name = f"kernels B={shape.batch} T={shape.frames} P={shape.patches}"
            yield Unit(name, "kernel", {"shape": sizes, "dtype": dtype, "rounds": rounds})
    for part in ("model", "ablation", "ort", "trt"):
        for b, t in [(1, 2)] if dry else MODEL_SHAPES if part == "model" else SHORT:
            for model in ("stan-tiny",) if dry else MODELS:
                if part in parts:
                    yield cell(part, model, b, t)
    if "tests" in parts:  # compiling takes minutes
        yield Unit("tests", "tests", {})


def arguments(text: str | None, minutes: float) -> argparse.ArgumentParser:
    """The options that the suite and the tuner have in common."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=minutes, help=f"usually {minutes:g}")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--out", type=Path, help="folder of rows and table")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, to see that all runs")
    return parser


def open_journal(args: argparse.Namespace, kind: str, *, with_table: bool) -> Journal:
    """The rows of this GPU. Ends the program with one line where there is none."""
    index = args.device.partition(":")[2] or "0"
    if args.dry_run:
        gpu: dict[str, Any] = {"name": "stand-in", "sm": "cpu", "driver": None}
        args.out = args.out or Path("dry-run")
    elif not torch.cuda.is_available():
        _refuse(
            f"torch {torch.__version__} finds no NVIDIA GPU; --dry-run tries everything without "
            "one, on the CPU"
        )
    elif not index.isdigit() or int(index) >= len(nvidia_gpus()):
        _refuse(f"device '{args.device}' is not here: {len(nvidia_gpus())} GPUs found")
    else:
        gpu = nvidia_gpus()[int(index)]  # without a context of CUDA, which the worker has
    name = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
    common = journal.describe(kind, gpu, stand_in=args.dry_run, with_table=with_table)
    path = (args.out or RESULTS) / f"{name}{'' if kind == 'gpu' else '-tune'}.jsonl"
    try:
        return Journal(path, common)
    except BusyError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from e


def _refuse(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(3)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, write the table, say what is left."""
    parser = arguments(__doc__, 15)
    parser.add_argument("--part", action="append", choices=PARTS)
    args = parser.parse_args(argv)
    with open_journal(args, "gpu", with_table=True) as rows:
        runner = Runner(rows, args.device, args.minutes, _say, stand_in=args.dry_run)
        try:
            runner.run(list(units(args.part or USUAL, dry=args.dry_run)))
        finally:  # also of a run that is interrupted
            text = table(rows.rows)
            rows.path.with_suffix(".md").write_text(text)
        print(text)
        print(f"rows: {rows.path}", file=sys.stderr)
    if runner.left:
        print(f"not done in time, start again: {', '.join(runner.left)}", file=sys.stderr)
    newest = {(r["unit"], r["lane"]): r for r in rows.rows}
    return 4 if any("failed" in r or r.get("passed") is False for r in newest.values()) else 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the rows are kept: start again to go on", file=sys.stderr)
        sys.exit(130)
