"""What only engine openvino has: its devices, arithmetic and errors."""

import json
import os
import re
import sys
import threading

import numpy as np
import onnx.parser
import openvino
import pytest

import stan_infer as si
from stan_infer.engines import ov_session
from stan_infer.errors import InputError, MissingError
from stan_infer.system.packages import install_command
from tests.conftest import clips, python, relative_error

FP32 = 1e-5
BF16 = 5e-2  # of the largest value; 1.2e-2 was measured on B/32


def open_ov(folder, **options):
    return si.open_session(folder, engine="openvino", **options)


ATTENTION = """<ir_version: 10, opset_import: ["": 20]>
attention (float[?, 2, ?, 64] q, float[?, 2, 64, ?] k, float[?, 2, ?, 64] v)
=> (float[?, 2, ?, 64] y) {
    s = MatMul(q, k)
    p = Softmax <axis = -1> (s)
    y = MatMul(p, v)
}"""


@pytest.mark.parametrize("first", [1, 2, 8])
def test_the_first_length_changes_nothing_for_the_next(first):
    """OpenVINO's fused attention, first run with one row, was wrong by a factor of 30 for 8."""
    graph = ov_session.OvGraph.open(
        onnx.parser.parse_model(ATTENTION).SerializeToString(), threads=1
    )
    rng = np.random.default_rng(0)
    for n in (first, 1, 7, 8, 9, 16, 17, 32, 64, 1, 12):
        q, v = rng.standard_normal((2, 16, 2, n, 64), np.float32)
        k = rng.standard_normal((16, 2, 64, n), np.float32)
        weights = np.exp(q @ k)
        wanted = (weights / weights.sum(-1, keepdims=True)) @ v
        assert relative_error(graph.run({"q": q, "k": k, "v": v})["y"], wanted) < FP32, n


def test_describe_tells_what_runs(folder):
    record = open_ov(folder, threads=1).describe()
    assert record == {
        **{"engine": "openvino", "device": "cpu", "precision": "fp32", "provider": "CPU"},
        **{"arithmetic": "f32", "openvino": openvino.__version__, "threads": 1},
    }


def test_bf16_runs_in_bf16_or_says_why_not(folder, tiny_model):
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(MissingError, match="has no bf16 arithmetic"):
            open_ov(folder, precision="bf16")
        return
    session, video = open_ov(folder, precision="bf16"), clips(2, 5, 16)
    assert {k: session.describe()[k] for k in ("precision", "arithmetic")} == {
        "precision": "bf16",
        "arithmetic": "bf16",
    }
    wanted = si.open_session(tiny_model).embed_video(video)
    assert FP32 < relative_error(session.embed_video(video), wanted) < BF16


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("cuda", InputError, r"device 'cuda' is unknown.*\(cpu, gpu, gpu:1\)"),
        ("CPU", InputError, "did you mean 'cpu'"),
        ("gpu:x", InputError, "unknown"),
        ("cpu:1", InputError, "unknown"),
        ("", InputError, "unknown"),
        ("gpu:7", MissingError, "device 'gpu:7' is not here: OpenVINO finds CPU"),
    ],
)
def test_devices(folder, device, error, message):
    with pytest.raises(error, match=message):
        open_ov(folder, device=device)


def test_a_gpu_that_is_not_here(folder):
    if any(name.startswith("GPU") for name in openvino.Core().available_devices):
        pytest.skip("a GPU is here: nothing is missing")
    with pytest.raises(MissingError, match="use --device cpu"):
        open_ov(folder, device="gpu")


def test_a_missing_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingError, match=re.escape(install_command("openvino"))):
        open_ov(folder)


@pytest.mark.parametrize("setting", ["SNIPPETS_MODE", "CPU_RUNTIME_CACHE_CAPACITY"])
def test_a_release_that_no_longer_takes_the_setting(folder, monkeypatch, setting):
    class Core(openvino.Core):
        def compile_model(self, model, name, settings):
            raise RuntimeError(f"NotFound: Unsupported property {setting}")

    monkeypatch.setattr(openvino, "Core", Core)
    with pytest.raises(MissingError, match=f"no longer has the setting {setting}"):
        open_ov(folder)


def test_bytes_that_are_no_graph():
    for data in (b"junk" * 100, b"<?xml version='1.0'?><net/>"):
        with pytest.raises(InputError, match="OpenVINO refuses the graph"):
            ov_session.compiled_model(data)


@pytest.mark.parametrize("given", [None, *ov_session._PRIMITIVES])
def test_onednn_keeps_few_primitives_unless_the_user_says_how_many(monkeypatch, given):
    """The variable is there while a model is compiled, and not for torch, which reads it, too."""
    name, seen = ov_session._PRIMITIVES[0], []

    class Core(openvino.Core):
        def compile_model(self, model, place, settings):
            seen.append((os.environ.get(name), settings["CPU_RUNTIME_CACHE_CAPACITY"]))
            return super().compile_model(model, place, settings)

    for n in ov_session._PRIMITIVES:
        monkeypatch.delenv(n, raising=False)
    if given:
        monkeypatch.setenv(given, "7")
    monkeypatch.setattr(openvino, "Core", Core)
    graph = onnx.parser.parse_model(ATTENTION).SerializeToString()
    ov_session.compiled_model(graph)
    few = str(ov_session._KEPT_PRIMITIVES)
    assert seen == [({None: few, name: "7"}.get(given), ov_session._KEPT_ENTRIES)]
    assert os.environ.get(name) == ("7" if given == name else None)


SHAPES = """
import json, sys
from benchmarks.shapes import grow, random_shapes
print(json.dumps(grow(sys.argv[1], "openvino", 1, random_shapes(200, 20, 12))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_kept_for_shapes_is_bounded(folder):
    """It was kept for every shape: memory grew to 2.5 times that after 20."""
    seen = json.loads(python("-c", SHAPES, folder).stdout)
    assert seen["growth"] <= 1.3, seen


def test_threads_of_the_caller_may_share_a_session(folder):
    session, errors = open_ov(folder), []
    videos = [clips(1, t, 16, seed=t) for t in (2, 5, 9, 12)]
    wanted = [session.embed_video(v) for v in videos]

    def work(i):
        for _ in range(20):
            errors.append(not np.array_equal(session.embed_video(videos[i]), wanted[i]))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert len(errors) == 80
    assert not any(errors)
