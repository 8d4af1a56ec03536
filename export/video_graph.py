"""The ONNX graph of the video tower: inputs, network, class head, outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import TensorProto

from stan_infer.config import StanConfig
from stan_infer.export.class_head import add_class_head
from stan_infer.export.onnx_graph import GraphWriter
from stan_infer.export.onnx_nodes import Nodes
from stan_infer.export.onnx_ops import OnnxOps
from stan_infer.export.options import Range, fixed_size
from stan_infer.network.folded import VideoWeights
from stan_infer.network.fused import video_tower


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
    s, e = config.image_size, config.embed_dim
    if input == "uint8":
        graph.input("video", TensorProto.UINT8, [*shape, s, s, 3])
    else:
        graph.input("video", TensorProto.FLOAT, [*shape, 3, s, s])
    nodes = Nodes(graph, "video", batch=batch, frames=frames, precision=precision)
    ops = OnnxOps(nodes, width=config.width, tokens=1 + config.patches)
    mean, rows = (nodes.cast(x, TensorProto.FLOAT) for x in video_tower(ops, weights, "video"))
    graph.output(mean, "video_embeds", [shape[0], e])
    graph.output(rows, "frame_embeds", [*shape, e])
    if classes is not None:
        add_class_head(graph, config, dict(classes), mean, rows, shape[0])
    return graph.save(path)
