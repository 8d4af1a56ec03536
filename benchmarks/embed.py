"""python -m benchmarks.embed: `stan-infer embed` against a loop of decord and ONNX Runtime.

Both run as whole processes, in turn, on the exported demo: 200 clips of the demo, and ten films of
one minute in 1080p (H.264, a key frame every ten seconds, as x264 does by default). The loop is
benchmarks.decord_loop. `--only short` or `long` measures one of them. Appends rows to
benchmarks/results/.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks.record import ROOT, append_rows
from benchmarks.script import options, stan_infer, write_clips
from stan_infer.checkpoints.load import load_model
from stan_infer.export.export_model import export_model

MIN_COSINE = 0.99  # decord and PyAV convert colours in different ways
_FILM = {"seconds": 60, "rate": 25, "height": 1080, "width": 1920}


def write_film(path: Path) -> None:
    """One minute of 1080p: a window that wanders over a large texture, with noise."""
    height, width = _FILM["height"], _FILM["width"]
    rng = np.random.default_rng(0)
    coarse = rng.integers(30, 220, (180, 300, 3), np.uint8)
    scene = coarse.repeat(10, 0).repeat(10, 1)
    scene += rng.integers(0, 12, scene.shape, np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=_FILM["rate"], options={"preset": "superfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 2
        for i in range(_FILM["seconds"] * _FILM["rate"]):
            top, left = (int(300 + 290 * f(i / 90)) for f in (np.sin, np.cos))
            window = np.ascontiguousarray(scene[top : top + height, left : left + width])
            frame = av.VideoFrame.from_ndarray(window, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, _FILM["rate"])
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def write_films(folder: Path, count: int) -> None:
    """One film under `count` names; nothing remembers that they are the same."""
    folder.mkdir()
    first = folder / "film00.mp4"
    write_film(first)
    for i in range(1, count):
        shutil.copyfile(first, folder / f"film{i:02}.mp4")


def compare(model: Path, clips: Path, rounds: int) -> dict[str, Any]:
    """Run both in turn and return their seconds; the embeddings must be the same."""
    ours, theirs = (clips.parent / f"{clips.name}-{who}.npz" for who in ("ours", "loop"))
    loop = [sys.executable, "-m", "benchmarks.decord_loop", model, clips, theirs]
    seconds: dict[str, list[float]] = {"embed": [], "loop": []}
    first = 0 if clips.name == "long" else -1  # a round before, to fill the disk's cache
    for i in range(first, rounds):
        for name, run in (
            ("loop", lambda: subprocess.run(loop, check=True, cwd=ROOT)),
            ("embed", lambda: stan_infer("embed", model, clips, "-o", ours)),
        ):
            taken = _seconds(run)
            if i >= 0:
                seconds[name].append(taken)
    with np.load(ours) as a, np.load(theirs) as b:
        assert sorted(a["paths"].tolist()) == a["paths"].tolist() == b["paths"].tolist()
        x, y = a["embeddings"], b["embeddings"]
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert cosine.min() > MIN_COSINE, f"embeddings differ: smallest cosine {cosine.min():.4f}"
    ratios = [b / a for a, b in zip(seconds["embed"], seconds["loop"], strict=True)]
    return {
        "clips": clips.name,
        "videos": len(cosine),
        "embed_s_p50": statistics.median(seconds["embed"]),
        "loop_s_p50": statistics.median(seconds["loop"]),
        "speedup": statistics.median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
        "rounds": rounds,
        "min_cosine": float(cosine.min()),
        "packages": {name: version(name) for name in ("av", "decord", "opencv-python-headless")},
    }


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure and record."""
    args = options(__doc__, only=("short", "long"), rounds=5, clips=200, films=10)
    demo = ROOT / "examples" / "motion" / "motion.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        export_model(load_model(demo), model)
        for name in args.only:
            clips = Path(folder) / name
            if name == "short":
                write_clips(clips, args.clips, "held-out")
            else:
                write_films(clips, args.films)
            row = compare(model, clips, args.rounds)
            append_rows("embed", [row])
            print(json.dumps(row))


if __name__ == "__main__":
    main()
