"""python -m benchmarks.repeat: how far two runs of `stan-infer bench` differ on one machine.

Same artefact, same command, twice; compared are the ratios to eager. Appends one row per engine to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks.record import append_rows


def main() -> None:
    """Run twice and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="stan-b32")
    parser.add_argument("--engine", default="eager,ort,openvino")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    command = [sys.executable, "-m", "stan_infer", "bench", "--preset", args.preset]
    command += ["--engine", args.engine, "--repeats", str(args.repeats), "--no-memory", "--json"]
    runs = []
    for _ in range(2):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append([json.loads(line) for line in done.stdout.splitlines()])
    rows: list[dict[str, Any]] = []
    for one, two in zip(*runs, strict=True):
        kept = ("model", "engine", "precision", "batch", "frames", "threads")
        row = {k: one[k] for k in kept}
        row |= {"speedups": [one["speedup"], two["speedup"]]}
        row |= {"apart": abs(one["speedup"] / two["speedup"] - 1), "repeats": args.repeats}
        rows.append(row)
        print(row)
    append_rows("repeat", rows)


if __name__ == "__main__":
    main()
