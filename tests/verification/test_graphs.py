"""Graphs held to what they should be: weights, nodes, operations, and the bound of 8 bits."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from stan_infer.errors import InputError, MissingError
from stan_infer.export.writer import writer
from stan_infer.quantisation.calibrate import calibrate
from stan_infer.quantisation.options import CalibrationOptions
from stan_infer.verification.bound import recorded_bound
from stan_infer.verification.inputs import write_videos
from stan_infer.verification.stage import Stage
from stan_infer.verification.stored import E4M3, StoredGraph
from stan_infer.verification.weights import departures
from tests.conftest import quicken
from tests.exported import exported, rewrite
from tests.verification.records import verify

MLP = "video/trunk/layer1/mlp"
FC1 = f"{MLP}/fc1"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"), 16)


@pytest.fixture(scope="module")
def quantised(folder, videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("quantised") / "int8"
    options = {"samples": 5, "force": True, "min_cosine": 0.01, "threads": 1}
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        calibrate(folder, videos, out, CalibrationOptions(precision="int8", **options))
    return out


@pytest.fixture
def copy(quantised, tmp_path):
    return shutil.copytree(quantised, tmp_path / "copy")


def edit(folder, name, change):
    """Change one weight of a folder's video graph, and all hashes with it."""
    model = onnx.load(folder / "video.onnx")
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor)
    changed = np.asarray(change(array.copy()), array.dtype).reshape(array.shape)
    tensor.CopyFrom(numpy_helper.from_array(changed, name))
    onnx.save(model, folder / "video.onnx")
    rewrite(folder)


def recalibrate(folder, change):
    """Change calibration.json, and all hashes with it."""
    path = folder / "calibration.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))

    def quant(manifest):
        for entry in manifest["graphs"]:
            if entry["quant"]:
                entry["quant"].pop("calibration_sha256", None)

    rewrite(folder, quant)


def run(a, b, videos, **options):
    return verify(a, b, videos=videos[1:2], frames=(2,), bisect=True, **options)


def row(record, stage):
    return next(r for r in record["stages"] if r["stage"] == stage)


def test_a_shape_that_differs_is_one_case():
    stage = Stage("x", 0.1)
    stage.compare("bad", (np.zeros(2), np.zeros(3)))
    assert stage.row()["cases"] == 1 and stage.row()["pass"] is False


def test_the_row_is_the_case_furthest_above_its_own_tolerance():
    stage = Stage("x", 0.1)
    stage.compare("loose", (np.array([1.0]), np.array([1.05])))
    stage.add("tight", 1e-3, 1e-4)
    stage.add("tighter", 1e-9, 1e-6)
    got = stage.row()
    assert (got["worst"], got["max_rel"], got["tolerance"]) == ("tight", 1e-3, 1e-4)
    assert got["pass"] is False and got["cases"] == 3


def test_codes_of_float8_are_torch_s():
    held = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn).float()
    np.testing.assert_array_equal(E4M3, held.numpy())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_weights_are_read_as_they_are_stored(tiny_model, precision):
    path = exported(tiny_model, precision=precision) / "video.onnx"
    stored = StoredGraph(path)
    assert stored.precision == precision
    for tensor in onnx.load(path).graph.initializer:
        want = numpy_helper.to_array(tensor)
        np.testing.assert_array_equal(
            stored.array(tensor.name), want.astype(stored.array(tensor.name).dtype)
        )


def test_blocks_and_operations_of_weights(folder):
    stored = StoredGraph(folder / "video.onnx")
    assert stored.block_of(f"{FC1}/bias") == f"{MLP}/fc2"
    assert stored.operation_of(f"{FC1}/bias") == FC1
    assert stored.operation_of(f"{MLP}/norm") == f"{MLP}/norm"
    assert stored.block_of("nothing") is None


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_cut_off_instead_of_rounded_differ(tiny_model, precision, tmp_path):
    whole = exported(tiny_model, precision=precision)
    cut = exported(tiny_model) / "video.onnx"
    copy = shutil.copytree(whole, tmp_path / "copy")
    name = f"{FC1}/weight"
    exact = StoredGraph(cut).array(name)
    bits = exact.view(np.uint32) & (0xFFFF0000 if precision == "bf16" else 0xFFFFE000)
    model = onnx.load(copy / "video.onnx")
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    lower = bits.view(np.float32)
    words = bits >> 16 if precision == "bf16" else lower.astype(np.float16).view(np.uint16)
    tensor.raw_data = words.astype(np.uint16).tobytes()
    onnx.save(model, copy / "video.onnx")
    a, b = (StoredGraph(f / "video.onnx") for f in (whole, copy))
    assert not departures(a, a, whole=True)
    (found,) = departures(a, b, whole=True)
    assert found.name == name and "rounded otherwise" in found.reason
    # Of two folders, half a step of the coarser one is allowed and no more.
    assert not departures(StoredGraph(cut), a, whole=False)
    (found,) = departures(StoredGraph(cut), b, whole=False)
    assert found.name == name and "differs in" in found.reason


def test_a_folder_in_8_bits_is_what_its_calibration_says(tiny_model, folder, quantised, videos):
    for pair in ((tiny_model, quantised), (quantised, tiny_model), (folder, quantised)):
        record = run(*pair, videos)
        assert record["pass"], record
        tower = row(record, "video tower")
        assert "int8, recomputed with calibration.json; 70 operations" in tower["reference"]
        assert tower["max_rel"] < 1e-5
        assert row(record, "weights")["pass"] and row(record, "bound")["min_cos"] > 0.99
        assert record["bisect"] == {}


FAULTS = {
    "an activation scale divided by 4": (f"{FC1}/x_scale", lambda a: a / 4),
    "3-bit weights": (f"{FC1}/weight", lambda a: (a.astype(int) // 32 * 32).clip(-96, 96)),
    "a weight scale x 1.1": (f"{MLP}/fc2/weight_scale", lambda a: a * 1.1),
    "a dropped bias": (f"{FC1}/minus_bias", np.zeros_like),
    "the head x 1.1": ("video/head/video/weight", lambda a: a * 1.1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_8_bits_are_named(tiny_model, copy, videos, fault):
    name, change = FAULTS[fault]
    edit(copy, name, change)
    record = run(tiny_model, copy, videos)
    operation = name.rpartition("/")[0]
    found = record["bisect"]["video tower"]
    assert record["first_failed"] == "video tower" and found["operation"] == operation
    assert found["block"] == (f"{MLP}/fc2" if operation.startswith(MLP) else operation)
    assert row(record, "weights")["worst"] == name


def test_a_scale_that_is_wrong_in_both_files_misses_the_bound(tiny_model, copy, videos):
    edit(copy, f"{FC1}/x_scale", lambda a: a / 8)

    def change(record):
        entry = record["tensors"][FC1]
        entry["scale"] /= 8
        entry["amax_used"] /= 8
        record["method"] = "mse"  # with "max" the largest input would contradict it

    recalibrate(copy, change)
    record = run(tiny_model, copy, videos)
    assert record["first_failed"] == "bound" and row(record, "weights")["pass"]
    assert record["bisect"]["bound"]["operation"] == FC1
    recalibrate(copy, lambda record: record["tensors"][FC1].update(amax_used=1.0))
    record = run(tiny_model, copy, videos)
    assert row(record, "weights")["worst"] == f"{FC1}/x_scale"
    assert "whose range gives" in row(record, "weights")["note"]


def test_what_is_not_compared_is_said(
    tiny_model, folder, quantised, copy, videos, tmp_path, monkeypatch
):
    (copy / "calibration.json").unlink()
    rewrite(copy)
    record = run(tiny_model, copy, videos)
    assert "calibration.json is missing" in row(record, "files")["note"]
    rewrite(copy, lambda manifest: manifest["graphs"][0].update(quant=None))
    record = run(tiny_model, copy, videos)
    assert record["pass"] and "no calibration.json" in row(record, "weights")["reference"]
    assert "only coarsely" in row(record, "bound")["reference"]
    record = run(tiny_model, exported(tiny_model, graph="reference"), videos)
    assert record["pass"] and "none of the names" in row(record, "weights")["note"]
    assert "operations not compared" in row(record, "video tower")["reference"]
    record = run(quantised, quantised, videos)
    assert record["pass"] and "same file on both sides" in row(record, "weights")["note"]
    other = shutil.copytree(quantised, tmp_path / "other")
    record = run(quantised, other, videos)
    assert record["pass"] and row(record, "weights")["pass"]
    assert "neither side has the weights in fp32" in row(record, "bound")["note"]

    def absent(package, *words):
        raise MissingError(f"needs {package}")

    monkeypatch.setattr("stan_infer.verification.cut.require", absent)
    monkeypatch.setattr("stan_infer.verification.folder_side.require", absent)
    record = run(folder, shutil.copytree(folder, tmp_path / "more"), videos)
    assert record["pass"] and row(record, "weights")["pass"]
    assert "operations not compared: needs onnx" in row(record, "video tower")["reference"]
    record = run(folder, quantised, videos)
    assert record["pass"] and "weights" in record["not_compared"]  # the text tower proves no other
    assert "video: needs torch" in row(record, "weights")["note"]
    assert row(record, "video tower")["tolerance"] == 0.25


def test_a_precision_that_is_only_claimed_is_a_fault(tiny_model, folder, videos, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    rewrite(copy, lambda manifest: manifest["graphs"][0].update(precision="int8"))
    record = run(tiny_model, copy, videos)
    assert record["first_failed"] == "weights"
    assert "is in fp32, and the manifest says int8" in row(record, "weights")["note"]


def test_of_another_export_nodes_may_differ_and_numbers_not(tiny_model, folder, videos, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    whole = json.loads((copy / "manifest.json").read_text())["graphs"][0]["writer"]
    rewrite(copy, lambda manifest: manifest["graphs"][0].update(writer="0.0.1-0"))
    model = onnx.load(copy / "video.onnx")
    (node,) = (n for n in model.graph.node if n.name == f"{FC1}/Add")
    node.op_type = "Sub"
    (bias,) = (t for t in model.graph.initializer if t.name == f"{FC1}/bias")
    bias.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(bias), f"{FC1}/other"))
    node.input[1] = bias.name
    onnx.save(model, copy / "video.onnx")
    rewrite(copy)
    record = run(tiny_model, copy, videos)
    told = "1 node that differs and is not judged: it was written by another export, 0.0.1-0"
    assert record["pass"] and told in row(record, "weights")["reference"]
    rewrite(copy, lambda manifest: manifest["graphs"][0].update(writer=whole))
    record = run(tiny_model, copy, videos)
    assert record["first_failed"] == "weights"
    assert record["bisect"]["weights"]["operation"] == FC1


def test_weights_in_another_file_must_be_the_graph_s(folder, tmp_path):
    model = onnx.load(folder / "video.onnx")
    name = f"{FC1}/weight"
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "../secret", "offset": "0"}.items():
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "video.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="does not list"):
        StoredGraph(tmp_path / "video.onnx").array(name)


RECORDS = [
    ({"verdict": {"is_met": True, "cosine": 0.9999, "bound": {"min_cosine": 0.995}}}, 0.997),
    ({"verdict": {"is_met": True, "cosine": 0.998}, "bound": {"min_cosine": 0.995}}, 0.995),
    ({"verdict": {"is_met": False, "cosine": 0.99, "bound": {"min_cosine": 0.995}}}, 0.7),
    ({"verdict": {"is_met": True, "drop": 0.1, "bound": {"max_drop": 0.5}}}, None),
    ({"verdict": {"cosine": "x"}}, None),
    ({"verdict": 3}, None),
    ({}, None),
]


@pytest.mark.parametrize(("record", "least"), RECORDS)
def test_the_cosine_that_a_calibration_promises(record, least):
    found = recorded_bound({"precision": "int8", **record}, "ort")
    if least is None:
        assert isinstance(found, str)
    else:
        assert found[0] == pytest.approx(least)


def test_the_bound_is_that_of_the_engine():
    rows = [{"engine": "openvino", "precision": "int8", "cosine": 0.99, "is_met": False}]
    verdict = {"is_met": True, "cosine": 0.9999, "bound": {"min_cosine": 0.995}, "rows": rows}
    record = {"precision": "int8", "verdict": verdict}
    assert recorded_bound(record, "openvino")[0] == pytest.approx(0.7)
    assert recorded_bound(record, "trt")[0] == 0.995


def test_every_graph_names_its_writer(folder, quantised):
    for path in (folder, quantised):
        graphs = json.loads((path / "manifest.json").read_text())["graphs"]
        assert len(graphs) > 2 and {g["writer"] for g in graphs} == {writer()}


def test_a_graph_without_our_names_is_a_fault_where_the_manifest_says_fused(
    tiny_model, folder, videos, tmp_path
):
    copy = shutil.copytree(folder, tmp_path / "copy")
    model = onnx.load(copy / "video.onnx")
    for node in model.graph.node:
        node.input[:] = [n.replace("video/", "v/") for n in node.input]
        node.output[:] = [n.replace("video/", "v/") for n in node.output]
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("video/", "v/")
    onnx.save(model, copy / "video.onnx")
    rewrite(copy)
    record = run(tiny_model, copy, videos)
    assert record["first_failed"] == "weights"
    assert "the manifest says that it is one" in row(record, "weights")["note"]
    assert verify(tiny_model, copy / "video.onnx", frames=(2,))["pass"]
