"""Exported folders of every precision, and copies of them that a test edits."""

import functools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from stan_infer.network.model import Stan, init_random
from stan_infer.quantisation.calibrate import calibrate
from stan_infer.quantisation.options import CalibrationOptions
from stan_infer.video.clip import read_clip_info
from tests.conftest import quicken, tiny_config, write_video
from tests.exported import exported, rewrite

VOCABULARY = {"vocab_size": 49408, "context_positions": 77, "context_length": 32}
LABELS = ["a dog", "a cat", "a red cross", "two people"]
# config, options of the export (a precision of 8 bits is calibrated), engine that runs it.
BASES: dict[str, tuple[dict, dict]] = {
    "uint8": ({"short_side": 20}, {}),
    "words": ({**VOCABULARY, "short_side": 20}, {"labels": LABELS, "head": "classify"}),
    "float": ({"short_side": 24}, {"input": "float"}),
    "mug": ({"head": "mug", "mug_tau": 50.0}, {}),
    "gelu": ({"activation": "gelu"}, {}),
    "conv": ({"branch": "conv"}, {}),
    "fp16": ({}, {"precision": "fp16"}),
    "bf16": ({}, {"precision": "bf16"}),
    "int8": ({}, {"precision": "int8"}),
    "fp8": ({}, {"precision": "fp8", "opset": 23}),
}
ENGINES = {"bf16": "openvino"}  # ONNX Runtime has no bf16 on a CPU


def calibrated(
    model: Stan, folder: Path, precision: str, engine: str | None = None, **options
) -> Path:
    """Export a model, calibrate it on 40 short videos, and write the folder, whatever its bound.

    Videos are decoded in this process, and 8 bits are judged in ONNX Runtime and `engine` alone:
    tests of calibrate have the rest.
    """
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        judged = ["ort", *([engine] if engine else [])]
        patch.setattr("stan_infer.quantisation.verdict.graph_engines", lambda: judged)
        for module in ("work", "ranges"):
            patch.setattr(f"stan_infer.quantisation.{module}.read_clips", _decoded_here)
        videos = folder.with_name("videos to calibrate")
        if not videos.exists():
            videos.mkdir()
            for seed in range(40):
                write_video(videos / f"{seed}.mp4", seed, frames=8)
        how = CalibrationOptions(
            precision=precision, samples=24, force=True, min_cosine=0.9, threads=1, workers=1
        )
        calibrate(exported(model, **options), videos, folder, how)
    return folder


def _decoded_here(paths, spec, **options):
    return ((path, read_clip_info(path, spec)) for path in paths)


@torch.no_grad()
def outlying(model: Stan) -> Stan:
    """A model in which smoothing moves scales: some channels of a norm are far larger."""
    for block in model.visual.transformer.resblocks:
        block.ln_1.weight[3:6] *= 10
        block.ln_2.weight[7] *= 10
    return model


class Bases:
    """The models and folders of BASES, made when they are first asked for."""

    def __init__(self, place: Path):
        self.place = place

    @functools.cache  # noqa: B019  # lives as long as the module's tests
    def __getitem__(self, name: str) -> tuple[Stan, Path]:
        config, options = BASES[name]
        model = init_random(Stan(tiny_config(**config)), seed=7).eval().requires_grad_(False)
        if name not in ("int8", "fp8"):
            return model, exported(model, **options)
        kept = {k: v for k, v in options.items() if k != "precision"}
        model = outlying(model)
        return model, calibrated(model, self.place / name, options["precision"], **kept)

    @functools.cache  # noqa: B019
    def other(self, precision: str) -> Path:
        """A folder of another model, in 8 bits."""
        model = init_random(Stan(tiny_config()), seed=8).eval().requires_grad_(False)
        return calibrated(outlying(model), self.place / f"other {precision}", precision)


class Folder:
    """A copy of an export, edited and hashed anew, so that only its numbers show the edit.

    The first part of a name, as "video" in "video/patches", is that of the graph it lies in.
    """

    def __init__(self, path: Path, model: Stan | None = None, bases: Bases | None = None):
        self.path, self.model, self.bases = path, model, bases
        self.manifest = json.loads((path / "manifest.json").read_text())
        self.graphs: dict[str, onnx.ModelProto] = {}

    def graph(self, name):
        file = f"{name.partition('/')[0]}.onnx"
        if file not in self.graphs:
            self.graphs[file] = onnx.load(self.path / file)
        return self.graphs[file].graph

    def tensor(self, name):
        (tensor,) = (t for t in self.graph(name).initializer if t.name == name)
        return tensor

    def array(self, name):
        return np.array(numpy_helper.to_array(self.tensor(name)))

    def weight(self, name, change):
        tensor = self.tensor(name)
        array = np.array(numpy_helper.to_array(tensor))
        changed = np.asarray(change(array.copy())).astype(array.dtype, order="C")
        assert changed.shape == array.shape and changed.tobytes() != array.tobytes(), name
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    def node(self, name):
        (node,) = (n for n in self.graph(name).node if n.name == name)
        return node

    def attribute(self, name, key, value):
        node = self.node(name)
        kept = [a for a in node.attribute if a.name != key]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(key, value)])

    def bypass(self, name, keep):
        """Make a node hand on its input number `keep`."""
        node = self.node(name)
        (kept,) = node.input[keep : keep + 1]
        node.op_type = "Identity"
        del node.input[:], node.attribute[:]
        node.input.append(kept)

    def before(self, name, *new, at=0):
        """Put nodes, one after the other, in front of an input of another one."""
        target, nodes = self.node(name), self.graph(name).node
        value = target.input[at]
        for node in new:
            for i, x in enumerate(node.input):
                node.input[i] = x or value
            nodes.insert(list(nodes).index(target), node)
        target.input[at] = new[-1].output[0]

    def constant(self, array, graph="video"):
        weights = self.graph(graph).initializer
        weights.append(numpy_helper.from_array(np.asarray(array), f"fault/{len(weights)}"))
        return weights[-1].name

    def save(self):
        for file, model in self.graphs.items():
            onnx.save(model, self.path / file)
        rewrite(self.path, lambda manifest: manifest.update(self.manifest))
