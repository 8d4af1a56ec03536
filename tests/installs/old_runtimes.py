"""Run exported graphs of every opset in old versions of ONNX Runtime, each in its own environment.

`python -m tests.installs.old_runtimes`. Every graph must run, with the right numbers, in each
version from the one on that stan_infer.artefacts.opsets gives, and the video graph in none before.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.version import Version

import stan_infer as si
from stan_infer.artefacts.opsets import OPSETS
from stan_infer.export.export_model import export_model
from stan_infer.network.model import Stan, init_random
from tests.conftest import tiny_config
from tests.installs.__main__ import AT_ONCE, MOTION, call
from tests.installs.pythons import ROOT, find

PYTHON = "3.11"  # the oldest declared; its wheels of ONNX Runtime begin with 1.15
# Each oldest version, and the one before it.
VERSIONS = ("1.15", "1.16", "1.17", "1.18", "1.20", "1.21", "1.22", "1.23", "1.24")
NUMPY = "numpy<2"  # which ONNX Runtime before 1.19 was built against
TOLERANCE, FP16 = 1e-5, 1e-2  # versions add in other orders


def export_all(folder: Path) -> None:
    """Every opset, and of 18 and 20 every kind of graph; folders are named by both, as 18-conv."""
    tiny, conv = (init_random(Stan(tiny_config(branch=b))).eval() for b in ("selfattn", "conv"))
    demo = si.load_model(MOTION / "motion.safetensors")
    mug = Stan(demo.config.replace({"head": "mug"})).eval()
    mug.load_state_dict(demo.state_dict())
    labels = (MOTION / "labels.txt").read_text().splitlines()
    classes = {"head": "classify", "labels": labels}
    for opset in OPSETS:
        for name, model, options in (
            ("mug", mug, classes),
            ("conv", conv, {}),
            ("free", tiny, {}),
            ("fixed", tiny, {"batch": 2, "frames": 6}),
            ("float", tiny, {"input": "float"}),
            ("fp16", tiny, {"precision": "fp16"}),
            ("classes", demo, classes),
        )[: 7 if opset in (18, 20) else 2]:
            export_model(model, folder / f"{opset}-{name}", opset=opset, **options)


def faults(folder: Path, version: str, python: str) -> Iterator[str]:
    """What is wrong with how the graphs in `folder` run in one version of ONNX Runtime."""
    place = folder.with_name(f"onnxruntime-{version}")
    call([python, "-m", "venv", "--without-pip", place], folder)
    pip = [sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install"]
    call([*pip, "--quiet", f"onnxruntime=={version}.*", NUMPY], folder)
    words = [place / "bin" / "python", "-P", ROOT / "tests" / "installs" / "run_graphs.py"]
    done = subprocess.run(
        [*map(str, words), *map(str, sorted(folder.iterdir()))], capture_output=True, text=True
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if len(rows) != len(list(folder.glob("*/*.onnx"))):
        yield f"the graphs were not all run: {done.stderr[-300:]}"
    for row in rows:
        path = Path(row["graph"])
        opset, name = path.parent.name.split("-")
        title = f"{path.parent.name}/{path.name}"
        should = Version(version) >= Version(OPSETS[int(opset)].onnxruntime)
        if should and not row.get("error", 1) <= (FP16 if name == "fp16" else TOLERANCE):
            yield f"{title}: {row.get('refused', row.get('error'))}"
        if not should and path.stem == "video" and "error" in row:
            yield f"{title} runs, although the table says {OPSETS[int(opset)].onnxruntime}"


def main() -> None:
    python, wrong = find([PYTHON])[PYTHON], 0
    with tempfile.TemporaryDirectory(prefix="runtimes-") as name:
        folder = Path(name) / "graphs"
        folder.mkdir()
        export_all(folder)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            each = pool.map(lambda version: list(faults(folder, version, python)), VERSIONS)
            for version, found in zip(VERSIONS, each, strict=True):
                wrong += len(found)
                said = "; ".join(found) or "as the table says"
                print(f"ONNX Runtime {version}: {said}", flush=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
