"""What export promises: axes that stay dynamic, proof before the folder, nothing half-written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from stan_infer.errors import CheckError, InputError
from stan_infer.export import export_model, to_onnx
from stan_infer.model import Stan, init_random
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "tiny"
    export_model(tiny_model, out)
    return out


def test_both_axes_are_dynamic_and_only_standard_operators_are_used(folder):
    model = onnx.load(folder / "video.onnx")
    (video,) = model.graph.input
    dims = [d.dim_param or d.dim_value for d in video.type.tensor_type.shape.dim]
    assert dims == ["batch", "frames", 16, 16, 3]
    assert {n.domain for n in model.graph.node} == {""}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    norms = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    # ln_pre and ln_post; two per trunk layer; four per branch layer, whose MLP runs apart on the
    # class token, but for the last patches: nothing reads them, so nothing computes them.
    assert len(norms) == 2 + 2 * 3 + 4 * 2 - 1


def test_the_manifest_says_what_was_measured(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {g["role"] for g in manifest["graphs"]} == {"video", "text"}
    for parity in manifest["parity"]:
        assert parity["pass"] and 0 <= parity["max_rel"] < 1e-5
    cases = manifest["parity"][0]["cases"]
    assert [2, 3] in cases and [1, 64] in cases and [1, 1] in cases
    assert str(folder.parent) not in json.dumps(manifest)


def test_conv_branch_exports(tmp_path):
    model = init_random(Stan(tiny_config(branch="conv", text_layers=0))).eval()
    artefact = export_model(model, tmp_path / "conv")
    assert artefact.graph("text") is None


def test_a_graph_that_differs_is_refused_and_nothing_is_left(tiny_model, tmp_path, monkeypatch):
    class Wrong(to_onnx.VideoGraph):
        def forward(self, video):
            mean, frames = super().forward(video)
            return mean * 1.001, frames

    monkeypatch.setattr(to_onnx, "_export_video", _with(Wrong, to_onnx._export_video))
    with pytest.raises(CheckError, match="video.onnx: outputs differ.*nothing was written"):
        export_model(tiny_model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def _with(graph, function):
    def run(*args):
        original, to_onnx.VideoGraph = to_onnx.VideoGraph, graph
        try:
            return function(*args)
        finally:
            to_onnx.VideoGraph = original

    return run


def test_a_baked_axis_is_refused(tiny_model, tmp_path, monkeypatch):
    original = to_onnx._export

    def bake(module, example, name, axes, outputs, folder, dims):
        return original(module, example, name, {}, outputs, folder, dims)

    monkeypatch.setattr(to_onnx, "_export", bake)
    with pytest.raises(CheckError, match="must be dynamic"):
        export_model(tiny_model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_nan_does_not_pass_as_equal():
    class Session:
        def get_providers(self):
            return ["CPUExecutionProvider"]

    bad = np.array([[1.0, np.nan]], np.float32)
    with pytest.raises(CheckError, match="differ from the model by nan"):
        to_onnx._parity("x", Session(), [(1, 1)], [((torch.ones(1, 2),), [bad])])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onxx"}, "did you mean 'onnx'"),
        ({"precision": "fp16"}, "no precision 'fp16'"),
        ({"input": "unit8"}, "did you mean 'uint8'"),
    ],
)
def test_mistyped_words(tiny_model, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        export_model(tiny_model, tmp_path / "x", **options)


@pytest.mark.parametrize(
    ("name", "text"),
    [("manifest.json", '{"name": "a browser extension"}'), ("notes.txt", "years of work")],
)
def test_a_folder_of_the_users_is_never_replaced(tiny_model, folder, tmp_path, name, text):
    """Neither another tool's manifest.json nor an export with a file of the user's beside it."""
    out = tmp_path / "out"
    if name == "manifest.json":
        out.mkdir()
    else:
        shutil.copytree(folder, out)
    (out / name).write_text(text)
    before = sorted(p.name for p in out.iterdir())
    with pytest.raises(InputError, match="will not be replaced"):
        export_model(tiny_model, out)
    assert (out / name).read_text() == text
    assert sorted(p.name for p in out.iterdir()) == before
