"""Sizes, memory and work of a graph: ONNX Runtime is the oracle, hostile graphs are refused."""

import json
from math import prod

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stan_infer.artefacts.onnx_file import DTYPES, read_graph
from stan_infer.artefacts.onnx_operations import OPERATIONS, Value
from stan_infer.artefacts.onnx_sizes import allowed, check_need, check_operations, measure
from stan_infer.checkpoints.load import load_model
from stan_infer.config import StanConfig
from stan_infer.engines.ort_session import inference_session
from stan_infer.errors import InputError
from stan_infer.network.model import Stan, init_random
from tests.conftest import ROOT, tiny_config
from tests.exported import exported
from tests.golden.make import SETTINGS

GOLDEN = ROOT / "tests" / "golden"

FORMS = {
    "plain": {},
    "reference": {"graph": "reference"},
    "fp16": {"precision": "fp16"},
    "fixed": {"frames": (4, 4), "batch": (1, 1)},
    "one frame": {"frames": (1, 1)},
    "floats": {"input": "float"},
    "opset 18": {"opset": 18},
    "split": {"split": True},
}


MODELS = {  # file, settings, options
    **{name: ("tiny.pth", {}, options) for name, options in FORMS.items()},
    "mug": ("tiny.pth", {"head": "mug"}, {}),
    "gelu": ("tiny.pth", {"activation": "gelu"}, {"graph": "reference"}),
    "conv": ("conv.pth", {}, {}),
}


BY_TORCH = ("reference", "gelu")  # torch.onnx.export takes 15 s


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow if n in BY_TORCH else ()) for n in MODELS],
)
def folder(request):
    file, settings, options = MODELS[request.param]
    return exported(load_model(GOLDEN / file, {**SETTINGS, **settings}), **options)


def inputs_of(entry, pick):
    """Inputs of a graph at the smallest or at larger sizes that its manifest allows."""
    sizes = {k: min(v[pick], {"frames": 9, "batch": 3, "length": 20}.get(k, 3)) for k, v in
             entry["dims"].items()}  # fmt: skip
    extra = {"texts": 2, "clips": 3, "height": 40, "width": 50}
    return {
        v["name"]: (
            v["dtype"],
            [n if isinstance(n, int) else sizes.get(n) or extra.get(n, 5) for n in v["shape"]],
        )
        for v in entry["inputs"]
    }


def every_value(path):
    """The graph with each node's outputs among its own."""
    model = onnx.load(str(path))
    known = {o.name for o in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in known:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
    return model.SerializeToString()


def sizes_of(graph, inputs):
    """Every value that measure follows, by name."""
    import stan_infer.artefacts.onnx_sizes as module

    seen: dict[str, Value] = {}
    real = module._run

    def watch(node, taken):
        made, effort = real(node, taken)
        seen.update(zip(node.outputs, made, strict=False))
        return made, effort

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_run", watch)
        measure(graph, inputs)
    return seen


def test_sizes_are_those_of_the_runtime(folder):
    """Every value of every graph, at the smallest and at larger sizes."""
    entries = json.loads((folder / "manifest.json").read_text())["graphs"]
    for entry in entries:
        path = folder / entry["file"]
        graph, session = read_graph(path), inference_session(every_value(path))
        names = [o.name for o in session.get_outputs()]
        for pick in (0, 1):
            inputs = inputs_of(entry, pick)
            seen = sizes_of(graph, inputs)
            feeds = {n: np.ones(dims, dtype) for n, (dtype, dims) in inputs.items()}
            for name, value in zip(names, session.run(names, feeds), strict=True):
                assert seen[name].dims == value.shape, (entry["file"], inputs, name)
                assert DTYPES[seen[name].dtype][0] in (None, value.dtype.name), (name, inputs)


def test_honest_graphs_need_far_less_than_is_allowed(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    config = StanConfig.from_dict(manifest["model"])
    for entry in manifest["graphs"]:
        graph = read_graph(folder / entry["file"])
        check_operations(graph)
        for pick in (0, 1):
            inputs = inputs_of(entry, pick)
            need, most = measure(graph, inputs), allowed(graph, config, inputs)
            check_need(graph, config, inputs)
            # The constant allowance aside, every graph needs at most two thirds of what is allowed.
            weights = sum(prod(w.dims) * 4 for w in graph.weights.values())
            assert need.bytes - weights <= 2 / 3 * (most.bytes - 64 * 2**20)
            if entry["role"] in ("video", "trunk", "branch", "text"):
                assert need.work <= 2 / 3 * (most.work - 10**9)


def test_the_parts_of_a_model_of_a_real_size_may_run():
    """A small one hides behind the constants: the trunk was held for a graph of preprocessing."""
    model = init_random(Stan(tiny_config(width=512, layers=2, image_size=64, short_side=64)))
    folder = exported(model.eval(), split=True, tower="video")
    manifest = json.loads((folder / "manifest.json").read_text())
    config = StanConfig.from_dict(manifest["model"])
    parts = [g for g in manifest["graphs"] if g["role"] in ("video", "trunk", "branch")]
    for entry in parts:
        graph = read_graph(folder / entry["file"])
        _, (dtype, dims) = next(iter(inputs_of(entry, 0).items()))
        many = [64, *dims[1:]] if entry["role"] == "trunk" else [4, 16, *dims[2:]]
        inputs = {v["name"]: (dtype, many) for v in entry["inputs"]}
        need, most = measure(graph, inputs), allowed(graph, config, inputs)
        assert 10**9 < need.work <= 2 / 3 * (most.work - 10**9), entry["role"]
    assert len(parts) == 3


def graph_of(nodes, weights=(), sizes=(None, 4)):
    """A graph of one input x, float [?, 4], that returns y."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, sizes) for n in "xy")
    initializer = [numpy_helper.from_array(np.asarray(v), n) for n, v in dict(weights).items()]
    graph = helper.make_graph([helper.make_node(*n[:3], **(n[3:] or ({},))[0]) for n in nodes],
                              "g", [x], [y], initializer)  # fmt: skip
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset]).SerializeToString()


def long(*values):
    return np.array(values, np.int64)


GREEDY = {
    "filled": ([("ConstantOfShape", ["n"], ["v"]), ("ReduceMax", ["v"], ["y"])],
               {"n": long(2**30)}),
    "expanded": ([("Expand", ["x", "n"], ["v"]), ("ReduceMax", ["v"], ["y"])],
                 {"n": long(2**28, 1, 1)}),
    "outer sum": ([("Range", ["z", "n", "one"], ["r"]), ("Unsqueeze", ["r", "one"], ["c"]),
                   ("Add", ["r", "c"], ["v"]), ("ReduceMax", ["v"], ["y"])],
                  {"z": np.int64(0), "n": np.int64(2**17), "one": np.int64(1)}),
    "doubled": ([("Concat", ["x", "x"], ["v0"], {"axis": 1})]
                + [("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], {"axis": 1}) for i in range(30)]
                + [("ReduceMax", ["v30"], ["y"])], {}),
    "outer product": ([("Reshape", ["x", "col"], ["c"]), ("Expand", ["c", "n"], ["e"]),
                       ("Transpose", ["e"], ["t"]), ("MatMul", ["t", "e"], ["v"]),
                       ("ReduceMax", ["v"], ["y"])],
                      {"col": long(-1, 1), "n": long(1, 2**14)}),
    "gathered": ([("Shape", ["x"], ["s"]), ("Expand", ["s", "n"], ["i"]),
                  ("Gather", ["w", "i"], ["v"]), ("ReduceMax", ["v"], ["y"])],
                 {"n": long(2**20, 2), "w": np.ones((64, 512), np.float32)}),
    "padded": ([("Reshape", ["x", "image"], ["i"]), ("Conv", ["i", "w"], ["v"],
                {"pads": [2**15] * 4}), ("ReduceMax", ["v"], ["y"])],
               {"image": long(-1, 1, 1, 4), "w": np.ones((1, 1, 1, 1), np.float32)}),
    "kept alive": ([("Expand", ["x", "n"], [f"v{i}"]) for i in range(60)]
                   + [("Concat", [f"v{i}" for i in range(60)], ["c"], {"axis": 0}),
                      ("ReduceMax", ["c"], ["y"])], {"n": long(2**17, 1, 1)}),
    "long": ([("MatMul", ["w", "w"], ["v0"])]
             + [("MatMul", [f"v{i}", "w"], [f"v{i + 1}"]) for i in range(2000)]
             + [("ReduceMax", ["v2000"], ["y"])], {"w": np.ones((512, 512), np.float32)}),
}  # fmt: skip


@pytest.mark.parametrize("case", GREEDY)
def test_what_makes_gigabytes_or_hours_is_refused(case):
    graph = read_graph(graph_of(*GREEDY[case]), "m.onnx")
    check_operations(graph)
    with pytest.raises(InputError, match=r"m\.onnx takes \d+ MiB and .* it was not run"):
        check_need(graph, tiny_config(), {"x": ("float32", (2, 4))})


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([("Reshape", ["x", "x"], ["y"])], {}),
        ([("Cast", ["x"], ["i"], {"to": 7}), ("Reshape", ["x", "i"], ["y"])], {}),
        ([("Reshape", ["x", "n"], ["y"])], {"n": long(-1, -1)}),
        ([("Reshape", ["x", "n"], ["y"])], {"n": long(7, 7)}),
        ([("Add", ["x", "n"], ["y"])], {"n": np.ones(3, np.float32)}),
        ([("MatMul", ["x", "x"], ["y"])], {}),
        ([("Add", ["x", "none"], ["y"])], {}),
        ([("Add", ["y", "x"], ["y"])], {}),
        ([("Transpose", ["x"], ["y"], {"perm": [0, 0]})], {}),
        ([("Concat", ["x", "x"], ["y"], {"axis": 5})], {}),
        ([("Concat", ["x", "x"], ["y"])], {}),
        ([("Split", ["x", "n"], ["y", "z"])], {"n": long(9, -7)}),
        ([("Split", ["x"], ["y", "y"])], {}),
        ([("Identity", ["x"], ["a"]), ("Identity", ["x"], ["a"])], {}),
        ([("Expand", ["x", "n"], ["y"])], {"n": long(*[2] * 60)}),
        ([("Expand", ["x", "n"], ["y"])], {"n": long(2**62, 2, 4)}),
        ([("ConstantOfShape", ["n"], ["y"])], {"n": long(-5)}),
        ([("Range", ["n", "n", "n"], ["y"])], {"n": np.int64(0)}),
        ([("Div", ["n", "z"], ["y"])], {"n": long(1), "z": long(0)}),
        ([("Gather", ["n", "i"], ["y"])], {"n": long(1), "i": long(9)}),
        ([("Cast", ["x"], ["y"], {"to": 99})], {}),
        ([("Conv", ["x", "x"], ["y"])], {}),
        ([("Slice", ["x", "n", "n", "n", "z"], ["y"])], {"n": long(0), "z": long(0)}),
        ([("Constant", [], ["y"])], {}),
    ],
)
def test_sizes_that_do_not_follow_are_an_error(nodes, weights):
    graph = read_graph(graph_of(nodes, weights), "m.onnx")
    with pytest.raises(InputError, match=r"m\.onnx"):
        measure(graph, {"x": ("float32", (2, 4))})


def test_an_input_of_a_type_that_no_graph_takes():
    """A stranger's manifest may name any dtype, and build_plans takes sizes from it."""
    graph = read_graph(graph_of([("Identity", ["x"], ["y"])]), "m.onnx")
    with pytest.raises(InputError, match="its input 'x' cannot be 'complex64'"):
        measure(graph, {"x": ("complex64", (2, 4))})


def onnx_cases():
    """The test cases of the ONNX project itself, for the operations that we allow."""
    from onnx.backend.test.case.node import collect_testcases

    for case in collect_testcases(None):
        graph, sets = case.model.graph, case.model.opset_import
        if {n.op_type for n in graph.node} <= {*OPERATIONS} and all(
            o.domain == "" and o.version >= 18 for o in sets
        ):
            yield case


def test_sizes_of_the_onnx_projects_own_cases():
    """Inputs that decide a size become constants: in a graph of ours they follow from others."""
    right, wrong = 0, []
    for case in onnx_cases():
        model, (given, wanted) = case.model, case.data_sets[0]
        arrays = {
            value.name: numpy_helper.to_array(a) if isinstance(a, TensorProto) else np.asarray(a)
            for values, data in ((model.graph.input, given), (model.graph.output, wanted))
            for value, a in zip(values, data, strict=False)
        }
        inputs = {}
        for i, value in enumerate(model.graph.input):
            array = arrays[value.name]
            is_size = i or model.graph.node[0].op_type in ("ConstantOfShape", "Range")
            if is_size and array.dtype.kind in "iu" and array.size <= 64:
                model.graph.initializer.append(numpy_helper.from_array(array, value.name))
            else:
                inputs[value.name] = (array.dtype.name, array.shape)
        try:
            graph = read_graph(model.SerializeToString(), case.name)
            values = sizes_of(graph, inputs)
        except InputError:  # types and attributes that no graph of ours has
            continue
        for value in model.graph.output:
            found, real = values[value.name].dims, arrays[value.name].shape
            wrong += [] if found == real else [(case.name, found, real)]
            right += 1
    assert not wrong and right > 250


@pytest.mark.parametrize("op", ["Loop", "If", "Scan", "Tile", "Resize", "NonZero", "RandomNormal"])
def test_operations_of_no_exporter_are_refused_by_name(op):
    graph = read_graph(graph_of([(op, ["x"], ["y"])]), "m.onnx")
    with pytest.raises(InputError, match=f"has the operation '{op}', which no graph written by"):
        check_operations(graph)


def test_every_operation_takes_any_inputs_without_another_error():
    """Whatever stands in a node, what comes out is a size or an InputError."""
    rng = np.random.default_rng(0)
    weights = {"a": long(0), "b": long(3, 1), "c": np.ones((2, 3), np.float32),
               "d": np.float32(0.5), "e": long(), "f": np.zeros((0, 2), np.float32)}  # fmt: skip
    options = [{}, {"axis": 1}, {"axis": -9}, {"axes": [0]}, {"perm": [1]}, {"keepdims": 0},
               {"to": 1}, {"pads": [1]}, {"split": [1, 1]}, {"axis": "x"}, {"to": [1]},
               {"value": 1.5}, {"axes": 3}, {"perm": "ab"}, {"start": 4}]  # fmt: skip
    refused = 0
    for op in OPERATIONS:
        for _ in range(60):
            given = [str(n) for n in rng.choice([*weights, "x"], rng.integers(0, 5))]
            option = options[rng.integers(len(options))]
            graph = read_graph(graph_of([(op, given, ["y"], option)], weights), "m.onnx")
            try:
                measure(graph, {"x": ("float32", (2, 4))})
            except InputError:
                refused += 1
    assert 0 < refused < 60 * len(OPERATIONS)
