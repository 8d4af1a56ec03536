"""python -m benchmarks.load: seconds and peak memory of loading a checkpoint, seconds of --help.

Writes a checkpoint in the authors' layout with random weights, then loads it in a new process.
Peak memory is the largest resident size of that process, less its size when torch was imported and
nothing loaded. Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import append_rows
from benchmarks.script import options
from stan_infer.checkpoints.authors import author_names
from stan_infer.checkpoints.presets import preset
from stan_infer.config import StanConfig
from stan_infer.network.model import Stan, init_random

_CHILD = """
import json, re, sys, time
import torch
import stan_infer.checkpoints.load, stan_infer.network.model
# Not getrusage, whose peak a child process inherits from its parent.
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
start = time.perf_counter()
if len(sys.argv) > 1:
    model = stan_infer.checkpoints.load.load_model(sys.argv[1])
print(json.dumps({"seconds": time.perf_counter() - start, "before": before, "peak": peak()}))
"""


def write_authors_checkpoint(path: Path, config: StanConfig) -> None:
    """Write seeded random weights with the key names and the nesting of the authors' trainer."""
    model = init_random(Stan(config))
    state: dict[str, torch.Tensor] = {}
    for name, origin in author_names(config, "backbone.", "text_backbone.", "STAN").items():
        value = model.state_dict()[name]
        parts = value.chunk(3) if origin.how == "rows" else [value]
        for key, part in zip(origin.keys, parts, strict=True):
            state[key] = (part.T if origin.how == "transpose" else part).contiguous().clone()
    torch.save({"meta": {"epoch": 1}, "state_dict": state, "message_hub": {}}, path)


def measure_load(path: Path) -> dict[str, Any]:
    """Load `path` in a new process and return its seconds and peak memory."""
    command = [sys.executable, "-c", _CHILD, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    child = json.loads(done.stdout)
    size = path.stat().st_size
    return {
        "load_s": child["seconds"],
        "file_mib": size / 2**20,
        "peak_over_file": (child["peak"] - child["before"]) / size,
        "peak_mib_with_torch": child["peak"] / 2**20,
    }


def measure_help(repeats: int) -> dict[str, Any]:
    """Time `stan-infer --help` as a whole process."""
    command = [sys.executable, "-m", "stan_infer", "--help"]
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return {"help_s_p50": statistics.median(times[1:]), "help_s_max": max(times[1:])}


def main() -> None:
    """Measure and record."""
    args = options(__doc__, presets=("stan-b32", "stan-b16"), repeats=3)
    for name in args.presets:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pth"
            write_authors_checkpoint(path, preset(name))
            runs = [measure_load(path) for _ in range(args.repeats)]
        row = {k: statistics.median(r[k] for r in runs) for k in runs[0]}
        row["load_s_max"] = max(r["load_s"] for r in runs)
        row["peak_over_file_max"] = max(r["peak_over_file"] for r in runs)
        append_rows("load", [{"model": name, "repeats": args.repeats, **row}])
        print(json.dumps(row))
    row = measure_help(7)
    append_rows("startup", [row])
    print(json.dumps(row))


if __name__ == "__main__":
    main()
