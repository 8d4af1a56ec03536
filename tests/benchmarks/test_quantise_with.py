"""Tools that quantise run on three clips: the same file again, and failures are rows."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks import quantise_with, quantisers
from benchmarks.record import ROOT
from benchmarks.script import write_clips
from examples.motion.evaluate import MODEL
from stan_infer.artefacts.folder import read_artefact
from stan_infer.checkpoints.load import load_model
from stan_infer.export.export_model import export_model
from stan_infer.network.eight_bits import LINEARS
from tests.conftest import python


def test_a_tool_that_is_absent_or_writes_nonsense_is_a_row(tmp_path):
    (tmp_path / "videos").mkdir()
    row = quantisers._run("no such tool", tmp_path, tmp_path / "out")
    assert row == {"clips": 0, "failed": "KeyError: 'no such tool'"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The demo exported in fp32, and three clips."""
    place = tmp_path_factory.mktemp("place")
    export_model(load_model(MODEL), place / "fp32", tower="video")
    write_clips(place / "videos", 3, "train")
    return place


def test_a_run_of_ours_gives_the_same_file_again_and_is_measured(place):
    """Also what a broken file of another tool looks like beside it."""
    found = []
    for i in range(2):
        command = [quantise_with.OURS, place / "fp32", place / "videos", place / f"out{i}"]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.quantise_with", *map(str, command)],
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        assert float(done.stdout) > 100
        found.append((place / f"out{i}" / "video.onnx").read_bytes())
    assert found[0] == found[1]
    (place / "broken.onnx").write_bytes(b"no graph")
    rows = {
        "ours": {"clips": 3, "path": str(place / "out0" / "video.onnx")},
        "broken": {"clips": 3, "path": str(place / "broken.onnx")},
    }
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 64, 64, 3), np.uint8)
    fp32, ours, broken = quantisers._measure(place, rows, pixels, None, batch=2)
    assert fp32["cosine"] == pytest.approx(1) and fp32["speed"] == 1 and fp32["file_ratio"] == 1
    assert 0.99 < ours["cosine"] < 1 and ours["file_ratio"] < 0.5 and ours["speed"] > 0
    assert "ONNX Runtime refuses" in broken["refused"] and "cosine" not in broken


def test_the_way_to_our_graph_imports_no_torch_and_the_graph_is_that_of_the_folder(place):
    code = "import sys; sys.modules['torch'] = None\n"  # an import of it fails
    code += "from benchmarks import quantise_with; quantise_with.main()"
    given = place / "fp32", place / "videos"
    python("-c", code, quantise_with.OURS, *given, place / "bare", cwd=ROOT)
    python("-m", "benchmarks.quantise_with", quantise_with.PROVED, *given, place / "q", cwd=ROOT)
    folder = read_artefact(place / "q")
    assert (place / "bare" / "video.onnx").read_bytes() == folder.read("video.onnx")
    assert folder.manifest["parity"][0]["reference"] == "the same 8 bits in torch"
    lacking = python("-c", code, quantise_with.PROVED, *given, place / "r", code=None, cwd=ROOT)
    assert lacking.returncode and "torch" in lacking.stderr


def test_our_nodes_are_our_linears():
    assert quantise_with._LINEARS == LINEARS


def test_quantize_static_is_run_on_the_same_clips(place):
    quantise_with.TOOLS["quantize_static, MinMax, our nodes"](
        place / "fp32", place / "videos", place / "theirs"
    )
    rows = {"theirs": {"path": str(place / "theirs" / "video.onnx")}}
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 64, 64, 3), np.uint8)
    _, theirs = quantisers._measure(place, rows, pixels, None, batch=1)
    assert 0.98 < theirs["cosine"] < 1
