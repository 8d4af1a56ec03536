"""Install the wheel on every declared Python, with the lowest and the newest packages, and use it.

`python -m tests.installs` for extra `runtime`, `--extra cpu` for that. Environments are made by
venv and pip; the lowest versions are the lower bounds of the wheel's own metadata. An exported
folder and its results come from the environment that runs this; every install must give the same.
"""

import argparse
import csv
import email
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.system.packages import requirements
from tests.installs.pythons import ROOT, declared, find

MOTION = ROOT / "examples" / "motion"
CHECKPOINT, CLIPS = MOTION / "motion.safetensors", MOTION / "clips"
# Of the largest value. Versions of ONNX Runtime add in other orders (fp32); a decoder may round a
# colour otherwise, which the demo's clips, drawn in flat colours, hardly show.
TOLERANCE = 1e-4
# Bytes of site-packages; ONNX Runtime, PyAV (FFmpeg) and numpy (OpenBLAS) make up most of it.
MAX_RUNTIME = 400e6
AT_ONCE = 2


@dataclass(frozen=True)
class Case:
    python: str
    version: str
    bounds: str  # "lowest" or "newest"


@dataclass(frozen=True)
class Materials:
    """What every install is given. expected: results of the environment that runs this."""

    wheel: Path
    exported: Path
    csvs: dict[str, Path]
    expected: dict[str, Any]


class Failed(Exception):
    """An install does not do what it must."""


def call(words: list[Any], cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=cwd, env=env)
    if done.returncode:
        shown = " ".join(str(w) for w in words)
        text = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise Failed(f"exit code {done.returncode}: {shown}\n{text}")
    return done.stdout


def build_wheel(folder: Path) -> Path:
    ignore = shutil.ignore_patterns(".venv", ".git", "build", "*.egg-info", "out", ".*_cache")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=ignore)
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder]
    call([*build, folder / "source"], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def lowest(wheel: Path, extra: str, version: str) -> list[str]:
    """`name==bound` of every package that the wheel needs with an extra on a version of Python."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    here = {"python_version": version, "python_full_version": f"{version}.0"}
    found = []
    for requirement in requirements(lines, ("", extra), here):
        bounds = [s.version for s in requirement.specifier if s.operator == ">="]
        if len(bounds) != 1:
            raise Failed(f"{requirement} has no lower bound")
        found.append(f"{requirement.name}=={bounds[0]}")
    return found


def results(command: list[Any], exported: Path, csvs: dict[str, Path], cwd: Path, env: Any) -> Any:
    """What `run`, `embed` and `eval` give for the demo's exported folder, as numbers."""
    labels = MOTION / "labels.txt"
    out = call([*command, "run", exported, CLIPS, "--labels", labels, "--json"], cwd, env)
    found: dict[str, Any] = {}
    for line in out.splitlines():
        record = json.loads(line)
        scores = sorted(record["scores"], key=lambda s: s["text"])
        found[f"run {Path(record['video']).name}"] = np.array([s["score"] for s in scores])
    call([*command, "embed", exported, CLIPS, "-o", cwd / "e.npz"], cwd, env)
    found["embed"] = np.load(cwd / "e.npz")["embeddings"]
    for dataset, path in csvs.items():
        options = ["--dataset", dataset, "--annotations", path, "--videos", CLIPS, "--json"]
        record = json.loads(call([*command, "eval", exported, *options], cwd, env))
        found[f"eval {dataset}"] = record["figures"]
    return found


def compare(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference, of the largest value; raises Failed beyond TOLERANCE."""
    if found.keys() != expected.keys():
        raise Failed(f"results are {sorted(found)}, not {sorted(expected)}")
    worst = 0.0
    for name, wanted in expected.items():
        if isinstance(wanted, dict):
            if found[name] != wanted:
                raise Failed(f"{name}: {found[name]}, not {wanted}")
            continue
        off = float(np.abs(found[name] - wanted).max() / np.abs(wanted).max())
        if not off <= TOLERANCE:
            raise Failed(f"{name} is off by {off:.1e} of the largest value; allowed: {TOLERANCE}")
        worst = max(worst, off)
    return worst


def check_doctor(command: list[Any], cwd: Path, env: dict[str, str]) -> dict[str, str]:
    record = json.loads(call([*command, "doctor", "--json"], cwd, env))
    for row in record["decoders"] + record["engines"]:
        if (row["name"], row["device"]) in (("pyav", "cpu"), ("ort", "cpu")) and not row["works"]:
            raise Failed(f"doctor: {row['name']} does not work: {row['reason']}")
    return {k: v for k, v in record["versions"].items() if v}


def use_cpu(command: list[Any], cwd: Path, env: dict[str, str]) -> None:
    """What extra `cpu` adds: eager, export, verify, calibrate."""
    call([*command, "run", CHECKPOINT, CLIPS, "--labels", MOTION / "labels.txt"], cwd, env)
    call([*command, "export", CHECKPOINT, "-o", "fused"], cwd, env)
    call([*command, "export", CHECKPOINT, "-o", "plain", "--graph", "reference"], cwd, env)
    call([*command, "verify", CHECKPOINT, "fused"], cwd, env)
    call([*command, "calibrate", "fused", "--videos", CLIPS, "-o", "int8", "--force"], cwd, env)


def size_of(python: Path) -> float:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = call([python, "-P", "-c", code], python.parent).strip()
    files = (os.path.join(place, f) for place, _, names in os.walk(folder) for f in names)
    return sum(os.path.getsize(f) for f in files if "__pycache__" not in f)


def try_case(case: Case, extra: str, given: Materials, folder: Path) -> str:
    """Install and use one case; returns what is worth telling, raises Failed."""
    start = time.monotonic()
    place, home = folder / "env", folder / "home"
    home.mkdir(parents=True)
    call([case.python, "-m", "venv", "--without-pip", place], folder)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    pins = lowest(given.wheel, extra, case.version) if case.bounds == "lowest" else []
    # A PYTHONPATH to a checkout would look like an install.
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    call([*pip, f"{given.wheel}[{extra}]", *pins], folder, env)
    installed, size = time.monotonic() - start, size_of(python)
    env = {k: v for k, v in env.items() if not k.startswith("PIP_")}
    env |= {"HOME": str(home), "PATH": f"{place / 'bin'}{os.pathsep}{env['PATH']}"}
    command = [place / "bin" / "stan-infer"]
    versions = check_doctor(command, home, env)
    off = compare(results(command, given.exported, given.csvs, home, env), given.expected)
    if extra == "cpu":
        use_cpu(command, home, env)
    else:
        if size > MAX_RUNTIME:
            raise Failed(f"site-packages has {size / 1e6:.0f} MB; allowed: {MAX_RUNTIME / 1e6:.0f}")
        words = [CHECKPOINT, given.exported, CLIPS, MOTION / "labels.txt"]
        sweep = ROOT / "tests" / "installs" / "sweep.py"
        call([python, "-P", sweep, *words, given.csvs["recognition"]], home, env)
    return (
        f"off by {off:.0e}, {size / 1e6:.0f} MB, installed in {installed:.0f} s, all in "
        f"{time.monotonic() - start:.0f} s: {', '.join(f'{k} {v}' for k, v in versions.items())}"
    )


def write_csvs(folder: Path) -> dict[str, Path]:
    found = {}
    clips = sorted(p.name for p in CLIPS.glob("*.mp4"))
    # blue_square_moves_up.mp4: the motion is its last words.
    labels = [line for line in (MOTION / "labels.txt").read_text().splitlines() if line]
    named = [next(k for k in labels if c[:-4].endswith(k[8:].replace(" ", "_"))) for c in clips]
    for dataset, column in (("recognition", "label"), ("retrieval", "text")):
        found[dataset] = folder / f"{dataset}.csv"
        with open(found[dataset], "w", newline="") as f:
            csv.writer(f).writerows([("video", column), *zip(clips, named, strict=True)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", default="runtime", choices=["runtime", "cpu"])
    parser.add_argument("--versions", default=",".join(declared()), help="3.11,3.13")
    parser.add_argument("--bounds", default="lowest,newest")
    args = parser.parse_args()
    pythons = find(args.versions.split(","))
    cases = [Case(p, v, b) for v, p in pythons.items() for b in args.bounds.split(",")]
    with tempfile.TemporaryDirectory(prefix="installs-") as name:
        folder = Path(name)
        own = [sys.executable, "-m", "stan_infer"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        call([*own, "export", CHECKPOINT, "-o", folder / "motion", "--split"], folder, env)
        csvs = write_csvs(folder)
        expected = results(own, folder / "motion", csvs, folder, env)
        given = Materials(build_wheel(folder), folder / "motion", csvs, expected)

        def attempt(case: Case) -> bool:
            title = f"Python {case.version}, {case.bounds}"
            place = folder / f"{case.version}-{case.bounds}"
            try:
                print(f"{title}: {try_case(case, args.extra, given, place)}", flush=True)
                return True
            except Failed as e:
                print(f"{title}: FAILED: {e}", flush=True)
                return False
            finally:
                shutil.rmtree(place, ignore_errors=True)  # cpu: several GB each

        with ThreadPoolExecutor(1 if args.extra == "cpu" else AT_ONCE) as pool:
            passed = list(pool.map(attempt, cases))
    print(f"{sum(passed)} of {len(cases)} installs of extra {args.extra} work")
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
