"""Trunk and branch of a folder are checked as its other graphs are, before they run."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import helper

import stan_infer as si
from stan_infer.engines.folder_session import FolderSession
from stan_infer.errors import CheckError, InputError
from stan_infer.network.model import Stan, init_random
from tests.conftest import clips, tiny_config
from tests.exported import exported, rewrite
from tests.hostile.folders import add_to_result, constants, node


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(exported(tiny_model, split=True), tmp_path / "folder")


@pytest.fixture(params=["ort", "openvino"])
def engine(request):
    return request.param


def change(path, how):
    proto = onnx.load(path)
    how(proto)
    onnx.save(proto, path)


def refused(folder, engine, error, message):
    """The folder's video graph runs, its parts do not."""
    rewrite(folder)
    with si.open_session(folder, engine=engine) as session:
        session.embed_video(clips(1, 2, 16))
        with pytest.raises(error, match=message):
            session.stream(64)


@pytest.mark.parametrize("role", ["trunk", "branch"])
def test_parts_of_another_config(folder, engine, role):
    """Of the same shapes, so that nothing but the hash of the config tells."""
    other = exported(init_random(Stan(tiny_config(temperature=0.5)), 1), split=True)
    shutil.copy(other / f"{role}.onnx", folder)
    message = f"'model' in manifest.json is not what {role}.onnx was exported with"
    refused(folder, engine, CheckError, message)


@pytest.mark.parametrize(("role", "output"), [("trunk", "rows_0"), ("branch", "frame_embeds")])
def test_parts_with_other_outputs(folder, engine, role, output):
    def renamed(proto):
        (value,) = (v for v in proto.graph.output if v.name == output)
        value.name = "other"
        for one in proto.graph.node:
            for names in (one.input, one.output):
                names[:] = ["other" if n == output else n for n in names]

    change(folder / f"{role}.onnx", renamed)
    refused(
        folder, engine, InputError, f"{role}.onnx is not the graph that manifest.json describes"
    )


def test_a_part_that_takes_too_much_is_not_opened(folder, engine):
    def large(proto):
        constants(proto, size=np.array([2**20, 1, 1, 1, 1]))
        nodes = [
            node("Expand", ["rows_0", "size"], ["all"]),
            node("ReduceMax", ["all"], ["most"], keepdims=0),
        ]
        add_to_result(proto, nodes, "most")

    change(folder / "branch.onnx", large)
    refused(folder, engine, InputError, r"branch\.onnx takes \d+ MiB .* it was not run")


def test_a_part_that_takes_too_much_for_its_windows_is_not_run(folder, engine):
    """The cube of their tokens: few for the smallest window."""

    def cube(proto):
        constants(proto, size=np.array([-1, 32]), last=np.array([2]), first=np.array([0]))
        nodes = [
            node("Reshape", ["rows_0", "size"], ["x"]),
            node("Transpose", ["x"], ["xt"], perm=[1, 0]),
            node("MatMul", ["x", "xt"], ["xx"]),
            node("Unsqueeze", ["xx", "last"], ["left"]),
            node("Unsqueeze", ["xx", "first"], ["right"]),
            node("Mul", ["left", "right"], ["all"]),
            node("ReduceMax", ["all"], ["most"], keepdims=0),
        ]
        add_to_result(proto, nodes, "most")

    change(folder / "branch.onnx", cube)
    rewrite(folder)
    with si.open_session(folder, engine=engine) as session:
        assert len(session.stream(2).extend(clips(1, 2, 16)[0])) == 1
        stream = session.stream(64)
        with pytest.raises(InputError, match=r"branch\.onnx takes \d+ MiB .* it was not run"):
            stream.extend(clips(1, 64, 16)[0])


def test_rows_of_other_sizes_are_not_taken(folder, engine):
    """Whose shape is not known before the graph runs."""

    def shorter(proto):
        (last,) = (n for n in proto.graph.node if "rows_1" in n.output)
        last.output[:] = ["all" if n == "rows_1" else n for n in last.output]
        constants(proto, low=np.array([0]), axis=np.array([1]), one=np.array([1]))
        proto.graph.node.extend([
            node("Slice", ["all", "low", "one", "axis"], ["rows_1"]),
        ])  # fmt: skip
        (output,) = (v for v in proto.graph.output if v.name == "rows_1")
        output.CopyFrom(helper.make_tensor_value_info("rows_1", 1, ["frames", 5, 32]))

    change(folder / "trunk.onnx", shorter)
    rewrite(folder)
    with si.open_session(folder, engine=engine) as session:
        with pytest.raises(InputError, match=r"trunk\.onnx"):
            session.stream(2).extend(clips(1, 2, 16)[0])


def test_parts_are_opened_once_and_when_they_are_needed(folder, engine, monkeypatch):
    opened, real = [], FolderSession._open_graph

    def noted(self, graph):
        opened.append(graph.role)
        real(self, graph)

    monkeypatch.setattr(FolderSession, "_open_graph", noted)
    with si.open_session(folder, engine=engine) as session:
        assert opened == ["video", "text"]
        session.stream(2), session.stream(3)
        assert opened == ["video", "text", "trunk", "branch"]
