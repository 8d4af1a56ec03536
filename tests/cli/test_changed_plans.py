"""Each command reports a changed plan before it reports that nothing here can run plans."""

import json
import shutil
import sys

import pytest

from stan_infer.artefacts.folder import MANIFEST, sha256
from stan_infer.tensorrt_plans.plan_file import new_plan, sidecar_path
from tests.conftest import flip
from tests.grids import once
from tests.tensorrt_plans.conftest import edit

SIDECAR = {
    "flavor": "tensorrt",
    "precision": "fp32",
    "trt_version": [10, 9, 0, 34],
    "built_on": {"sm": "sm_89"},
    "io": [{"name": "x", "mode": "input", "dtype": "uint8", "shape": [-1]}],
}


@pytest.fixture
def folder(artefact, tmp_path):
    """An exported folder with a plan for each tower, which nothing here can run."""
    folder = shutil.copytree(artefact, tmp_path / "tiny")
    (folder / "engines").mkdir()
    manifest = json.loads((folder / MANIFEST).read_text())
    for role, name, shape in (("video", "video", [1, 8, 64, 64, 3]), ("text", "input_ids", [1, 9])):
        with new_plan(plan_of(folder, role)) as (temporary, sidecar):
            temporary.write_bytes(b"code" * 50)
            sidecar |= SIDECAR | {
                "role": role,
                "profiles": [{name: [shape] * 3}],
                "onnx_sha256": manifest["files"][f"{role}.onnx"]["sha256"],
                "manifest_sha256": sha256(folder / MANIFEST),
            }
    return folder


def plan_of(folder, role):
    return folder / "engines" / f"{role}.fp32.trt-sm_89.plan"


CHANGES = {
    "hash": flip,
    "size": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "origin": lambda path: edit(path, onnx_sha256="0" * 64),
    "export": lambda path: edit(path, manifest_sha256="0" * 64),
    "sidecar": lambda path: edit(path, profiles=3),
    "no sidecar": lambda path: sidecar_path(path).unlink(),
}


def commands(folder, videos, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("video,text\nclip0,a dog\n")
    trt = ("--engine", "trt")
    data = ("--dataset", "retrieval", "--annotations", labels, "--videos", videos)
    return {
        "run": ("run", folder, *sorted(videos.iterdir())[:1], "--text", "a dog", *trt),
        "embed": ("embed", folder, videos, "-o", tmp_path / "out.npz", *trt),
        "eval": ("eval", folder, *data, "--allow-missing", *trt),
        "bench": ("bench", folder, *trt, "--repeats", "1", "--frames", "2"),
        "verify": ("verify", folder, plan_of(folder, "video")),
        "bench of a plan": ("bench", plan_of(folder, "video"), "--repeats", "1", "--frames", "2"),
    }


@pytest.mark.parametrize("has_torch", [True, False])
def test_sound_plans_are_told_what_is_missing(
    cli, folder, videos, tmp_path, monkeypatch, has_torch
):
    if not has_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    for command in commands(folder, videos, tmp_path).values():
        cli(*command, code=3)


@once(change=list(CHANGES), role=["video", "text"], has_torch=[True, False])
def test_a_changed_plan_comes_first(
    cli, folder, videos, tmp_path, monkeypatch, change, role, has_torch
):
    CHANGES[change](plan_of(folder, role))
    if not has_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    for name, command in commands(folder, videos, tmp_path).items():
        done = cli(*command, code=(2, 4))
        assert "plan" in done.err and "needs an NVIDIA GPU" not in done.err, (name, done)
