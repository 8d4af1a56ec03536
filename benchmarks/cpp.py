"""python -m benchmarks.cpp --python RUNTIME/bin/python: the C++ library beside the Python package.

Both take the exported demo and ONNX Runtime, in turn. `start`: whole processes, `stan_classify` and
`stan-infer run`, from nothing to the scores of one clip. `clips`, `film`: from a file to its
embedding in a process that is warm, on the demo's clips and on a minute of 1080p, the latter with
one thread, too: the C++ library decodes with as many threads as the model has, a reader of the
Python package with one. The embeddings must agree. `size`: the stripped program for frames in
memory, with neither FFmpeg nor texts. Needs what cpp/setup-debian.sh installs. Appends rows to
benchmarks/results/.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embed import write_film
from benchmarks.record import ROOT, append_rows
from benchmarks.script import options, stan_infer
from stan_infer.checkpoints.load import load_model
from stan_infer.export.export_model import export_model

MIN_COSINE = 0.9999
_DEMO = ROOT / "examples" / "motion"
_TORCH = "import importlib.util as u; print(u.find_spec('torch') is not None)"
Pair = dict[str, list[float]]


def build(source: Path, out: Path, prefix: Path, *settings: str) -> Path:
    """Compile a project, which finds what is installed under `prefix`; return its folder."""
    found = [f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_INSTALL_PREFIX={prefix}"]
    _done("cmake", "-S", source, "-B", out, *found, *(f"-D{s}" for s in settings))
    _done("cmake", "--build", out, "-j", str(os.cpu_count()))
    return out


def installed(place: Path, *settings: str) -> Path:
    """Compile and install the library and its program; return the prefix."""
    _done("cmake", "--install", build(ROOT / "cpp", place / "build", place / "prefix", *settings))
    return place / "prefix"


def loop_program(prefix: Path) -> Path:
    """Compile embed_loop.cpp with what is installed."""
    folders = ":".join(str(path) for path in prefix.glob("lib*/**/pkgconfig"))
    words = ("pkg-config", "--cflags", "--libs", "stan_infer")
    flags = _done(*words, PKG_CONFIG_PATH=folders).split()
    source, out = ROOT / "benchmarks" / "embed_loop.cpp", prefix / "embed_loop"
    _done("c++", "-std=c++17", "-O2", source, *flags, "-o", out)
    return out


def size_row(place: Path) -> dict[str, Any]:
    """The size of the example for frames in memory, with nothing else in the library."""
    parts = [f"STAN_INFER_{part}=OFF" for part in ("FFMPEG", "TEXTS", "OPENSSL", "PROGRAM")]
    out = build(ROOT / "examples" / "cpp", place / "examples", installed(place, *parts))
    _done("strip", out / "classify_frames")
    return {"measure": "size", "bytes": (out / "classify_frames").stat().st_size}


def in_turn(runs: dict[str, Callable[[], float]], rounds: int) -> Pair:
    """The seconds of each run, of all rounds but the first, which fills the disk's cache."""
    seconds: Pair = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            taken = run()
            if i:
                seconds[name].append(taken)
    return seconds


def row_of(measure: str, seconds: Pair, videos: int) -> dict[str, Any]:
    """Medians for one video, and of the ratios of each round."""
    ratios = [b / a for a, b in zip(seconds["cpp"], seconds["python"], strict=True)]
    return {
        "measure": measure,
        "videos": videos,
        "cpp_s_p50": statistics.median(seconds["cpp"]) / videos,
        "python_s_p50": statistics.median(seconds["python"]) / videos,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "rounds": len(ratios),
    }


def start_row(prefix: Path, model: Path, rounds: int, python: str) -> dict[str, Any]:
    """From nothing to the scores of one clip."""
    clip = next((_DEMO / "clips").glob("*.mp4"))

    def cpp() -> object:
        return _done(prefix / "bin" / "stan_classify", model, clip, "--json")

    def package() -> object:
        return stan_infer("run", model, clip, "--labels", _DEMO / "labels.txt", python=python)

    seconds = in_turn({"cpp": lambda: _seconds(cpp), "python": lambda: _seconds(package)}, rounds)
    torch = _done(python, "-c", _TORCH).strip() == "True"
    return {**row_of("start", seconds, 1), "torch_installed": torch}


def clips_row(
    measure: str, program: Path, model: Path, videos: Sequence[Path], rounds: int, threads: int
) -> dict[str, Any]:
    """From files to embeddings; of each process the second pass counts."""
    loops = {"cpp": [program], "python": [sys.executable, "-m", "benchmarks.embed_loop"]}
    found: dict[str, np.ndarray] = {}

    def timed(name: str) -> float:
        lines = _done(*loops[name], model, str(threads), "2", *videos).splitlines()
        found[name] = np.array([line.split() for line in lines[1:]], np.float64)
        return float(lines[0].split()[1])

    seconds = in_turn({name: partial(timed, name) for name in loops}, rounds)
    a, b = found["cpp"], found["python"]
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > MIN_COSINE, f"embeddings differ: smallest cosine {cosine.min():.6f}"
    row = row_of(measure, seconds, len(videos))
    return {**row, "threads": threads, "min_cosine": float(cosine.min())}


def _done(*command: str | Path, **environment: str) -> str:
    spec = importlib.util.find_spec("onnxruntime")
    assert spec and spec.origin
    (library,) = Path(spec.origin).parent.glob("capi/libonnxruntime.so.*")
    ours = {"STAN_INFER_ORT_LIBRARY": str(library), **environment}
    done = subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | ours
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure and record."""
    args = options(
        __doc__,
        python=sys.executable,
        only=("start", "clips", "film", "size"),
        rounds=9,
        threads=os.cpu_count() or 1,
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        labels = (_DEMO / "labels.txt").read_text().split("\n")
        model = place / "model"
        export_model(
            load_model(_DEMO / "motion.safetensors"), model, labels=[*filter(None, labels)]
        )
        prefix = installed(place / "whole")
        program = loop_program(prefix)
        for measure in args.only:
            threads = [args.threads]
            videos = sorted((_DEMO / "clips").glob("*.mp4"))
            if measure == "film":
                threads = sorted({1, args.threads}, reverse=True)
                videos = [place / "film.mp4"]
                write_film(videos[0])
            if measure == "size":
                rows = [size_row(place / "small")]
            elif measure == "start":
                rows = [start_row(prefix, model, args.rounds, args.python)]
            else:
                rows = [clips_row(measure, program, model, videos, args.rounds, n) for n in threads]
            append_rows("cpp", rows)
            print(*map(json.dumps, rows), sep="\n")


if __name__ == "__main__":
    main()
