"""The folded weights of the video tower, read from the fp32 graph of an exported folder."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx

from stan_infer.artefacts.checked_graph import checked_graph
from stan_infer.artefacts.folder import Artefact, check_fused
from stan_infer.artefacts.npz_file import label_fields, read_npz
from stan_infer.errors import InputError
from stan_infer.export.product import product
from stan_infer.network.folded import (
    Conv,
    FoldedLinear,
    LastSpatial,
    Patches,
    Start,
    Temporal,
    VideoWeights,
    map_weights,
)
from stan_infer.network.skeleton import video_skeleton


def read_weights(artefact: Artefact) -> VideoWeights:
    """Read the weights of an exported folder, whose video graph must be fp32 and fused, as arrays.

    Raises InputError for a folder without such a graph, or a graph that lacks a weight.
    """
    graph = artefact.graph("video")
    if graph is None:
        raise InputError(f"{artefact.path} holds no video graph: give a folder that has one")
    check_fused(artefact, graph)
    with checked_graph(artefact, graph) as source:
        try:
            proto = onnx.load(source.path)
        except Exception as e:
            # protobuf raises its own class, which shares no base but Exception.
            raise InputError(f"{graph.file} is not an ONNX file: {str(e)[:100]}") from e
    tensors = {t.name: t for t in proto.graph.initializer}
    return _Reader(artefact, tensors, graph.inputs[0]["dtype"]).read()


@dataclasses.dataclass(frozen=True)
class _Reader:
    artefact: Artefact
    tensors: dict[str, onnx.TensorProto]
    dtype: str  # of the graph's input

    def tensor(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise InputError(f"{self.artefact.path}: its video graph has no weight '{name}'")
        values = onnx.numpy_helper.to_array(self.tensors[name])
        if values.dtype != np.float32 or not np.isfinite(values).all():
            raise InputError(
                f"{self.artefact.path}: weight '{name}' is not finite float32; export again"
            )
        return values.copy()

    def linear(self, like: FoldedLinear) -> FoldedLinear:
        # Not contiguous, as copying is slow, and a graph that is written has it turned again.
        weight = self.tensor(f"{like.path}/weight").T
        return dataclasses.replace(like, weight=weight, bias=self.tensor(f"{like.path}/bias"))

    def read(self) -> VideoWeights:
        like = video_skeleton(self.artefact.config, "uint8" if self.dtype == "uint8" else "float")
        return map_weights(like, self.part)

    def part(self, like: Any) -> Any:
        """The graph's weights for a part of the folded weights; None: map the parts inside it."""
        if isinstance(like, FoldedLinear):
            return self.linear(like)
        if isinstance(like, Temporal):
            return self.temporal(like)
        if isinstance(like, Start):
            return Start(like.path, self.tensor(f"{like.path}/class"), *self.tables(like.path))
        if isinstance(like, Conv):
            weight, bias = (self.tensor(f"{like.path}/{n}") for n in ("weight", "bias"))
            return Conv(like.path, weight, bias)
        if isinstance(like, LastSpatial):
            k, v = (self.tensor(f"{like.q.block}/softmax/{n}") for n in "kv")
            linears = {n: self.linear(getattr(like, n)) for n in ("q", "out", "fc1", "fc2")}
            return LastSpatial(k=k, v=v, **linears)
        if isinstance(like, Patches):
            return dataclasses.replace(
                like,
                weight=self.tensor(f"{like.path}/weight").T,
                table=self.tensor(f"{like.path}/positions"),
                gamma=self.tensor(f"{like.path}/gamma"),
                beta=self.tensor(f"{like.path}/beta"),
                cls_row=self.tensor(f"{like.path}/class").flatten(),
            )
        return None

    def tables(self, at: str) -> tuple[np.ndarray, np.ndarray]:
        """Positions [P, D] and times [T, D]. A graph of a fixed T only has their sums."""
        if f"{at}/table" not in self.tensors:
            return self.tensor(f"{at}/positions"), self.tensor(f"{at}/time")
        table = self.tensor(f"{at}/table")  # [T, P, D]
        return table[0], table[:, 0] - table[0, 0]

    def temporal(self, like: Temporal) -> Temporal:
        if f"{like.single.path}/weight" in self.tensors:  # exported for one frame
            single = self.linear(like.single)
            qkv, out = (
                dataclasses.replace(w, weight=single.weight, bias=single.bias)
                for w in (like.qkv, like.out)
            )
            return Temporal(qkv, out, single)
        qkv, out = self.linear(like.qkv), self.linear(like.out)
        weight = product(out.weight, qkv.weight[2 * self.artefact.config.width :])
        return Temporal(qkv, out, dataclasses.replace(like.single, weight=weight, bias=out.bias))


def read_classes(artefact: Artefact) -> dict[str, np.ndarray] | None:
    """The arrays that the class head of a folder was made from; None if it has no such head.

    Raises InputError if its labels.npz holds arrays of other sizes than the head's.
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
