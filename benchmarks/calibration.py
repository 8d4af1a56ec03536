"""python -m benchmarks.calibration: INT8 of models with outlier channels, smoothed and not.

CLIP quantises badly because a few channels are far larger than all others. Random weights have
none, so some are planted, exactly: the model computes what it did. Each model goes through
`stan-infer calibrate`; then eager, ONNX Runtime and OpenVINO in fp32 and INT8 run in turn. Appends
rows to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import append_rows
from examples.motion import clips
from examples.motion.evaluate import SEED
from stan_infer.benchmarking.interleave import Lane, Schedule, bench_videos
from stan_infer.checkpoints.presets import preset
from stan_infer.engines.open import open_session
from stan_infer.export.export_model import export_model
from stan_infer.network.model import Stan, init_random
from stan_infer.video.clip import Clip
from stan_infer.video.decode_worker import read_clips
from stan_infer.video.spec import ClipSpec

STREAM, VALUES = (30.0, 35.0, 40.0, 45.0, 50.0, 40.0), (30.0, 40.0, 50.0, 35.0)


def main() -> None:
    """Plant, calibrate twice, time, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", default="stan-b32,stan-b16")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--method", default="max")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    for name in args.presets.split(","):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            _write_clips(folder / "videos", args.clips)
            config = dataclasses.replace(preset(name), frames=args.frames)
            model = with_outliers(init_random(Stan(config), seed=0).eval())
            t = args.frames
            export_model(model, folder / "fp32", tower="video", frames=(t - 1, t), batch=1)
            for smooth in (True, False):
                record = _calibrate(folder, smooth, args.method)
                row = _row(record) | {"model": name, "smooth": smooth, "frames": t}
                append_rows("outliers", [row])
                print(name, "smooth" if smooth else "plain", row["cosine"], flush=True)
            for threads in (1, 2):
                rows = _time(model, folder, threads, args)
                append_rows("int8-speed", [{"model": name, "threads": threads, **r} for r in rows])
                for r in rows:
                    print(name, threads, r["engine"], r["precision"], r.get("speedup"), flush=True)


@torch.no_grad()
def with_outliers(model: Stan) -> Stan:
    """Give six channels of the stream and four of each layer's values a size of x30 to x50.

    What reads them is divided by as much, so that the model computes the same.
    """
    rng = torch.Generator().manual_seed(3)
    d = model.config.width
    channels, by = torch.randperm(d, generator=rng)[: len(STREAM)], torch.tensor(STREAM)
    model.visual.ln_pre.weight[channels] *= by
    for block in [*model.visual.transformer.resblocks, *model.branch.spatial]:
        for norm in (block.ln_1, block.ln_2):
            norm.weight[channels] /= by
        rows, large = torch.randperm(d, generator=rng)[: len(VALUES)], torch.tensor(VALUES)
        block.attn.in_proj_weight[2 * d + rows] *= large[:, None]
        block.attn.in_proj_bias[2 * d + rows] *= large
        block.attn.out_proj.weight[:, rows] /= large
    for temporal in model.branch.temporal:
        temporal.ln.weight[channels] /= by
    model.visual.ln_post.weight[channels] /= by
    return model


def _write_clips(folder: Path, count: int) -> None:
    bank = clips.texture_bank("held-out")
    folder.mkdir()
    for i in range(count):
        clips.write_mp4(folder / f"{i:03}.mp4", clips.held_out_clip(SEED + 1, i, bank).frames)


def _calibrate(folder: Path, smooth: bool, method: str) -> dict[str, Any]:
    """The product's own command; without smoothing nothing returns to fp32: it is the contrast."""
    command = [sys.executable, "-m", "stan_infer", "calibrate", str(folder / "fp32")]
    command += ["--videos", str(folder / "videos"), "-o", str(folder / f"int8-{smooth}")]
    command += ["--samples", "16", "--method", method, "--threads", "1", "--force", "--json"]
    command += ["--min-cosine", "0.995" if smooth else "0.01"]
    command += [] if smooth else ["--no-smooth"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def _row(record: dict[str, Any]) -> dict[str, Any]:
    verdict = record["verdict"]
    smoothed = [t["smoothing"] for t in record["tensors"].values()]
    return {
        "method": record["method"],
        "clips": record["clips"],
        "cosine": record["search"][0]["cosine"],
        "linears": len(record["tensors"]),
        "kept": record["kept"],
        "smoothed": sum(s > 0 for s in smoothed),
        "file_ratio": verdict["file_ratio"],
        "sentence": verdict["sentence"],
        "worst": sorted(record["sensitivity"], key=lambda r: -r["error"])[:5],
    }


def _time(
    model: Stan, folder: Path, threads: int, args: argparse.Namespace
) -> Sequence[dict[str, Any]]:
    torch.set_num_threads(threads)
    named = {"precision": "fp32", "device": "cpu", "engine": "eager"}

    @torch.inference_mode()
    def eager(x: np.ndarray) -> torch.Tensor:
        return model.encode_video(torch.from_numpy(x)).mean(1)

    lanes, sessions = [Lane("eager", eager, named)], []
    for engine in ("ort", "openvino"):
        for name in ("fp32", "int8-True"):
            session = open_session(folder / name, engine, threads=threads)
            sessions.append(session)
            lanes.append(Lane(f"{engine} {name}", session.embed_video, session.describe()))
    c = model.config
    read = read_clips(sorted((folder / "videos").iterdir())[:4], ClipSpec.of(c))
    rows = bench_videos(
        lanes,
        side=c.image_size,
        flops=None,
        batches=[1],
        frames=[c.frames],
        schedule=Schedule(2, args.repeats),
        clips=[r.pixels[None] for _, r in read if isinstance(r, Clip)],
    )
    for session in sessions:
        session.close()
    return rows


if __name__ == "__main__":
    main()
