"""python -m benchmarks.shapes: the memory that an engine keeps as it meets new shapes.

Exports the motion demo and, in a new process for each engine, embeds clips of seeded random (B, T),
no shape twice, the largest of all first. Resident memory is taken after 20 and after all shapes.
Appends one row per engine to benchmarks/results/.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import ROOT, append_rows
from stan_infer.engines.open import CHECKPOINT, engine_named, open_session

EARLY = 20  # shapes


def random_shapes(count: int, batch: int, frames: int) -> list[tuple[int, int]]:
    """Seeded (B, T), each once, the largest first, because a larger one needs more in any case."""
    most = (batch, frames)
    all_shapes = [(b, t) for b in range(1, batch + 1) for t in range(1, frames + 1)]
    return [most, *random.Random(0).sample([s for s in all_shapes if s != most], count - 1)]


def resident_mib() -> float:
    """Resident memory of this process (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 2**10


def grow(source: str, engine: str, threads: int, shapes: list[tuple[int, int]]) -> dict[str, Any]:
    """Embed clips of each shape in this process; return the memory on the way."""
    if engine_named(engine).takes == CHECKPOINT:
        import torch

        torch.set_num_threads(threads)
        session = open_session(source, engine)
    else:
        session = open_session(source, engine, threads=threads)
    side, rng, seen = session.config.image_size, np.random.default_rng(0), []
    for b, t in shapes:
        session.embed_video(rng.integers(0, 256, (b, t, side, side, 3), np.uint8))
        seen.append(resident_mib())
    early, last = seen[EARLY - 1], seen[-1]
    return {"mib_first": seen[0], "mib_early": early, "mib_last": last, "growth": last / early}


def main() -> None:
    """Measure and record; with a request as argument, answer it (the child)."""
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(grow(**json.loads(sys.argv[1]))))
        return
    # Not above: the child would count the memory of torch, which these import.
    from benchmarks.script import options
    from stan_infer.checkpoints.load import load_model
    from stan_infer.export.export_model import export_model

    args = options(
        __doc__, engine=("ort", "openvino", "eager"), shapes=500, batch=32, frames=16, threads=1
    )
    checkpoint = ROOT / "examples" / "motion" / "motion.safetensors"
    shapes = random_shapes(args.shapes, args.batch, args.frames)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "motion"
        export_model(load_model(checkpoint), exported)
        for engine in args.engine:
            source = checkpoint if engine_named(engine).takes == CHECKPOINT else exported
            request = {"source": str(source), "engine": engine, "threads": args.threads}
            command = [sys.executable, "-m", "benchmarks.shapes"]
            command.append(json.dumps({**request, "shapes": shapes}))
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout)
            row |= {"engine": engine, "threads": args.threads, "early": EARLY}
            row |= {"shapes": args.shapes, "largest": shapes[0]}
            rows.append(row)
            print(row, flush=True)
    append_rows("shapes", rows)


if __name__ == "__main__":
    main()
