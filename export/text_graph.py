"""The ONNX graph of the text tower: input, network, outputs."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto

from stan_infer.config import StanConfig
from stan_infer.export.onnx_graph import GraphWriter
from stan_infer.export.onnx_nodes import Nodes
from stan_infer.export.onnx_ops import OnnxOps
from stan_infer.network.folded import TextWeights
from stan_infer.network.fused import text_tower


def write_text_graph(
    path: Path, config: StanConfig, weights: TextWeights, *, precision: str, opset: int
) -> list[str]:
    """Write the graph; return the names of external data files beside it."""
    graph = GraphWriter("text", path.parent, opset)
    graph.input("input_ids", TensorProto.INT32, ["batch", "length"])
    nodes = Nodes(graph, "input_ids", batch=None, frames=None, precision=precision)
    ops = OnnxOps(nodes, width=config.text_width, tokens=config.context_positions)
    end, tokens = (nodes.cast(x, TensorProto.FLOAT) for x in text_tower(ops, weights, "input_ids"))
    graph.output(end, "text_embeds", ["batch", config.embed_dim])
    graph.output(tokens, "token_embeds", ["batch", "length", config.embed_dim])
    return graph.save(path)
