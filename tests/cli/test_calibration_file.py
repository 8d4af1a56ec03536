"""calibration.json: the same scales in torch, graph and kernels; refused for another model."""

import dataclasses
import json
import math

import numpy as np
import onnx
import pytest
import torch

import stan_infer as si
from stan_infer.artefacts.calibration_file import fp8_scales, read_calibration
from stan_infer.checkpoints.load import save_model
from stan_infer.engines import triton_session
from stan_infer.engines.triton_session import TritonSession
from stan_infer.errors import InputError
from stan_infer.export.provenance import provenance
from stan_infer.network.eight_bits import quantise_linear
from stan_infer.network.fold import fold_video
from stan_infer.network.folded import linears
from stan_infer.network.kernel_weights import Fp8Linear
from stan_infer.network.torch_ops import in_numpy
from stan_infer.quantisation.calibrate import calibrate
from stan_infer.quantisation.options import CalibrationOptions
from tests.conftest import quicken
from tests.engines.fake_cuda import FakeCuda
from tests.exported import exported


@pytest.fixture
def kernels_here(monkeypatch):
    """A machine where the kernels are said to run; device "cuda" is the CPU."""
    monkeypatch.setattr(triton_session, "unavailable", lambda device: None)
    monkeypatch.setattr(triton_session, "torch_device", lambda device: torch.device("cpu"))


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_model(tiny_model, path)
    return path


@pytest.fixture(scope="module")
def calibrated(checkpoint, videos, tmp_path_factory):
    """The checkpoint's folder in fp8, as calibrate writes it."""
    out = tmp_path_factory.mktemp("fp8") / "fp8"
    exact = exported(si.load_model(checkpoint), about=provenance(str(checkpoint), {}))
    options = {"precision": "fp8", "samples": 3, "force": True, "min_cosine": 0.5, "threads": 1}
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        calibrate(exact, videos, out, CalibrationOptions(**options))
    return out


def test_one_calibration_for_torch_graph_and_kernels(calibrated, checkpoint, kernels_here):
    """Three engines hold the same 8-bit weights and the same scales."""
    model = si.load_model(checkpoint)
    record = read_calibration(calibrated)
    scales = fp8_scales(calibrated, checkpoint, model.config)
    assert scales and set(scales) == set(record["tensors"]) - set(record["kept"])
    graph = onnx.load(str(calibrated / "video.onnx")).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    exact = linears(in_numpy(fold_video(model)))
    session = TritonSession(model, precision="fp8", scales=scales, cuda=FakeCuda())
    in_kernels = linears(session._tower)
    assert session.describe()["linears_in_8_bits"] == len(scales)
    for name, scale in scales.items():
        exact_one = quantise_linear(exact[name], scale, "fp8")
        weight = torch.from_numpy(exact_one.weight).view(torch.float8_e4m3fn).float().numpy()
        wanted = weight * exact_one.scale[:, None]
        ours = in_kernels[name]
        assert isinstance(ours, Fp8Linear) and ours.x_scale == scale == exact_one.x_scale
        assert stored[f"{name}/x_scale"] == np.float32(scale), name
        weight8 = stored[f"{name}/weight"].astype(np.float32).T
        assert np.array_equal(weight8, weight), name
        assert np.array_equal(stored[f"{name}/weight_scale"], exact_one.scale), name
        held = (ours.weight.float() * ours.scale[:, None]).numpy()
        if name.endswith(("qkv", "q")):
            # The kernels' queries are for a softmax of powers of two: a factor of its rows.
            factor = np.linalg.norm(held, axis=1) / np.linalg.norm(wanted, axis=1)
            held = held / factor[:, None]
        # A factor may move a value that lies between two of e4m3's to the other side.
        assert np.isclose(held, wanted, rtol=1e-5, atol=1e-7).mean() > 0.999, name


def test_a_calibration_for_something_else_is_refused(calibrated, checkpoint, tmp_path):
    def changed(**values):
        record = json.loads((calibrated / "calibration.json").read_text())
        for path, value in values.items():
            *keys, last = path.split("__")
            place = record
            for key in keys:
                place = place[key] if key != "first" else place[min(place)]
            place[last] = value
        (tmp_path / "c.json").write_text(json.dumps(record))
        return tmp_path / "c.json"

    config = si.load_model(checkpoint).config
    other = tmp_path / "other.bin"
    other.write_bytes(b"another")
    with pytest.raises(InputError, match="of another model"):
        fp8_scales(calibrated, other, config)
    shorter = dataclasses.replace(config, frames=config.frames - 1)
    with pytest.raises(InputError, match=r"another preprocessing \(frames"):
        fp8_scales(calibrated, checkpoint, shorter)
    with pytest.raises(InputError, match="is of int8"):
        fp8_scales(changed(precision="int8"), checkpoint, config)
    with pytest.raises(InputError, match="does not name its checkpoint"):
        fp8_scales(changed(key__checkpoint_sha256=None), checkpoint, config)
    with pytest.raises(InputError, match="is of the default weights, not of --weights ema"):
        fp8_scales(calibrated, checkpoint, config, "ema")
    with pytest.raises(InputError, match="is of --weights ema, not of the default weights"):
        fp8_scales(changed(key__weights="ema"), checkpoint, config)
    for scale, words in {
        0: "is 0.0, not a positive number",
        1e-40: "is 1e-40, not a positive number",  # less than a float32 holds
        -1: r"scale: Expected `float` >= 0",
        None: "scale: Expected `float`, got `null`",
        "1": "scale: Expected `float`, got `str`",
        10**30 * 10: "scale: Expected `float` <= 1e",
        math.nan: "NaN is not a number",
    }.items():
        with pytest.raises(InputError, match=words):
            read_calibration(changed(tensors__first__scale=scale))
    with pytest.raises(InputError, match="cannot be read"):
        si.open_session(checkpoint, "triton", calibration=tmp_path / "none")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        si.open_session(checkpoint, "triton", calibration=tmp_path / "c.json")
    with pytest.raises(InputError, match="is a choice of engine triton"):
        si.open_session(checkpoint, "eager", calibration=calibrated)


@pytest.mark.usefixtures("quiet_machine")
def test_bench_compares_a_calibration_with_eager(cli, calibrated, checkpoint, tmp_path):
    rest = ("--repeats", "1", "--min-seconds", "0", "--frames", "2", "--no-memory", "--json")
    given = ("--calibration", calibrated)
    done = cli("bench", checkpoint, *given, "--engine", "ort", "--precision", "fp8", *rest)
    rows = {(r["engine"], r["precision"]): r for r in done.records}
    assert rows["ort", "fp8"]["speedup"] > 0 and rows["ort", "fp8"]["linears_in_8_bits"] == 0
    words = ("bench", checkpoint, "--engine", "ort", "--precision", "int8", *rest)
    cli(*words, code=2, says=f"int8 needs a calibration: stan-infer calibrate {checkpoint}")
    words = ("bench", checkpoint, "--preset", "stan-b16", *rest)
    cli(*words, code=2, says="preset stan-b16 takes the place of a checkpoint or folder")
    words = ("bench", checkpoint, *given, "--engine", "ort", "--precision", "int8", *rest)
    cli(*words, code=2, says="is of fp8, not int8")
    words = ("bench", calibrated, *given, "--engine", "ort", *rest)
    cli(*words, code=2, says="a folder in 8 bits has its own")
