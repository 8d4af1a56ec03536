"""python -m benchmarks.graphs: ONNX Runtime on the reference graph and on the fused one, in turn.

The two graphs alone, so that many pairs fit into little time, beside what their products promise:
those that ONNX Runtime itself says it ran, with their shapes. torch.onnx.export has already dropped
what nobody reads (the last branch layer's MLP on patches), so this is less than the fused graph
saves against eager. Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import append_rows
from stan_infer.benchmarking.interleave import Lane, Schedule, bench_videos
from stan_infer.checkpoints.presets import preset
from stan_infer.config import video_flops
from stan_infer.engines.open import open_session
from stan_infer.export.export_model import export_model
from stan_infer.network.model import Stan, init_random


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", default="stan-b32:25,stan-b16:11,stan-l14:5")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--frames", type=int, default=12)
    args = parser.parse_args()
    for item in args.presets.split(","):
        name, _, repeats = item.partition(":")
        model = init_random(Stan(preset(name))).eval().requires_grad_(False)
        with tempfile.TemporaryDirectory() as folder:
            gflop = {}
            for graph in ("reference", "fused"):
                path, t = Path(folder) / graph, args.frames
                limits = (max(t - 1, 1), t)  # narrow: the export proves every size
                export_model(model, path, graph=graph, tower="video", frames=limits, batch=1)
                gflop[graph] = products_run(path / "video.onnx", t, model.config.image_size) / 1e9
            for threads in (int(n) for n in args.threads.split(",")):
                torch.set_num_threads(threads)
                sessions = {
                    graph: open_session(Path(folder) / graph, "ort", threads=threads)
                    for graph in ("reference", "fused")
                }
                rows = bench_videos(
                    [Lane(g, s.embed_video, {**s.describe()}) for g, s in sessions.items()],
                    side=model.config.image_size,
                    flops=lambda t, config=model.config: video_flops(config, t),
                    batches=[1],
                    frames=[args.frames],
                    schedule=Schedule(1, int(repeats or 5)),
                )
                for row, (graph, session) in zip(rows, sessions.items(), strict=True):
                    row |= {"model": name, "graph": graph, "threads": threads}
                    row["graph_gflop"] = gflop[graph]
                    session.close()
                append_rows("graphs", rows)
                says = gflop["reference"] / gflop["fused"]
                got = rows[1]["speedup"]
                print(f"{name}, {threads} threads: {got:.3f}, products say {says:.3f}", flush=True)


def products_run(path: Path, frames: int, side: int) -> int:
    """FLOPs of the matrix products and convolutions that ONNX Runtime runs for one clip.

    From its profile, so after its own rewrites: 2 x elements of the output x length of the sums.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
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
