"""python -m benchmarks.calibration: INT8 of models with outlier channels, smoothed and not.

CLIP quantises badly because a few channels are far larger than all others. Random weights have no
such channels, so some are scaled up, and the weights that read them down: the model computes the
same as before. Each model goes through `stan-infer calibrate`; then eager, ONNX Runtime and
OpenVINO are timed in turn, in fp32 and INT8. Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu import time_on_cpu
from benchmarks.record import append_rows
from benchmarks.script import export_video, options, random_model, stan_infer, write_clips
from stan_infer.benchmarking.interleave import Schedule
from stan_infer.network.model import Stan
from stan_infer.video.clip import Clip
from stan_infer.video.decode_pool import read_clips
from stan_infer.video.spec import ClipSpec

STREAM, VALUES = (30.0, 35.0, 40.0, 45.0, 50.0, 40.0), (30.0, 40.0, 50.0, 35.0)


def main() -> None:
    """Make outliers, calibrate with and without smoothing, time, record."""
    presets = ("stan-b32", "stan-b16")
    args = options(__doc__, presets=presets, frames=8, clips=32, method="max", repeats=15)
    for name in args.presets:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            write_clips(folder / "videos", args.clips, "held-out")
            t = args.frames
            model = with_outliers(random_model(name, t))
            export_video(model, folder / "fp32", t)
            for smooth in (True, False):
                record = _calibrate(folder, smooth, args.method)
                row = _row(record) | {"model": name, "smooth": smooth, "frames": t}
                append_rows("outliers", [row])
                print(name, "smooth" if smooth else "plain", row["cosine"], flush=True)
            for threads in (1, 2):
                rows = _time(model, folder, threads, args)
                append_rows("int8-speed", [{"model": name, **r} for r in rows])
                for r in rows:
                    print(name, threads, r["engine"], r["precision"], r.get("speedup"), flush=True)


@torch.no_grad()
def with_outliers(model: Stan) -> Stan:
    """Scale six channels of the stream, and four of each layer's values, by 30 to 50.

    The weights that read them are divided by as much, so that the model computes the same.
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


def _calibrate(folder: Path, smooth: bool, method: str) -> dict[str, Any]:
    """Run `calibrate`. Without smoothing its bound is so low that every linear stays in 8 bits."""
    (record,) = stan_infer(
        *("calibrate", folder / "fp32", "--videos", folder / "videos"),
        *("-o", folder / f"int8-{smooth}", "--samples", "16", "--method", method),
        *("--threads", "1", "--force", "--min-cosine", "0.995" if smooth else "0.01"),
        *(() if smooth else ("--no-smooth",)),
    )
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
    c = model.config
    read = read_clips(sorted((folder / "videos").iterdir())[:4], ClipSpec.of(c))
    names = [(engine, name) for engine in ("ort", "openvino") for name in ("fp32", "int8-True")]
    return time_on_cpu(
        model,
        {"eager": lambda x: model.encode_video(x).mean(1)},
        {f"{engine} {name}": (engine, folder / name) for engine, name in names},
        Schedule(2, args.repeats),
        threads=threads,
        frames=c.frames,
        clips=[r.pixels[None] for _, r in read if isinstance(r, Clip)],
    )


if __name__ == "__main__":
    main()
