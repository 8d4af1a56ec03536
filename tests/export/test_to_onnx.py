"""Exported graphs: dynamic axes, proved equal to the model first; no folder is half-written."""

import json
import re
import shutil

import numpy as np
import onnx
import pytest
import torch

import stan_infer as si
from stan_infer.artefacts.config_note import CONFIG_KEY, config_sha256
from stan_infer.artefacts.opsets import OPSETS, Opset, check_runtime
from stan_infer.engines.ort_session import inference_session
from stan_infer.errors import CheckError, InputError, MissingError
from stan_infer.export import onnx_graph
from stan_infer.export.export_model import export_model
from stan_infer.export.onnx_graph import GraphWriter
from stan_infer.export.onnx_nodes import Nodes
from stan_infer.export.onnx_ops import OnnxOps
from stan_infer.export.options import parse_range
from stan_infer.export.parity import Case, case_sizes, prove
from stan_infer.network.model import Stan, init_random
from tests.conftest import ROOT, clips, relative_error, tiny_config

PAGE = (ROOT / "GRAPHS.md").read_text()
FP16, BF16 = 1e-2, 1e-1
ROUNDED = 1e-6


def graph_of(folder, file="video.onnx"):
    return onnx.load(folder / file)


def video_shape(folder):
    (video,) = graph_of(folder).graph.input
    return [d.dim_param or d.dim_value for d in video.type.tensor_type.shape.dim]


def refused(model, place, words, error=CheckError, **options):
    with pytest.raises(error, match=words):
        export_model(model, place / "x", **options)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(("opset", "ir"), [(18, 8), (20, 9), (23, 11), (25, 13)])
@pytest.mark.parametrize("branch", ["selfattn", "conv"])
def test_both_axes_are_dynamic_and_only_standard_operators_are_used(tmp_path, opset, ir, branch):
    model = init_random(Stan(tiny_config(branch=branch))).eval()
    manifest = export_model(model, tmp_path / "x", opset=opset).manifest
    assert {g["min_onnxruntime"] for g in manifest["graphs"]} == {OPSETS[opset].onnxruntime}
    for file in ("video.onnx", "text.onnx", "preprocess.onnx"):
        proto = graph_of(tmp_path / "x", file)
        assert [(o.domain, o.version) for o in proto.opset_import] == [("", opset)]
        assert {n.domain for n in proto.graph.node} == {""}
        assert not {"If", "Loop", "Scan", "Einsum"} & {n.op_type for n in proto.graph.node}
        assert proto.ir_version == ir
    assert video_shape(tmp_path / "x") == ["batch", "frames", 16, 16, 3]


def test_each_norm_is_one_node_and_only_what_is_read_is_computed(folder):
    nodes = graph_of(folder).graph.node
    norms = [n.name for n in nodes if n.op_type == "LayerNormalization"]
    # Without a bias, ONNX Runtime 1.14 to 1.18 aborts the process.
    assert all(len(n.input) == 3 and all(n.input) for n in nodes if n.name in norms)
    # One before the trunk and one after; two per trunk layer; three per branch layer, and in the
    # last one the class token apart from its keys.
    assert len(norms) == 2 + 2 * 3 + 3 * 2 + 1
    assert not any(n.op_type in ("ReduceVariance", "Pow") for n in nodes)


def test_names_are_the_blocks(folder):
    nodes = graph_of(folder).graph.node
    names = [n.name for n in nodes]
    assert len(set(names)) == len(names)
    assert "video/trunk/layer2/attention/qkv/MatMul" in names
    assert "video/branch/layer1/spatial/softmax/Softmax" in names
    roots = {n.split("/")[0] for n in names}
    assert roots == {"video", "sizes", "outputs"}
    weights = {i.name for i in graph_of(folder).graph.initializer}
    assert "video/branch/layer0/temporal/out/weight" in weights


def test_the_manifest_says_what_was_measured(folder, tiny_model):
    manifest = json.loads((folder / "manifest.json").read_text())
    roles = {g["role"]: g for g in manifest["graphs"]}
    assert set(roles) == {"video", "text", "preprocess"}
    assert roles["video"]["dims"] == {"batch": [1, 32], "frames": [1, 64]}
    assert {p["file"] for p in manifest["parity"]} == {"video.onnx", "text.onnx"}
    for parity in manifest["parity"]:
        assert parity["pass"] and 0 <= parity["max_rel"] < 1e-5
    cases = manifest["parity"][0]["cases"]
    assert cases == [[1, 1], [1, 2], [1, 64], [2, 3], [3, 5], [7, 9]]
    assert str(folder.parent) not in json.dumps(manifest)
    properties = {p.key: p.value for p in graph_of(folder).metadata_props}
    assert properties[CONFIG_KEY] == config_sha256(tiny_model.config.to_dict())


def test_golden_data_is_what_the_model_says(folder, tiny_model):
    golden = np.load(folder / "golden.npz")
    assert golden["video"].dtype == np.uint8 and golden["video"].shape == (2, 6, 16, 16, 3)
    frames = tiny_model.encode_video(torch.from_numpy(golden["video"]))
    assert relative_error(golden["frame_embeds"], frames) < ROUNDED
    assert relative_error(golden["video_embeds"], frames.mean(1)) < ROUNDED
    ids = torch.from_numpy(golden["input_ids"])
    assert relative_error(golden["text_embeds"], tiny_model.encode_text(ids)) < ROUNDED
    assert golden["scores"].shape == (3, 2)
    assert golden["frames"].shape[1:] != golden["pixels"].shape[1:] == (16, 16, 3)


def test_the_longest_clip_has_golden_data_too(tiny_model, tmp_path):
    export_model(tiny_model, tmp_path / "x", frames=64, batch=1, tower="video")
    video = np.load(tmp_path / "x" / "golden.npz")["video"]
    assert video.shape[:2] == (1, 64)
    assert len({frame.tobytes() for frame in video[0]}) == 64


def test_conv_branch_without_text(tmp_path):
    model = init_random(Stan(tiny_config(branch="conv", text_layers=0))).eval()
    artefact = export_model(model, tmp_path / "conv")
    assert artefact.graph("text") is None
    with pytest.raises(InputError, match="no text tower"):
        export_model(model, tmp_path / "text", tower="text")


@pytest.mark.parametrize(
    ("options", "shape", "cases"),
    [
        ({"frames": 6, "batch": 1}, [1, 6, 16, 16, 3], [[1, 6]]),
        ({"frames": 1}, ["batch", 1, 16, 16, 3], [[1, 1], [2, 1], [3, 1], [7, 1]]),
        ({"frames": (4, 8), "batch": 2}, [2, "frames", 16, 16, 3], [[2, 4], [2, 5], [2, 8]]),
        ({"input": "float"}, ["batch", "frames", 3, 16, 16], None),
    ],
)
def test_ranges_of_the_axes(tiny_model, tmp_path, options, shape, cases):
    artefact = export_model(tiny_model, tmp_path / "x", tower="video", **options)
    assert video_shape(tmp_path / "x") == shape
    if cases:
        assert artefact.manifest["parity"][0]["cases"] == cases


def test_a_fixed_number_of_frames_is_what_is_sampled(tiny_model, tmp_path):
    artefact = export_model(tiny_model, tmp_path / "x", frames=5, tower="video")
    assert artefact.config.frames == 5 and tiny_model.config.frames == 6
    with pytest.raises(InputError, match="1 to 4, does not include the 6 frames"):
        export_model(tiny_model, tmp_path / "y", frames=(1, 4))


def test_one_frame_has_no_temporal_attention(tiny_model, tmp_path):
    export_model(tiny_model, tmp_path / "x", frames=1, tower="video")
    names = {n.name for n in graph_of(tmp_path / "x").graph.node}
    assert "video/branch/layer0/temporal/single/MatMul" in names
    assert not any("temporal/softmax" in n for n in names)


def test_towers(tiny_model, tmp_path):
    export_model(tiny_model, tmp_path / "t", tower="text")
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["manifest.json", "text.onnx"]
    export_model(tiny_model, tmp_path / "v", tower="video")
    assert not (tmp_path / "v" / "text.onnx").exists()


def test_fp16(tiny_model, folder, tmp_path):
    artefact = export_model(tiny_model, tmp_path / "x", precision="fp16")
    small, large = ((f / "video.onnx").stat().st_size for f in (tmp_path / "x", folder))
    assert small < 0.75 * large
    (video, text) = artefact.manifest["ranges"]
    assert 0 < video["largest"] < video["limit"] and video["node"].startswith("video/")
    assert text["node"].startswith("text/") and video["source"] == "two synthetic clips"
    nodes = {n.name: n for n in graph_of(tmp_path / "x").graph.node}
    # Norms and softmaxes stay in fp32: each reads a cast to float.
    for node in nodes.values():
        if node.op_type in ("LayerNormalization", "Softmax"):
            assert nodes[node.input[0]].op_type == "Cast"
            assert nodes[node.input[0]].attribute[0].i == onnx.TensorProto.FLOAT
    got = si.open_session(tmp_path / "x", "ort").embed_video(clips(2, 5, 16))
    wanted = tiny_model.encode_video(torch.from_numpy(clips(2, 5, 16))).mean(1)
    assert 1e-6 < relative_error(got, wanted) < FP16


def test_bf16_is_proved_and_runs_where_it_can(tiny_model, tmp_path):
    pytest.importorskip("openvino")
    artefact = export_model(tiny_model, tmp_path / "x", precision="bf16", tower="video")
    assert {p["backend"] for p in artefact.manifest["parity"]} == {"openvino CPU"}
    video = clips(2, 5, 16)
    wanted = tiny_model.encode_video(torch.from_numpy(video)).mean(1)
    got = si.open_session(tmp_path / "x", "openvino").embed_video(video)
    assert 1e-4 < relative_error(got, wanted) < BF16
    with pytest.raises(MissingError, match="no code on device 'cpu'.*--engine openvino"):
        si.open_session(tmp_path / "x")


def test_fp16_that_would_overflow_is_refused_by_name(tmp_path):
    model = init_random(Stan(tiny_config(text_layers=0))).eval()
    with torch.no_grad():
        model.visual.transformer.resblocks[1].mlp.c_fc.weight *= 1e5
        model.visual.transformer.resblocks[1].mlp.c_proj.weight /= 1e5
    name = "video/trunk/layer1/mlp/fc1"
    words = f"{name}.*fp16 holds 65504.*--precision fp32"
    refused(model, tmp_path, words, precision="fp16")
    export_model(model, tmp_path / "x")


def test_a_weight_that_fp16_cannot_hold_is_refused_by_name(tmp_path):
    model = init_random(Stan(tiny_config(text_layers=0))).eval()
    with torch.no_grad():  # met with zeros only, so that no value overflows
        model.branch.spatial[0].mlp.c_proj.weight[:, 0] = 1e6
        model.branch.spatial[0].mlp.c_fc.weight[0] = 0
        model.branch.spatial[0].mlp.c_fc.bias[0] = 0
    words = "branch/layer0/mlp/fc2/weight reaches.*fp16 cannot hold"
    refused(model, tmp_path, words, precision="fp16")


@pytest.mark.parametrize(
    ("precision", "dtype", "over"),
    [("fp16", torch.float16, 65520.0), ("bf16", torch.bfloat16, 3.4e38)],
)
def test_weights_of_16_bits_are_those_of_torch_to_the_bit(tmp_path, precision, dtype, over):
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    held = torch.cat([codes[codes.isfinite()].sort().values, torch.randn(9999)])
    values = torch.cat([held, (held[1:] + held[:-1]) / 2, held * (1 + 2**-20)])  # ties, and near
    values = values[values.to(dtype).isfinite() & values.isfinite()]
    graph = GraphWriter("g", tmp_path, 20)
    nodes = Nodes(graph, "x", batch=None, frames=None, precision=precision)
    nodes.weight("w", values)
    graph.save(tmp_path / "g.onnx")
    (stored,) = onnx.load(tmp_path / "g.onnx").graph.initializer
    assert stored.raw_data == values.to(dtype).view(torch.int16).numpy().tobytes()
    assert len(values) > 90_000
    for bad in (over, -over, float("nan")):
        with pytest.raises(CheckError, match=f"other reaches.*{precision} cannot hold"):
            nodes.weight("other", np.array([1.0, bad], "f4"))


def test_the_reference_graph_gives_the_same_numbers(tiny_model, folder, tmp_path):
    export_model(tiny_model, tmp_path / "r", graph="reference")
    assert graph_of(tmp_path / "r").ir_version == graph_of(folder).ir_version == 9
    video = clips(2, 7, 16)
    a, b = (si.open_session(f, "ort").embed_video(video) for f in (folder, tmp_path / "r"))
    assert relative_error(a, b) < 1e-5
    with pytest.raises(InputError, match="--graph reference"):
        export_model(tiny_model, tmp_path / "x", graph="reference", precision="fp16")


def test_weights_beyond_the_limit_go_to_one_file_beside(tiny_model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "MAX_INLINE", 10_000)
    artefact = export_model(tiny_model, tmp_path / "x")
    entry = next(g for g in artefact.manifest["graphs"] if g["role"] == "video")
    assert entry["external_data"] == ["video.onnx.data"]
    assert (tmp_path / "x" / "video.onnx").stat().st_size < 200_000
    assert "video.onnx.data" in artefact.manifest["files"]
    for engine in ("ort", "openvino"):
        sessions = (si.open_session(f, engine) for f in (folder, tmp_path / "x"))
        a, b = (session.embed_video(clips(1, 3, 16)) for session in sessions)
        assert np.array_equal(a, b), engine


def test_a_graph_that_differs_is_refused_and_nothing_is_left(tiny_model, tmp_path, monkeypatch):
    def wrong(self, name, x):
        with self._operation(name) as (g, n):
            g.node("Mul", [n.mean(x, 1, keep=0), n.number(1.001)])
        return name

    monkeypatch.setattr(OnnxOps, "frame_mean", wrong)
    refused(tiny_model, tmp_path, "video.onnx: outputs differ.*nothing was written")


def test_a_baked_axis_is_refused(tiny_model, tmp_path, monkeypatch):
    original = GraphWriter.input

    def bake(self, name, dtype, shape):
        return original(self, name, dtype, [2 if n == "batch" else n for n in shape])

    monkeypatch.setattr(GraphWriter, "input", bake)
    refused(tiny_model, tmp_path, r"dynamic in \['frames'\], but \['batch', 'frames'\]")


def test_a_size_baked_inside_is_refused(tiny_model, tmp_path, monkeypatch):
    original = OnnxOps.split

    def bake(self, name, rows):
        self._nodes.sizes["T"] = 1
        try:
            return original(self, name, rows)
        finally:
            self._nodes.sizes["T"] = None

    monkeypatch.setattr(OnnxOps, "split", bake)
    refused(tiny_model, tmp_path, r"video.onnx (does not run|: outputs|at)")


def test_a_nan_does_not_pass_as_equal(folder):
    video = clips(1, 2, 16)
    wanted = {"video_embeds": np.full((1, 24), np.nan, np.float32)}
    with pytest.raises(CheckError, match="differ from the model by nan"):
        prove(folder / "video.onnx", [Case((1, 2), {"video": video}, wanted)], "fp32")


def test_cases_lie_within_the_ranges():
    assert case_sizes((1, 1), (12, 12)) == [(1, 12)]
    assert case_sizes((2, 4), (5, 8)) == [(2, 5), (2, 8), (3, 5), (4, 8)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onxx"}, "did you mean 'onnx'"),
        ({"precision": "fp61"}, "did you mean 'fp16'"),
        ({"input": "unit8"}, "did you mean 'uint8'"),
        ({"tower": "vdieo"}, "did you mean 'video'"),
        ({"head": "classfy"}, "did you mean 'classify'"),
        ({"graph": "fusd"}, "did you mean 'fused'"),
        ({"opset": 17}, "opset is 17; allowed are 18 to 25"),
        ({"opset": 26}, "opset is 26"),
        ({"frames": 65}, "frames 65:65 is out of range; allowed are 1 to 64"),
        ({"frames": (8, 4)}, "frames 8:4"),
        ({"batch": 0}, "batch is 0; give a whole number"),
        ({"head": "classify"}, "needs the classes: --labels FILE"),
        ({"labels": ["a dog"]}, "CLIP's vocabulary"),
    ],
)
def test_bad_options(tiny_model, tmp_path, options, message):
    refused(tiny_model, tmp_path, message, InputError, **options)


@pytest.mark.parametrize("opset", OPSETS)
def test_the_ir_version_is_that_of_the_opset(opset):
    """ONNX's own table of its releases gives the smallest that a reader of the opset knows."""
    wanted = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    assert OPSETS[opset].ir == wanted


def test_the_page_has_the_same_table():
    rows = re.findall(r"^\| ([\d, ]+) \| ([\d, ]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    told = {
        int(n): Opset(int(ir), oldest)
        for opsets, irs, oldest in rows
        for n, ir in zip(opsets.split(","), irs.split(","), strict=True)
    }
    assert told == OPSETS


def test_packages_that_are_too_old_for_an_opset(tiny_model, tmp_path, monkeypatch):
    check_runtime(22, "1.21.0", "video.onnx")
    words = "video.onnx has opset 22.* from 1.21 on, and 1.20.1.*--opset 21"
    with pytest.raises(MissingError, match=words):
        check_runtime(22, "1.20.1", "video.onnx")
    monkeypatch.setattr("onnxruntime.__version__", "1.20.1")
    refused(tiny_model, tmp_path, "has opset 23.*--opset 21", MissingError, opset=23)
    monkeypatch.setattr("onnx.defs.onnx_opset_version", lambda: 23)
    refused(tiny_model, tmp_path, "opsets to 23, not 24.*--opset 23", MissingError, opset=24)


def test_a_folder_of_an_opset_that_is_too_new(tiny_model, tmp_path, monkeypatch):
    export_model(tiny_model, tmp_path / "x", opset=23)
    monkeypatch.setattr("onnxruntime.__version__", "1.22.0")
    with pytest.raises(MissingError, match="video.onnx has opset 23, which .* from 1.23 on"):
        si.open_session(tmp_path / "x")


def test_range_words():
    assert parse_range("12", "--frames") == 12
    assert parse_range("1:64", "--frames") == (1, 64)
    for bad in ("", "a", "1:2:3", "1-4"):
        with pytest.raises(InputError, match="--frames.*neither a number nor a range"):
            parse_range(bad, "--frames")


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


@pytest.fixture(scope="module")
def demo():
    return si.load_model(ROOT / "examples" / "motion" / "motion.safetensors")


@pytest.mark.parametrize("head", ["mean", "mug"])
def test_class_scores_are_baked_in(demo, tmp_path, head):
    model = Stan(demo.config.replace({"head": head})).eval()
    model.load_state_dict(demo.state_dict())
    labels = ["a shape moves left", "a shape moves right", "a circle"]
    export_model(model, tmp_path / "c", head="classify", labels=labels, card=True)
    session = si.open_session(tmp_path / "c", "ort")
    video = clips(2, model.config.frames, model.config.image_size)
    wanted = np.asarray(si.open_session(model).score(labels, video)).T
    graph = inference_session(tmp_path / "c" / "video.onnx")
    raw = graph.run(["scores", "probabilities"], {"video": video})
    assert relative_error(raw[0], wanted) < 1e-4
    weights = np.exp(wanted.astype(np.float64) / model.config.temperature)
    assert np.allclose(raw[1], weights / weights.sum(1, keepdims=True), atol=2e-3)
    assert (tmp_path / "c" / "labels.txt").read_text().splitlines() == labels
    assert np.asarray(session.score(labels, video)).shape == (3, 2)
    card = (tmp_path / "c" / "README.md").read_text()
    assert "| `video.onnx` | `video` | `fp32` |" in card and str(tmp_path) not in card


def test_labels_of_an_embedding_lie_beside_it(demo, tmp_path):
    export_model(demo, tmp_path / "e", labels=["left", "right"], template="a shape moves {}")
    vectors = np.load(tmp_path / "e" / "labels.npz")["embeddings"]
    ids = si.tokenize(["a shape moves left"], demo.config.context_length)
    wanted = demo.encode_text(torch.from_numpy(ids))[0]
    assert relative_error(vectors[0], wanted / wanted.norm()) < 1e-5
    with pytest.raises(InputError, match="one {} for the text"):
        export_model(demo, tmp_path / "x", labels=["left"], template="no place")


def test_the_mug_score_graph(demo, tmp_path):
    model = Stan(demo.config.replace({"head": "mug"})).eval()
    model.load_state_dict(demo.state_dict())
    artefact = export_model(model, tmp_path / "m")
    assert {g.role for g in artefact.graphs} == {"video", "text", "score", "preprocess"}
