"""python -m benchmarks.graphs: time ONNX Runtime on the reference and the fused graph, in turn.

Only these two run, so that many pairs fit into little time. The rows also have the FLOPs of both
graphs, from ONNX Runtime's profile. torch.onnx.export has already removed what no output needs
(the last branch layer's MLP on patches), so the fused graph saves less here than against eager.
Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.cpu import time_on_cpu
from benchmarks.record import append_rows
from benchmarks.script import both_graphs, options, random_model
from stan_infer.benchmarking.interleave import Schedule


def main() -> None:
    """Measure and record; --presets: NAME:PAIRS, comma separated."""
    presets = ("stan-b32:25", "stan-b16:11", "stan-l14:5")
    args = options(__doc__, presets=presets, threads=(1, 2), frames=12)
    for item in args.presets:
        name, _, repeats = item.partition(":")
        model = random_model(name)
        side = model.config.image_size
        with both_graphs(model, args.frames) as paths:
            flops = {g: flops_run(p / "video.onnx", args.frames, side) for g, p in paths.items()}
            schedule = Schedule(1, int(repeats or 5))
            folders = {graph: ("ort", path) for graph, path in paths.items()}
            for n in args.threads:
                rows = time_on_cpu(model, {}, folders, schedule, threads=n, frames=args.frames)
                for row, graph in zip(rows, folders, strict=True):
                    row |= {"model": name, "graph": graph, "graph_gflop": flops[graph] / 1e9}
                append_rows("graphs", rows)
                got, says = rows[1]["speedup"], flops["reference"] / flops["fused"]
                print(f"{name}, {n} threads: {got:.3f}, FLOPs say {says:.3f}", flush=True)


def flops_run(path: Path, frames: int, side: int) -> int:
    """FLOPs of the matrix products and convolutions that ONNX Runtime runs for one clip.

    They are counted from its profile, which shows the graph after ONNX Runtime's own rewrites:
    2 x elements of the output x length of the sums.
    """
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        session.run(None, {"video": np.zeros((1, frames, side, side, 3), np.uint8)})
        events = json.loads(Path(session.end_profiling()).read_text())
    total = 0
    for event in events:
        run = event.get("args", {})
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        if run["op_name"] in ("MatMul", "FusedMatMul", "Gemm", "FusedGemm"):
            first = _shape(run["input_type_shape"][0])
            total += 2 * math.prod(_shape(run["output_type_shape"][0])) * first[-1]
        elif run["op_name"] in ("Conv", "FusedConv"):
            frames_, channels, height, width = _shape(run["input_type_shape"][0])
            n, width_out, rows, columns = _shape(run["output_type_shape"][0])
            kernel = (height // rows) * (width // columns)  # a patch embedding: no overlap
            total += 2 * n * width_out * rows * columns * channels * kernel
    return total


def _shape(typed: dict[str, list[int]]) -> list[int]:
    return next(iter(typed.values()))


if __name__ == "__main__":
    main()
