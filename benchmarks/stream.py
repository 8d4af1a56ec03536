"""python -m benchmarks.stream: windows that slide, against the whole network on each window.

Frames of noise pass a stream of engine ort, each through the trunk once; beside it the whole
network embeds the same windows, one after the other. Frames are given one by one, as of a camera,
and eight at once, as of a file. In every round each is timed once at every stride, in an order that
rotates. What the FLOPs of the graphs that run say is stated beside the
measured ratio. The weights are random, as speed does not depend on them. Appends rows to
benchmarks/results/.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import stan_infer as si
from benchmarks.record import append_rows
from benchmarks.script import options, random_model
from stan_infer.engines.session import Session
from stan_infer.export.export_model import export_model
from stan_infer.network.fold import fold_video
from stan_infer.network.model import Stan
from stan_infer.network.torch_ops import encode_branch, encode_trunk


def flops(model: Stan, t: int) -> tuple[int, int]:
    """FLOPs of the products of one frame's trunk, and of the branch of a window of T frames."""
    weights, s = fold_video(model), model.config.image_size
    counted = []
    rows: list[torch.Tensor] = []
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            rows = encode_trunk(weights, torch.zeros((t, s, s, 3), dtype=torch.uint8))
        counted.append(counter.get_total_flops() // t)
        with FlopCounterMode(display=False) as counter:
            encode_branch(weights, [x[None] for x in rows])
        counted.append(counter.get_total_flops())
    return counted[0], counted[1]


def stream_windows(
    session: Session, frames: np.ndarray, t: int, stride: int, at_once: int
) -> Callable[[], int]:
    """A stream that is full already; each call slides it over all frames and counts windows."""
    stream = session.stream(t, stride)
    stream.extend(frames[:t])

    def run() -> int:
        parts = (frames[i : i + at_once] for i in range(0, len(frames), at_once))
        return sum(len(stream.extend(part)) for part in parts)

    return run


def whole_windows(session: Session, frames: np.ndarray, t: int, count: int) -> Callable[[], int]:
    """The whole network on so many windows."""
    clip = frames[None, :t]

    def run() -> int:
        for _ in range(count):
            session.embed_video(clip)
        return count

    return run


def measure(model: Stan, name: str, args: Any, threads: int) -> list[dict[str, Any]]:
    """Rows of one model and number of threads."""
    t = args.frames
    frame, branch = flops(model, t)
    found = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "folder"
        export_model(model, folder, tower="video", frames=(t - 1, t), batch=1, split=True)
        s = model.config.image_size
        frames = np.random.default_rng(0).integers(0, 256, (args.slide, s, s, 3), np.uint8)
        with si.open_session(folder, engine="ort", threads=threads) as session:
            # By frames at once, 0 for the whole network, and stride.
            runs: dict[tuple[int, int], Callable[[], int]] = {}
            for stride in args.strides:
                for n in args.at_once:
                    runs[n, stride] = stream_windows(session, frames, t, stride, n)
                runs[0, stride] = whole_windows(session, frames, t, args.whole)
            took: dict[tuple[int, int], list[float]] = {key: [] for key in runs}
            order = list(runs)
            for i in range(args.rounds + 1):
                for key in order[i % len(order) :] + order[: i % len(order)]:
                    start = time.perf_counter()
                    count = runs[key]()
                    if i:  # the first round warms up
                        took[key].append((time.perf_counter() - start) / count)
    for n, stride in itertools.product(args.at_once, args.strides):
        pairs = zip(took[0, stride], took[n, stride], strict=True)
        ratios = sorted(whole / slid for whole, slid in pairs)
        found.append(
            {
                "model": name,
                "threads": threads,
                "frames": t,
                "stride": stride,
                "at_once": n,
                "windows_per_s": 1 / float(np.median(took[n, stride])),
                "whole_windows_per_s": 1 / float(np.median(took[0, stride])),
                "ratio": float(np.median(ratios)),
                "ratio_low": ratios[0],
                "ratio_high": ratios[-1],
                "ratio_by_flops": (t * frame + branch) / (stride * frame + branch),
                "rounds": args.rounds,
            }
        )
    return found


def main() -> None:
    """Measure and record."""
    args = options(
        __doc__,
        models=("stan-b32", "stan-b16"),
        threads=(2,),
        frames=12,
        strides=(1, 2, 4, 12),
        at_once=(1, 8),
        slide=24,
        whole=2,
        rounds=7,
    )
    for name in args.models:
        model = random_model(name, args.frames)
        for threads in args.threads:
            rows = measure(model, name, args, threads)
            append_rows("stream", rows)
            for row in rows:
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
