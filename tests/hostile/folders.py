"""Hostile variants of an exported folder: hashes are right, so that only the content is hostile."""

import functools
import hashlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_BEFORE = "before"
node = helper.make_node


def constants(model, **values):
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def add_to_result(model, nodes, value):
    """Compute `value` [] float and add it to video_embeds, so that no runtime leaves it out."""
    rename_result(model)
    model.graph.node.extend([*nodes, node("Add", [_BEFORE, value], ["video_embeds"])])


def rename_result(model):
    for one in model.graph.node:
        one.output[:] = [_BEFORE if name == "video_embeds" else name for name in one.output]


def value(name, kind, shape=()):
    return helper.make_tensor_value_info(name, kind, shape)


def endless_loop(model):
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Add", ["sum", "step"], ["total"])],
        "body",
        [value("i", TensorProto.INT64), value("go", TensorProto.BOOL), value("sum", 1)],
        [value("on", TensorProto.BOOL), value("total", 1)],
    )
    constants(model, step=np.float32(1), start=np.float32(0), yes=True, rounds=np.int64(2**62))
    add_to_result(model, [node("Loop", ["rounds", "yes", "start"], ["v"], body=body)], "v")


def branches(model):
    one = helper.make_graph([node("Identity", ["zero"], ["r"])], "one", [], [value("r", 1)])
    constants(model, zero=np.float32(0), yes=True)
    both = {"then_branch": one, "else_branch": one}
    add_to_result(model, [node("If", ["yes"], ["v"], **both)], "v")


def functions(model):
    opsets = [helper.make_opsetid("own", 1), helper.make_opsetid("", 20)]
    model.opset_import.append(opsets[0])
    model.functions.append(
        helper.make_function("own", "F", ["x"], ["y"], [node("Neg", ["x"], ["y"])], opsets)
    )
    constants(model, zero=np.float32(0))
    add_to_result(model, [node("F", ["zero"], ["v"], domain="own")], "v")


def foreign_node(model):
    constants(model, zero=np.float32(0))
    add_to_result(model, [node("Gelu", ["zero"], ["v"], domain="com.microsoft")], "v")


def foreign_domain(model):
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    foreign_node(model)


def tiled(model):
    constants(model, one=np.ones(1, np.float32), n=np.array([2**15]))
    tiles = [node("Tile", ["one", "n"], ["t"]), node("Tile", ["t", "n"], ["u"])]
    add_to_result(model, [*tiles, node("ReduceMax", ["u"], ["v"], keepdims=0)], "v")


def filled(model):
    constants(model, n=np.array([2**29]))
    made = [node("ConstantOfShape", ["n"], ["u"]), node("ReduceMax", ["u"], ["v"], keepdims=0)]
    add_to_result(model, made, "v")


def outer(model):
    """A gigabyte from a broadcast sum, without an operation that takes a size."""
    constants(model, row=np.ones((1, 2**14), np.float32), turn=np.array([-1, 1]))
    add_to_result(
        model,
        [
            node("Reshape", ["row", "turn"], ["column"]),
            node("Add", ["row", "column"], ["u"]),
            node("ReduceMax", ["u"], ["v"], keepdims=0),
        ],
        "v",
    )


def grows_with_batch(model):
    """Harmless for one clip, gigabytes for two."""
    constants(model, n=np.array([2**28]), one=np.array([1]), zero=np.array([0]))
    add_to_result(
        model,
        [
            node("Shape", ["video"], ["sizes"]),
            node("Slice", ["sizes", "zero", "one"], ["batch"]),
            node("Sub", ["batch", "one"], ["more"]),
            node("Mul", ["more", "n"], ["m"]),
            node("Max", ["m", "one"], ["size"]),
            node("ConstantOfShape", ["size"], ["u"]),
            node("ReduceMax", ["u"], ["v"], keepdims=0),
        ],
        "v",
    )


def long_work(model):
    """An hour of products, none of them large."""
    constants(model, w=np.ones((1024, 1024), np.float32))
    steps = [node("MatMul", ["w", "w"], ["v0"])]
    steps += [node("MatMul", [f"v{i}", "w"], [f"v{i + 1}"]) for i in range(9000)]
    add_to_result(model, [*steps, node("ReduceMax", ["v9000"], ["v"], keepdims=0)], "v")


def many_nodes(model):
    constants(model, zero=np.float32(0))
    steps = [node("Identity", ["zero"], ["v0"])]
    steps += [node("Identity", [f"v{i}"], [f"v{i + 1}"]) for i in range(60_000)]
    add_to_result(model, steps, "v60000")


def data_decides(model):
    """A size that depends on the pixels."""
    add_to_result(
        model,
        [
            node("ReduceMax", ["video"], ["brightest"], keepdims=0),
            node("Cast", ["brightest"], ["n"], to=TensorProto.INT64),
            node("Expand", ["one", "n"], ["u"]),
            node("ReduceMax", ["u"], ["v"], keepdims=0),
        ],
        "v",
    )
    constants(model, one=np.ones(1, np.float32))


def one_row(model):
    """One row whatever the batch."""
    constants(model, zero=np.array([0]), one=np.array([1]))
    rename_result(model)
    model.graph.node.append(node("Slice", [_BEFORE, "zero", "one"], ["video_embeds"]))


def escapes(model):
    """Terminal commands and a forged line in a node's name, in a graph that fails when it runs."""
    name = "\x1b]0;title\x07\x1b[2J\nFORGED: all checks passed\n"
    constants(model, at=np.array(5000), zero=np.float32(0))
    add_to_result(
        model,
        [
            node("Shape", ["video"], ["sizes"]),
            node("Gather", ["sizes", "at"], ["n"], axis=0, name=name),
            node("Cast", ["n"], ["f"], to=1),
            node("Mul", ["f", "zero"], ["v"]),
        ],
        "v",
    )


def escapes_in_operation(model):
    constants(model, zero=np.float32(0))
    add_to_result(model, [node("\x1b[2J\nFORGED", ["zero"], ["v"])], "v")


def reads_outside(model):
    tensor = TensorProto(name="ext", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", "/etc/hostname"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=text)
    model.graph.initializer.append(tensor)
    add_to_result(model, [node("Identity", ["ext"], ["v"])], "v")


def claims_more(model):
    """A weight whose sizes claim a terabyte that is not there."""
    tensor = TensorProto(name="big", data_type=1, dims=[2**38], raw_data=b"\0" * 4)
    model.graph.initializer.append(tensor)
    add_to_result(model, [node("ReduceMax", ["big"], ["v"], keepdims=0)], "v")


GRAPHS = {
    f.__name__: f
    for f in (
        endless_loop, branches, functions, foreign_domain, foreign_node, tiled, filled, outer,
        grows_with_batch, long_work, many_nodes, data_decides, one_row, escapes,
        escapes_in_operation, reads_outside, claims_more,
    )
}  # fmt: skip


def sparse_graph(folder: Path, manifest: dict) -> None:
    os.truncate(folder / "text.onnx", 2**40)
    manifest["files"]["text.onnx"] = {"bytes": 2**40, "sha256": "0" * 64}


def golden_elsewhere(folder: Path, manifest: dict) -> None:
    """Inside the folder, but with no hash of its own: a link that leads out."""
    (folder / "golden2.npz").symlink_to("/etc/hostname")
    manifest["golden"]["file"] = "golden2.npz"


def golden_bomb(folder: Path, manifest: dict) -> None:
    """Two megabytes that unpack to two gigabytes."""
    path = folder / manifest["golden"]["file"]
    path.write_bytes(_bomb())
    manifest["files"][path.name] = entry_of(path)


@functools.cache  # it takes many seconds
def _bomb() -> bytes:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z,
        z.open("video.npy", "w", force_zip64=True) as f,
    ):
        np.lib.format.write_array_header_1_0(
            f, {"descr": "<f4", "fortran_order": False, "shape": (2**29,)}
        )
        for _ in range(2**7):
            f.write(bytes(2**24))
    return packed.getvalue()


def deep(folder: Path, manifest: dict) -> None:
    manifest["command"] = "@"  # replaced below: json.dumps cannot nest so deep


FOLDERS = {f.__name__: f for f in (sparse_graph, golden_elsewhere, golden_bomb, deep)}


def entry_of(path: Path) -> dict:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write(source: Path, out: Path, case: str) -> Path:
    """Write one hostile variant of the folder `source` and return it."""
    shutil.copytree(source, out)
    manifest = json.loads((out / "manifest.json").read_text())
    if case in GRAPHS:
        model = onnx.load(str(out / "video.onnx"))
        GRAPHS[case](model)
        (out / "video.onnx").write_bytes(model.SerializeToString())
        manifest["files"]["video.onnx"] = entry_of(out / "video.onnx")
    else:
        FOLDERS[case](out, manifest)
    text = json.dumps(manifest)
    if case == "deep":
        text = text.replace('"@"', "[" * 100_000 + "]" * 100_000)
    (out / "manifest.json").write_text(text)
    return out
