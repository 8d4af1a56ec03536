"""Folded weights of the video tower, read back from the fp32 graph that an export wrote."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import Tensor

from stan_infer.artefacts.folder import Artefact
from stan_infer.artefacts.graph_source import graph_source
from stan_infer.artefacts.npz_file import label_fields, read_npz
from stan_infer.errors import InputError
from stan_infer.network.fold import (
    BranchLayer,
    Conv,
    LastSpatial,
    Layer,
    Patches,
    Product,
    Stream,
    Temporal,
    VideoWeights,
)


def read_weights(artefact: Artefact) -> VideoWeights:
    """Read the weights of an exported folder, whose video graph must be fp32 and fused.

    Raises InputError for a folder without such a graph, or one that lacks a weight.
    """
    graph = artefact.graph("video")
    if graph is None:
        raise InputError(f"{artefact.path} holds no video graph")
    entry = next(g for g in artefact.manifest["graphs"] if g["file"] == graph.file)
    if graph.precision != "fp32" or entry.get("graph") != "fused":
        raise InputError(
            f"{artefact.path} is {graph.precision}, graph {str(entry.get('graph'))[:20]}; "
            "calibration starts from fp32 and the fused graph: give the checkpoint, or "
            "stan-infer export CHECKPOINT -o FOLDER"
        )
    with graph_source(artefact, graph) as source:
        try:
            proto = onnx.load(source.path)
        except Exception as e:
            # protobuf raises its own class, which shares no base but Exception.
            raise InputError(f"{graph.file} is no ONNX file: {str(e)[:100]}") from e
    tensors = {t.name: t for t in proto.graph.initializer}
    return _Reader(artefact, tensors, graph.inputs[0]["dtype"]).read()


class _Reader:
    def __init__(
        self, artefact: Artefact, tensors: dict[str, onnx.TensorProto], dtype: str
    ) -> None:
        self._artefact, self._tensors, self._dtype = artefact, tensors, dtype
        self._config = artefact.config

    def tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise InputError(f"{self._artefact.path}: its video graph has no weight '{name}'")
        values = onnx.numpy_helper.to_array(self._tensors[name])
        if values.dtype != np.float32 or not np.isfinite(values).all():
            raise InputError(
                f"{self._artefact.path}: weight '{name}' is not finite float32; export again"
            )
        return torch.from_numpy(values.copy())

    def product(self, name: str) -> Product:
        return Product(self.tensor(f"{name}/weight").T.contiguous(), self.tensor(f"{name}/bias"))

    def layer(self, path: str, block: str) -> Layer:
        of = {"qkv": block, "out": block, "fc1": "mlp", "fc2": "mlp"}
        return Layer(**{n: self.product(f"{path}/{b}/{n}") for n, b in of.items()})

    def read(self) -> VideoWeights:
        c = self._config
        name = "silu" if c.activation == "quick_gelu" else c.activation
        positions, time = self.tables()
        at = "video/patches"
        return VideoWeights(
            Stream(c.heads, c.norm_eps, name, 1.0, False),
            Patches(
                self.tensor(f"{at}/weight").T.contiguous(),
                self.tensor(f"{at}/positions"),
                self.tensor(f"{at}/gamma"),
                self.tensor(f"{at}/beta"),
                self.tensor(f"{at}/class").flatten(),
                c.patch,
                "BTHWC" if self._dtype == "uint8" else "BTCHW",
            ),
            tuple(self.layer(f"video/trunk/layer{i}", "attention") for i in range(c.layers)),
            self.tensor("video/branch/layer0/start/class"),
            positions,
            time,
            tuple(self.branch(k) for k in range(c.branch_layers)),
            self.product("video/head/video"),
        )

    def tables(self) -> tuple[Tensor, Tensor]:
        """Positions [P, D] and times [T, D]; of a fixed T the graph has their sum alone."""
        at = "video/branch/layer0/start"
        if f"{at}/table" not in self._tensors:
            return self.tensor(f"{at}/positions"), self.tensor(f"{at}/time")
        table = self.tensor(f"{at}/table")  # [T, P, D]
        return table[0], table[:, 0] - table[0, 0]

    def branch(self, k: int) -> BranchLayer:
        path = f"video/branch/layer{k}"
        if k < self._config.branch_layers - 1:
            return BranchLayer(self.temporal(path), self.layer(path, "spatial"))
        spatial = f"{path}/spatial"
        last = LastSpatial(
            self.product(f"{spatial}/q"),
            self.tensor(f"{spatial}/softmax/k"),
            self.tensor(f"{spatial}/softmax/v"),
            self.product(f"{spatial}/out"),
            self.product(f"{spatial}/mlp/fc1"),
            self.product(f"{spatial}/mlp/fc2"),
        )
        return BranchLayer(self.temporal(path), last)

    def temporal(self, path: str) -> Temporal | Conv:
        at = f"{path}/temporal"
        if f"{at}/conv/weight" in self._tensors:
            return Conv(self.tensor(f"{at}/conv/weight"), self.tensor(f"{at}/conv/bias"))
        if f"{at}/single/weight" in self._tensors:  # exported for one frame
            single = self.product(f"{at}/single")
            return Temporal(single, single, single)
        qkv, out = self.product(f"{at}/qkv"), self.product(f"{at}/out")
        d = self._config.width
        single = Product(out.weight @ qkv.weight[2 * d :], out.bias)
        return Temporal(qkv, out, single)


def read_classes(artefact: Artefact) -> dict[str, np.ndarray] | None:
    """What the class head of an exported folder bakes in, or None where it has no such head.

    Raises InputError where its labels.npz holds anything else than the head's sizes.
    """
    graph = artefact.graph("video")
    if graph is None or "scores" not in {o["name"] for o in graph.outputs}:
        return None
    labels = artefact.manifest.get("labels")
    name = labels.get("embeddings") if labels else None
    count = next(o["shape"][-1] for o in graph.outputs if o["name"] == "scores")
    if name is None or not isinstance(count, int):
        raise InputError(f"{artefact.path} has a class head, but no label embeddings: export again")
    return read_npz(artefact.read(name), label_fields(artefact.config, count))
