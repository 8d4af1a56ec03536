"""The graph in 8 bits: nodes where ONNX Runtime's own tool puts them, and linears that run so."""

import functools
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest

from stan_infer.artefacts.folder import read_artefact
from stan_infer.engines.open import open_session
from stan_infer.errors import InputError
from stan_infer.network.eight_bits import LINEARS
from stan_infer.quantisation.calibrate import calibrate
from stan_infer.quantisation.options import CalibrationOptions
from tests.conftest import clips, quicken, relative_error
from tests.exported import exported, rewrite

FIXED = {"batch": 1, "frames": 6}
FORMS = {"free axes": ("int8", {}), "fixed": ("int8", FIXED), "fp8": ("fp8", {})}


@pytest.fixture(scope="module")
def quantise(tiny_model, videos, tmp_path_factory):
    """Of one of FORMS: the folder in fp32 and that in 8 bits, made once."""

    @functools.cache
    def make(form):
        precision, sizes = FORMS[form]
        exact = exported(tiny_model, tower="video", **sizes)
        out = tmp_path_factory.mktemp("quantised") / precision
        options = {"samples": 2, "force": True, "smooth": False, "min_cosine": 0.01, "threads": 1}
        with pytest.MonkeyPatch.context() as patch:
            quicken(patch)
            options = CalibrationOptions(precision=precision, **options)
            calibrate(exact, sorted(videos.iterdir()), out, options)
        return exact, out

    return make


@pytest.mark.parametrize("form", ["free axes", "fixed"])
def test_every_linear_really_runs_in_8_bits(quantise, form):
    """ONNX Runtime once ran all of them in fp32 if all sizes were fixed."""
    exact, folder = quantise(form)
    entry = json.loads((folder / "manifest.json").read_text())["graphs"][0]
    linears = entry["quant"]["linears"]
    assert linears == 3 * 4 + 2 * 2 + 2 * 4
    for engine in ("ort", "openvino"):
        told = open_session(folder, engine).describe()
        assert told["linears_in_8_bits"] == told["linears_in_8_bits_in_file"] == linears, engine
    assert "linears_in_8_bits" not in open_session(exact, "ort").describe()


def test_without_a_place_for_temporary_files_nothing_is_counted(quantise, tmp_path, monkeypatch):
    _, folder = quantise("free axes")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert open_session(folder, "ort").describe()["linears_in_8_bits"] is None


def test_fp8_needs_an_opset_that_has_it(tiny_model, videos, tmp_path):
    folder = exported(tiny_model, tower="video", opset=18)
    options = CalibrationOptions(precision="fp8", force=True)
    with pytest.raises(InputError, match="opset 18, and ONNX has fp8 from opset 19 on.*int8"):
        calibrate(folder, videos, tmp_path / "x", options)
    folder = shutil.copytree(folder, tmp_path / "c")
    rewrite(folder, lambda manifest: manifest["graphs"][0].update(opset=40))
    with pytest.raises(InputError, match="opset 40; an export writes 18 to 25"):
        calibrate(folder, videos, tmp_path / "x", CalibrationOptions(force=True))


def test_a_runtime_that_fuses_fp8_wrongly_runs_it_unfused(quantise, monkeypatch):
    """As ONNX Runtime before 1.32 does, which refuses the graph with these words."""
    real, seen = onnxruntime.InferenceSession, []

    def session(source, options, **given):
        try:
            seen.append(options.get_session_config_entry("session.disable_quant_qdq"))
        except RuntimeError:
            raise onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph(
                "Type 'tensor(float8e4m3fn)' of operator (MatMulIntegerToFloat) is invalid"
            ) from None
        return real(source, options, **given)

    folder = quantise("fp8")[1]
    (entry,) = (g for g in read_artefact(folder).manifest["graphs"] if g["role"] == "video")
    assert entry["min_onnxruntime"] == "1.32"
    clip = clips(1, 3, 16)
    wanted = open_session(folder, "ort").embed_video(clip)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert relative_error(open_session(folder, "ort").embed_video(clip), wanted) < 1e-5
    assert set(seen) == {"1"}


def test_fp8_runs_in_fp32_on_a_cpu_and_says_so(quantise):
    told = open_session(quantise("fp8")[1], "ort").describe()
    assert told["linears_in_8_bits"] == 0 and told["linears_in_8_bits_in_file"] > 0


def surroundings(path):
    """Of every linear's MatMul: its DequantizeLinear inputs, and what reads the MatMul."""
    graph = onnx.load(str(path)).graph
    made = {name: node for node in graph.node for name in node.output}
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    found = {}
    for node in graph.node:
        block = node.name.rpartition("/")[0]
        if node.op_type != "MatMul" or not block.endswith(LINEARS):
            continue
        x, w = (made[i] for i in node.input)
        source = made[x.input[0]]
        readers = [n.op_type for n in graph.node if node.output[0] in n.input]
        weight, scale, zero = (stored[i] for i in w.input)
        assert not zero.any() and not stored[source.input[2]].any()  # symmetric
        axis = next((a.i for a in w.attribute if a.name == "axis"), 1)
        found[block] = {
            "x": [x.op_type, source.op_type, stored[source.input[1]].size],
            "w": [w.op_type, weight.dtype.name, scale.size, axis % 2],
            "is_quantised_behind": "QuantizeLinear" in readers,
        }
    return found


def test_nodes_stand_where_onnxruntime_puts_them(quantise, tiny_model, tmp_path):
    """Own code all the same: the tool keeps every activation of every clip for a histogram, knows
    no smoothing and no e4m3 in this form, and its bias is an Add (see Nodes.quantised_linear)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    exact, folder = quantise("free axes")
    ours, plain = surroundings(folder / "video.onnx"), exact / "video.onnx"
    names = [n.name for n in onnx.load(str(plain)).graph.node]
    linears = [n for n in names if n.rpartition("/")[0] in ours and n.endswith("MatMul")]
    assert len(linears) == len(ours)

    class Reader(CalibrationDataReader):
        def __init__(self):
            s = tiny_model.config.image_size
            self.left = [np.random.default_rng(0).integers(0, 256, (1, 3, s, s, 3), np.uint8)]

        def get_next(self):
            return {"video": self.left.pop()} if self.left else None

    quantize_static(
        str(plain),
        str(tmp_path / "theirs.onnx"),
        Reader(),
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=linears,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )
    assert surroundings(tmp_path / "theirs.onnx") == ours
