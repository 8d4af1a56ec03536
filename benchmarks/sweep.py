"""python -m benchmarks.sweep: latency of the released sizes, eager against ONNX Runtime.

Random weights: speed does not depend on them. Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.record import append_rows
from stan_infer.bench import Lane, bench_videos
from stan_infer.config import preset
from stan_infer.engines import open_session
from stan_infer.export import export_model
from stan_infer.model import Stan, init_random


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", default="stan-tiny,stan-b32")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--frames", default="8,12")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    threads = torch.get_num_threads()
    for name in args.presets.split(","):
        model = init_random(Stan(preset(name))).eval()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "onnx"
            export_model(model, out, progress=print)
            lanes = [
                Lane("eager", open_session(model, "eager")),
                Lane("ort", open_session(out, "ort", threads=threads)),
            ]
            rows = bench_videos(
                lanes,
                batches=[int(b) for b in args.batches.split(",")],
                frames=[int(t) for t in args.frames.split(",")],
                repeats=args.repeats,
            )
        path = append_rows("sweep", [{"model": name, **row} for row in rows])
        print(f"{len(rows)} rows of {name} -> {path.name}")


if __name__ == "__main__":
    main()
