"""Other people's tools take every graph that we write, and its outputs stay right.

What a tool cannot do, whoever wrote the graph, is in GRAPHS.md; the packages are in extra `dev`.
"""

import multiprocessing
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest

import stan_infer as si
from stan_infer.network.model import Stan, init_random
from tests.conftest import ROOT, tiny_config
from tests.exported import exported

ROUNDED = 1e-5  # nodes are only removed, fused or computed beforehand
HALF = 1e-2  # fp16 has 11 bits, and some ten rounded operations follow each other
# int8 with one scale a tensor, chosen while it runs, on tiny networks: least cosine of embeddings,
# and largest difference of class scores (cosines) and of probabilities, a steep function of these.
COSINE, SCORES = 0.99, {"scores": 0.05, "probabilities": 0.1}
SECONDS = 120  # one tool loops for ever over some graphs

LABELS = ["a shape moves left", "a shape moves right", "a circle"]
CLASSES = {"head": "classify", "labels": LABELS}
# Name -> model and options of its export; files of each that are looked at.
KINDS = {
    "free axes": ("tiny", {}, ("video", "text", "preprocess")),
    "fixed axes": ("tiny", {"batch": 2, "frames": 6}, ("video",)),
    "opset 18": ("tiny", {"opset": 18}, ("video", "text", "preprocess")),
    "opset 23": ("tiny", {"opset": 23}, ("video", "text")),
    "floats": ("tiny", {"input": "float"}, ("video",)),
    "conv": ("conv", {}, ("video",)),
    "classes": ("demo", CLASSES, ("video", "text")),
    "mug": ("mug", CLASSES, ("video", "score")),
    "fp16": ("tiny", {"precision": "fp16"}, ("video", "text")),
    "fp16 mug": ("mug", {"precision": "fp16", **CLASSES}, ("video",)),
}


def model(name):
    if name in ("tiny", "conv"):
        branch = "conv" if name == "conv" else "selfattn"
        return init_random(Stan(tiny_config(branch=branch)), seed=1).eval().requires_grad_(False)
    demo = si.load_model(ROOT / "examples" / "motion" / "motion.safetensors")
    if name == "demo":
        return demo
    mug = Stan(demo.config.replace({"head": "mug"})).eval()
    mug.load_state_dict(demo.state_dict())
    return mug


def onnxsim(source, out, file):
    from onnxsim import simplify

    simplified, is_same = simplify(onnx.load(source))
    assert is_same
    onnx.save(simplified, out)


def onnxslim(source, out, file):
    from onnxslim import slim

    slim(str(source), str(out))


def optimised(source, file):
    from onnxruntime.transformers.optimizer import optimize_model

    # Without heads: it finds them by itself where it fuses attentions, which it does not here.
    kind = "clip" if file == "text" else "vit"
    return optimize_model(str(source), model_type=kind, num_heads=0, hidden_size=0, opt_level=0)


def transformers_optimizer(source, out, file):
    optimised(source, file).save_model_to_file(str(out))


def optimizer_to_float16(source, out, file):
    graph = optimised(source, file)
    graph.convert_float_to_float16(keep_io_types=True)
    graph.save_model_to_file(str(out))


def quant_pre_process(source, out, file):
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(source), str(out), auto_merge=True)


def quantize_dynamic(source, out, file):
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(source), str(out))


def float16_of_onnxruntime(source, out, file):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), out)


def float16_of_onnxconverter_common(source, out, file):
    from onnxconverter_common import float16

    # Otherwise it gives a Cast to float32 an output of float16.
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, "Cast"]
    converted = float16.convert_float_to_float16(
        onnx.load(source), keep_io_types=True, op_block_list=blocked
    )
    onnx.save(converted, out)


# Tool -> largest error; whether it is for fp32 towers only; kinds that make it loop for ever.
TOOLS = {
    onnxsim: (ROUNDED, False, ()),
    onnxslim: (ROUNDED, False, ()),
    transformers_optimizer: (ROUNDED, False, ()),
    quant_pre_process: (ROUNDED, False, ()),
    optimizer_to_float16: (HALF, True, ()),
    float16_of_onnxruntime: (HALF, True, ()),
    float16_of_onnxconverter_common: (HALF, True, ("mug",)),
    quantize_dynamic: (None, True, ()),
}


def feeds(folder, file):
    """The golden inputs, and where axes are free other sizes too."""
    golden = np.load(folder / "golden.npz")
    if file == "score":
        return [{k: golden[k] for k in ("token_embeds", "input_ids", "frame_embeds")}]
    name = {"video": "video", "text": "input_ids", "preprocess": "frames"}[file]
    found, (given, *_) = [golden[name]], opened(folder / f"{file}.onnx").get_inputs()
    if isinstance(given.shape[0], str):
        found.append(found[0][:1])
        if file != "text":
            found.append(np.concatenate([found[0], found[0]])[:3, :5])
    return [{name: values} for values in found]


def opened(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # On a CPU without VNNI, sums of int8 are cut off otherwise: see the engine's session.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(path, inputs):
    session = opened(path)
    names = [o.name for o in session.get_outputs()]
    return [dict(zip(names, session.run(names, given), strict=True)) for given in inputs]


def cases():
    """Every tool with every kind, but for those that it cannot take: GRAPHS.md has the reasons."""
    for tool, (_, is_for_fp32, endless) in TOOLS.items():
        for kind in KINDS:
            if kind not in endless and not (is_for_fp32 and kind.startswith("fp16")):
                yield pytest.param(tool, kind, id=f"{tool.__name__}-{kind}")


@pytest.mark.parametrize(("tool", "kind"), list(cases()))
def test_outputs_stay_right(tool, kind, tmp_path):
    allowed, is_for_fp32, _ = TOOLS[tool]
    name, options, files = KINDS[kind]
    folder = exported(model(name), **options)
    for file in files:
        if is_for_fp32 and (file == "preprocess" or (tool is quantize_dynamic and file == "score")):
            continue  # exact integers in fp32, and no weights
        source, out = folder / f"{file}.onnx", tmp_path / f"{file}.onnx"
        child = multiprocessing.get_context("fork").Process(
            target=quietly, args=(tool, source, out, file)
        )
        child.start()
        child.join(SECONDS)
        if child.is_alive():
            child.kill()
        assert child.exitcode == 0, f"{tool.__name__} ends with {child.exitcode} over {file}.onnx"
        inputs = feeds(folder, file)
        compare(outputs(out, inputs), outputs(source, inputs), allowed or 0.0)
        if not is_for_fp32:
            onnx.checker.check_model(str(out))


def quietly(tool, source, out, file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tool(source, out, file)


def compare(got, wanted, allowed):
    for one, other in zip(got, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, w in other.items():
            g = one[name]
            assert (g.shape, g.dtype) == (w.shape, w.dtype), name
            g, w = g.ravel().astype(np.float64), w.ravel().astype(np.float64)
            if allowed:
                assert np.abs(g - w).max() <= allowed * np.abs(w).max(), name
            elif name in SCORES:
                assert np.abs(g - w).max() <= SCORES[name], name
            else:
                assert g @ w >= COSINE * np.linalg.norm(g) * np.linalg.norm(w), name
