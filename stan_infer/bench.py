"""Time engines against eager mode: same clips, one process, interleaved, with their errors."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stan_infer.engines.session import Session
from stan_infer.errors import CheckError
from stan_infer.flops import video_flops


@dataclasses.dataclass(frozen=True)
class Lane:
    """One engine in a comparison."""

    name: str
    session: Session
    wait: Callable[[], None] | None = None  # blocks until the device is idle


def bench_videos(
    lanes: Sequence[Lane],
    *,
    batches: Sequence[int],
    frames: Sequence[int],
    warmup: int = 2,
    repeats: int = 10,
    on_round: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Time embed_video for every batch size and frame count; one row per engine and shape.

    The first lane is the baseline of `speedup` and `max_rel_error`. Every repeat runs all lanes
    once before the next repeat, so that a machine whose speed drifts slows all of them alike.
    """
    rows = []
    for b in batches:
        for t in frames:
            rows += _one_shape(lanes, b, t, warmup, repeats, on_round)
    return rows


def _one_shape(
    lanes: Sequence[Lane],
    b: int,
    t: int,
    warmup: int,
    repeats: int,
    on_round: Callable[[], None],
) -> list[dict[str, Any]]:
    config = lanes[0].session.config
    s = config.image_size
    clips = np.random.default_rng(0).integers(0, 256, (b, t, s, s, 3), dtype=np.uint8)
    outputs: dict[str, np.ndarray] = {}
    times: dict[str, list[float]] = {lane.name: [] for lane in lanes}
    for i in range(warmup + repeats):
        for lane in lanes:
            start = time.perf_counter()
            out = lane.session.embed_video(clips)
            if lane.wait:
                lane.wait()
            elapsed = time.perf_counter() - start
            if i >= warmup:
                times[lane.name].append(elapsed)
            outputs[lane.name] = np.asarray(out.cpu() if hasattr(out, "cpu") else out)
        on_round()
    base = lanes[0].name
    rows = []
    for lane in lanes:
        ms = np.array(times[lane.name]) * 1e3
        # Ratios of the same repeat, then their median: drift of the machine cancels.
        ratio = np.median(np.array(times[base]) / np.array(times[lane.name]))
        reference = outputs[base]
        with np.errstate(invalid="ignore"):
            error = np.abs(outputs[lane.name] - reference).max() / np.abs(reference).max()
        if not np.isfinite(error):
            raise CheckError(
                f"engine {lane.name} at B={b}, T={t} gives values that are not finite: "
                "a wrong engine has no speed"
            )
        p50 = float(np.median(ms))
        rows.append(
            {
                "engine": lane.name,
                "batch": b,
                "frames": t,
                "latency_ms_p50": p50,
                "latency_ms_p95": float(np.percentile(ms, 95)),
                "latency_ms_min": float(ms.min()),
                "clips_per_s": b / p50 * 1e3,
                "gflop_per_s": b * video_flops(config, t) / p50 / 1e6,
                "speedup": float(ratio),
                "max_rel_error": float(error),
                "warmup": warmup,
                "repeats": repeats,
                **{k: v for k, v in lane.session.describe().items() if k != "engine"},
            }
        )
    return rows
