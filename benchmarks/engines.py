"""python -m benchmarks.engines: CPU engines on both graphs, interleaved, as shares of a ceiling.

The ceiling is the fastest matrix product that any library reached during the same run, sampled
between the rounds. GFLOP/s count the reference's products, so that a graph which does less shows
as more than it does. Random weights: speed does not depend on them. Appends rows to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import append_rows
from stan_infer.benchmarking.interleave import Lane, Schedule, bench_videos
from stan_infer.benchmarking.peak_gemm import PeakGemm
from stan_infer.checkpoints.presets import preset
from stan_infer.config import video_flops
from stan_infer.engines.open import open_session
from stan_infer.export.export_model import export_model
from stan_infer.network.fold import fold_video
from stan_infer.network.model import Stan, init_random
from stan_infer.network.torch_ops import encode_video


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", default="stan-b32,stan-b16,stan-l14")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    args = parser.parse_args()
    for name in args.presets.split(","):
        model = init_random(Stan(preset(name))).eval().requires_grad_(False)
        with tempfile.TemporaryDirectory() as folder:
            paths = {g: Path(folder) / g for g in ("reference", "fused")}
            t = args.frames
            for graph, path in paths.items():
                # Dynamic in T, in a narrow range: the export proves every size, which takes longer
                # than the measurement.
                limits = (max(t - 1, 1), t)
                export_model(model, path, graph=graph, tower="video", frames=limits, batch=1)
            for threads in (int(n) for n in args.threads.split(",")):
                rows = _measure(model, paths, threads, args)
                path = append_rows("engines", [{"model": name, **row} for row in rows])
                print(f"{len(rows)} rows of {name}, {threads} threads -> {path.name}", flush=True)


def _measure(
    model: Stan, paths: dict[str, Path], threads: int, args: argparse.Namespace
) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    config = model.config
    weights = fold_video(model)
    compiled = torch.compile(model.encode_video)
    torch_lanes = {
        ("eager", "reference"): lambda x: model.encode_video(x).mean(1),
        ("compile", "reference"): lambda x: compiled(x).mean(1),
        ("eager", "fused"): lambda x: encode_video(weights, x)[0],
    }
    lanes = [_lane(*k, _on_tensor(f), {"torch": torch.__version__}) for k, f in torch_lanes.items()]
    sessions = []
    for engine in ("ort", "openvino"):
        for graph, path in paths.items():
            sessions.append(open_session(path, engine, threads=threads))
            lanes.append(_lane(engine, graph, sessions[-1].embed_video, sessions[-1].describe()))
    peak = PeakGemm(config, args.frames, threads)
    rows = bench_videos(
        lanes,
        side=config.image_size,
        flops=lambda t: video_flops(config, t),
        batches=[1],
        frames=[args.frames],
        schedule=Schedule(args.warmup, args.repeats),
        on_round=lambda part: peak.sample(),
    )
    peak.add_share(rows)
    for row in rows:
        row["threads"] = threads
    for session in sessions:
        session.close()
    return rows


def _lane(
    engine: str, graph: str, embed: Callable[[np.ndarray], Any], facts: dict[str, Any]
) -> Lane:
    named = {"precision": "fp32", "device": "cpu", **facts, "engine": engine, "graph": graph}
    return Lane(f"{engine} {graph}", embed, named)


def _on_tensor(run: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], torch.Tensor]:
    @torch.inference_mode()
    def embed(clips: np.ndarray) -> torch.Tensor:
        return run(torch.from_numpy(clips))

    return embed


if __name__ == "__main__":
    main()
