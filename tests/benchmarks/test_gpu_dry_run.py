"""Whole dry runs of the GPU suite and the tuner, in a copy of the sources, killed at any moment.

The copy has no .git, there is no git, and of all packages only torch, triton and NumPy can be
imported, with what they need themselves.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import models
from benchmarks.gpu.runner import END
from tests.conftest import ROOT

HIDDEN = ["msgspec", "safetensors", "typer", "rich", "onnx", "onnxruntime", "av", "tokenizers"]
HIDDEN += ["ftfy", "open_clip", "huggingface_hub", "matplotlib", "PIL", "pytest", "packaging"]
BLOCKER = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {HIDDEN}:
            return super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


class Copy:
    """A copy of the sources, and programs that run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder / "copy", folder / "out"
        keep = shutil.ignore_patterns("__pycache__", "results")
        for name in ("stan_infer", "benchmarks"):
            shutil.copytree(ROOT / name, self.folder / name, ignore=keep)
        for name in ("hooks", "no-git"):
            (folder / name).mkdir()
        (folder / "hooks" / "sitecustomize.py").write_text(BLOCKER)
        paths = {"PYTHONPATH": str(folder / "hooks"), "PATH": str(folder / "no-git")}
        self.env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | paths

    def start(self, module: str, *words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, "--dry-run", "--out", self.out, *words]
        return subprocess.Popen(
            [*map(str, command)], cwd=self.folder, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finish(self, module: str, *words: object) -> str:
        process = self.start(module, *words)
        out, err = process.communicate()
        assert process.returncode == 0, out[-3000:] + err[-3000:]
        return out

    def kill_and_finish(self, module: str, rows: Path, words: list, *, seed: int, after: float):
        """Kill the program at random moments, each time later, then let it end; its rows."""
        moments, before = random.Random(seed), b""
        for i in range(4):
            process = self.start(module, *words)
            time.sleep(moments.uniform(0.3, 1.0) * after * (i + 1))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            after_kill = rows.read_bytes() if rows.exists() else b""
            kept = before[: before.rfind(b"\n") + 1]
            assert after_kill.startswith(kept), "a row that was written has gone"
            before = after_kill
        self.finish(module, *words)
        found = [json.loads(line) for line in rows.read_text().splitlines()]
        done = [(r["unit"], r["lane"]) for r in found if "failed" not in r]
        assert len(done) == len(set(done)), "a lane that was done was measured again"
        assert rows.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
        assert {r["commit"] for r in found} == {"unknown"} and len(
            {r["sources"] for r in found}
        ) == 1
        return found


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


@pytest.mark.parametrize("seed", [1])
def test_the_suite_is_killed(copy, seed):
    words = ["--part", "headline", "--part", "kernels", "--part", "model", "--part", "tests"]
    rows = copy.out / "stand-in.jsonl"
    found = copy.kill_and_finish("benchmarks.gpu.suite", rows, words, seed=seed, after=12.0)
    newest = {(r["unit"], r["lane"]): r for r in found}
    for part in ("headline", "model"):
        for lane in models.LANES[part]:
            row = newest[f"{part} stan-tiny B=1 T=2", lane]
            assert row["ms_p50"] > 0 and row["max_rel_error"] < models.TOLERANCE["fp8"], row
    # Two lanes that run in one process are timed in turn.
    assert newest["model stan-tiny B=1 T=2", "triton fp8"]["ratios"]
    kernels = [r for r in newest.values() if r["unit"].startswith("kernels")]
    ours = {r["operation"] for r in kernels if r.get("candidate") == "ours" and "ms_p50" in r}
    assert len(ours) == 10, ours
    assert len([r for r in newest.values() if r["lane"] == END]) == 5
    assert all(r["stand_in"] for r in found)
    text = rows.with_suffix(".md").read_text()
    assert "no figure here means anything" in text and "| stan-tiny |" in text
    assert copy.finish("benchmarks.gpu.suite", *words).startswith("A dry run")  # nothing is left


def test_the_tuner_is_killed(copy, tmp_path):
    table = tmp_path / "table.json"
    shutil.copy(ROOT / "stan_infer" / "kernels" / "tuned.json", table)
    words, rows = ["--write", "--table", table], copy.out / "stand-in-tune.jsonl"
    found = copy.kill_and_finish("benchmarks.gpu.tune", rows, words, seed=3, after=6.0)
    units = {r["unit"] for r in found}
    measured = json.loads(table.read_text())["measured"]["cpu"]
    assert sum(map(len, measured.values())) == len(units) == 7
    assert set(measured) == {
        *("linear", "temporal_attention"), *("temporal_qkv_attention", "trunk_attention")
    }  # fmt: skip
    for unit in units:
        rule = [r for r in found if r["unit"] == unit and r["lane"] == "rule"]
        assert "ms_p50" in rule[-1] and rule[-1]["max_rel_error"] < 1e-4, rule
    # Every tile went through the processes that compile, whatever was killed.
    tiles = [r for r in found if r["lane"].startswith("[") and "failed" not in r]
    assert len(tiles) > 10 and {r["compiled"] for r in tiles} == {"ahead"}


def test_the_other_parts(copy):
    words = [w for part in ("ablation", "ort", "trt") for w in ("--part", part)]
    copy.finish("benchmarks.gpu.suite", *words)
    found = [json.loads(line) for line in (copy.out / "stand-in.jsonl").open()]
    newest = {(r["unit"].split()[0], r["lane"]): r for r in found}
    for lane in models.LANES["ablation"]:
        assert newest["ablation", lane]["ms_p50"] > 0
    assert "no engine but ours" in newest["ort", "ort fp16"]["refused"]


def test_a_dry_run_does_not_write_the_shipped_table(copy):
    process = copy.start("benchmarks.gpu.tune", "--write")
    assert "--table FILE" in process.communicate()[1] and process.returncode == 2
