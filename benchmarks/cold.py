"""python -m benchmarks.cold --python RUNTIME/bin/python: a first classification, from nothing.

Wall time of `stan-infer run FOLDER CLIP` on the exported demo, start of the interpreter included,
in an environment that has the `runtime` extra alone (no torch). Appends one row to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.record import ROOT, append_rows
from stan_infer.checkpoints.load import load_model
from stan_infer.export.export_model import export_model

_TORCH = "import importlib.util as u; print(u.find_spec('torch') is not None)"
_SIZE = (
    "import site, pathlib; print(sum(f.stat().st_size for d in site.getsitepackages() "
    "for f in pathlib.Path(d).rglob('*') if f.is_file() and f.suffix != '.pyc'))"
)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    demo = ROOT / "examples" / "motion"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "motion"
        export_model(load_model(demo / "motion.safetensors"), out)
        clip = next((demo / "clips").glob("*.mp4"))
        command = [args.python, "-m", "stan_infer", "run", str(out), str(clip)]
        command += ["--labels", str(demo / "labels.txt"), "--json"]
        seconds = []
        for i in range(args.repeats + 1):
            start = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            if i:  # the first one fills the disk's cache
                seconds.append(time.perf_counter() - start)
        session = json.loads(done.stdout)["session"]
    row = {
        "engine": session["engine"],
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
