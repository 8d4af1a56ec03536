"""The ONNX graphs of the video tower, whole or in two: inputs, network, class head, outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import TensorProto

from stan_infer.artefacts.parts import row_names
from stan_infer.config import StanConfig
from stan_infer.export.class_head import add_class_head
from stan_infer.export.onnx_graph import GraphWriter
from stan_infer.export.onnx_nodes import Nodes
from stan_infer.export.onnx_ops import OnnxOps
from stan_infer.export.options import Range, fixed_size
from stan_infer.network.folded import VideoWeights
from stan_infer.network.fused import branch_part, trunk_part, video_tower


def write_video_graph(
    path: Path,
    config: StanConfig,
    weights: VideoWeights,
    *,
    dims: Mapping[str, Range],
    input: str,
    precision: str,
    opset: int,
    classes: Mapping[str, np.ndarray] | None = None,
) -> list[str]:
    """Write the graph; return the names of external data files beside it.

    weights: folded for `input`; linears among them may be QuantisedLinears. dims: ranges of "batch"
    and "frames". precision: of everything that is not in 8 bits. classes: of embed_classes, for a
    class head.
    """
    graph = GraphWriter("video", path.parent, opset)
    batch, frames = fixed_size(dims["batch"]), fixed_size(dims["frames"])
    shape = [batch or "batch", frames or "frames"]
    _pixels(graph, "video", config, shape, input)
    nodes = Nodes(graph, "video", batch=batch, frames=frames, precision=precision)
    ops = OnnxOps(nodes, width=config.width, tokens=1 + config.patches)
    _embeds(nodes, config, video_tower(ops, weights, "video"), shape, classes)
    return graph.save(path)


def write_part(
    path: Path,
    config: StanConfig,
    weights: VideoWeights,
    *,
    role: str,
    dims: Mapping[str, Range],
    precision: str,
    opset: int,
    classes: Mapping[str, np.ndarray] | None = None,
) -> list[str]:
    """Write one part of the video tower; see write_video_graph.

    role: "trunk", `frames` [F, ...] -> `rows_0` to `rows_K-1` [F, N, D], or "branch", these as
    [B, T, N, D] -> what a video graph gives. Rows are float32 in every precision.
    """
    graph = GraphWriter(role, path.parent, opset)
    names, row = row_names(config), [1 + config.patches, config.width]
    if role == "trunk":
        input = "uint8" if weights.patches.layout == "BTHWC" else "float"
        count = fixed_size(dims["frames"]) or "frames"
        _pixels(graph, "frames", config, [count], input)
        nodes = Nodes(graph, "frames", batch=None, frames=None, precision=precision)
        ops = OnnxOps(nodes, width=config.width, tokens=row[0])
        for name, rows in zip(names, trunk_part(ops, weights, "frames"), strict=True):
            graph.output(nodes.cast(rows, TensorProto.FLOAT), name, [count, *row])
        return graph.save(path)
    batch, frames = fixed_size(dims["batch"]), fixed_size(dims["frames"])
    shape = [batch or "batch", frames or "frames"]
    nodes = Nodes(graph, names[0], batch=batch, frames=frames, precision=precision)
    ops, taps = OnnxOps(nodes, width=config.width, tokens=row[0]), []
    for name in names:
        graph.input(name, TensorProto.FLOAT, [*shape, *row])
        with graph.scope(f"video/{name}"):
            taps.append(nodes.reshape(nodes.cast(name, nodes.type), [-1, *row]))
    _embeds(nodes, config, branch_part(ops, weights, taps), shape, classes)
    return graph.save(path)


def _pixels(
    graph: GraphWriter, name: str, config: StanConfig, shape: list[int | str], input: str
) -> None:
    s = config.image_size
    if input == "uint8":
        graph.input(name, TensorProto.UINT8, [*shape, s, s, 3])
    else:
        graph.input(name, TensorProto.FLOAT, [*shape, 3, s, s])


def _embeds(
    nodes: Nodes,
    config: StanConfig,
    values: tuple[str, str],
    shape: list[int | str],
    classes: Mapping[str, np.ndarray] | None,
) -> None:
    graph, e = nodes.graph, config.embed_dim
    mean, rows = (nodes.cast(x, TensorProto.FLOAT) for x in values)
    graph.output(mean, "video_embeds", [shape[0], e])
    graph.output(rows, "frame_embeds", [*shape, e])
    if classes is not None:
        add_class_head(graph, config, dict(classes), mean, rows, shape[0])
