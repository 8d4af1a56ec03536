"""python -m benchmarks.engines: CPU engines on both graphs, interleaved, relative to peak GEMM.

Peak GEMM is the fastest matrix product that any library reached during the same run, timed between
the rounds. GFLOP/s count the reference's FLOPs, also for the fused graph, which needs fewer. Random
weights: speed does not depend on them. Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import append_rows
from benchmarks.script import both_graphs, options, random_model
from stan_infer.benchmarking.interleave import Lane, Schedule, bench_videos
from stan_infer.benchmarking.peak_gemm import PeakGemm
from stan_infer.config import video_flops
from stan_infer.engines.open import open_session
from stan_infer.network.fold import fold_video
from stan_infer.network.model import Stan
from stan_infer.network.torch_ops import encode_video


def main() -> None:
    """Measure and record."""
    args = options(
        __doc__,
        presets=("stan-b32", "stan-b16", "stan-l14"),
        threads=(1, 2),
        frames=12,
        repeats=5,
        warmup=1,
    )
    for name in args.presets:
        model = random_model(name)
        with both_graphs(model, args.frames) as paths:
            for threads in args.threads:
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
