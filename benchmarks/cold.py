"""python -m benchmarks.cold --python RUNTIME/bin/python: one classification in a new process.

Wall time of `stan-infer run FOLDER CLIP` on the exported demo, with the start of the interpreter,
in an environment that has only the extra `runtime` (no torch). Appends one row to
benchmarks/results/.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.record import ROOT, append_rows
from benchmarks.script import options, stan_infer
from stan_infer.checkpoints.load import load_model
from stan_infer.export.export_model import export_model

_TORCH = "import importlib.util as u; print(u.find_spec('torch') is not None)"
_SIZE = (
    "import site, pathlib; print(sum(f.stat().st_size for d in site.getsitepackages() "
    "for f in pathlib.Path(d).rglob('*') if f.is_file() and f.suffix != '.pyc'))"
)


def main() -> None:
    """Measure and record."""
    args = options(__doc__, python=sys.executable, repeats=7)
    demo = ROOT / "examples" / "motion"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "motion"
        export_model(load_model(demo / "motion.safetensors"), out)
        clip = next((demo / "clips").glob("*.mp4"))
        command = ["run", out, clip, "--labels", demo / "labels.txt"]
        seconds = []
        for i in range(args.repeats + 1):
            start = time.perf_counter()
            (record, *_) = stan_infer(*command, python=args.python)
            if i:  # the first one fills the disk's cache
                seconds.append(time.perf_counter() - start)
    row = {
        "engine": record["session"]["engine"],
        "cold_run_s_p50": float(np.median(seconds)),
        "cold_run_s_max": max(seconds),
        "torch_installed": _ask(args.python, _TORCH) == "True",
        "site_packages_mb": int(_ask(args.python, _SIZE)) / 1e6,
        "repeats": args.repeats,
    }
    append_rows("cold", [row])
    print(json.dumps(row, indent=1))


def _ask(python: str, code: str) -> str:
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
