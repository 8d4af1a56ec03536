"""Time torch functions and exported folders on the CPU, in turn, on one clip per call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stan_infer.benchmarking.interleave import Candidate, Schedule, bench_videos
from stan_infer.benchmarking.peak_gemm import PeakGemm
from stan_infer.config import video_flops
from stan_infer.engines.open import open_session
from stan_infer.network.model import Stan


def time_on_cpu(
    model: Stan,
    runs: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
    folders: Mapping[str, tuple[str, Path]],
    schedule: Schedule,
    *,
    threads: int,
    frames: int,
    clips: Sequence[np.ndarray] | None = None,
    with_peak: bool = False,
) -> list[dict[str, Any]]:
    """One row for each of `runs` and `folders`, in that order; GFLOP/s count the FLOPs of `model`.

    runs: functions from clips uint8 [1, T, S, S, 3] to embeddings; their names begin with the
    engine. folders: engine and exported folder by name. clips: see bench_videos. with_peak: add
    the share of peak GEMM.
    """
    torch.set_num_threads(threads)
    facts = {"precision": "fp32", "device": "cpu", "torch": torch.__version__}
    candidates = [
        Candidate(name, _on_arrays(run), {**facts, "engine": name.split()[0]})
        for name, run in runs.items()
    ]
    peak = PeakGemm(model.config, frames, threads) if with_peak else None
    with ExitStack() as stack:
        for name, (engine, path) in folders.items():
            session = open_session(path, engine, threads=threads)
            stack.callback(session.close)
            candidates.append(Candidate(name, session.embed_video, session.describe()))
        rows = bench_videos(
            candidates,
            side=model.config.image_size,
            flops=lambda t: video_flops(model.config, t),
            batches=[1],
            frames=[frames],
            schedule=schedule,
            clips=clips,
            on_round=lambda part: peak.sample() if peak else None,
        )
    if peak:
        peak.add_share(rows)
    return [{**row, "threads": threads} for row in rows]


def _on_arrays(run: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], torch.Tensor]:
    @torch.inference_mode()
    def embed(clips: np.ndarray) -> torch.Tensor:
        return run(torch.from_numpy(clips))

    return embed
