"""python -m benchmarks.repeat: how much two runs of `stan-infer bench` differ on one machine.

Runs the same command twice and compares the ratios to eager. Appends one row per engine to
benchmarks/results/.
"""

from __future__ import annotations

from typing import Any

from benchmarks.record import append_rows
from benchmarks.script import options, stan_infer


def main() -> None:
    """Run twice and record."""
    args = options(__doc__, preset="stan-b32", engine="eager,ort,openvino", repeats=20)
    command = ["bench", "--preset", args.preset, "--engine", args.engine, "--no-memory"]
    command += ["--repeats", str(args.repeats)]
    rows: list[dict[str, Any]] = []
    for one, two in zip(stan_infer(*command), stan_infer(*command), strict=True):
        kept = ("model", "engine", "precision", "batch", "frames", "threads")
        row = {k: one[k] for k in kept}
        row |= {"speedups": [one["speedup"], two["speedup"]]}
        row |= {"apart": abs(one["speedup"] / two["speedup"] - 1), "repeats": args.repeats}
        rows.append(row)
        print(row)
    append_rows("repeat", rows)


if __name__ == "__main__":
    main()
