"""The Mug score as ONNX nodes: every text's tokens with every video's frames.

With d_ij = tau <t_i, v_j> of unit vectors and s the same with masked tokens 0:
A_i = sum_j softmax_j(s) d, C_j = sum_i softmax_i(s) d, and the score is the mean of
sum_i softmax_i(A) A and sum_j softmax_j(C) C, divided by tau. A softmax over tokens (i) leaves out
values that are exactly 0. Source: `scores.mug_scores`, the authors' Mug head.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto

from stan_infer.export.onnx_graph import GraphWriter

_SMALLEST = 1e-6  # lower bound of a norm, as in the release


def write_mug_score(path: Path, *, embed_dim: int, mode: str, tau: float, opset: int) -> None:
    """Write score.onnx.

    Inputs: token_embeds [texts, length, E], input_ids int32 [texts, length] (0 is padding) and
    frame_embeds [videos, frames, E]. Output: scores [texts, videos]. mode: "mug" or
    "mug_frame_token". A run holds an array [texts, length, videos, frames] in memory, so a client
    runs the graph for a part of the texts and videos at a time.
    """
    graph = GraphWriter("score", path.parent, opset)
    tokens = graph.input("token_embeds", TensorProto.FLOAT, ["texts", "length", embed_dim])
    ids = graph.input("input_ids", TensorProto.INT32, ["texts", "length"])
    frames = graph.input("frame_embeds", TensorProto.FLOAT, ["videos", "frames", embed_dim])
    with graph.scope("score"):
        scores = add_mug_score(graph, tokens, ids, frames, mode=mode, tau=tau)
    graph.output(scores, "scores", ["texts", "videos"])
    graph.save(path)


def add_mug_score(
    graph: GraphWriter, tokens: str, ids: str, frames: str, *, mode: str, tau: float
) -> str:
    """Add the score's nodes to a graph; return the name of the scores [texts, videos]."""
    g = graph
    x, y = _unit(g, tokens), _unit(g, frames)
    x = g.node("Mul", [x, g.constant(tau, np.float32)])
    rows = []  # [Q L, E], [B T, E]
    for v in (x, y):
        shape = [g.constant([-1]), g.node("Shape", [v], start=2, end=3)]
        rows.append(g.node("Reshape", [v, g.node("Concat", shape, axis=0)]))
    d = g.node("MatMul", [rows[0], g.node("Transpose", [rows[1]], perm=[1, 0])])
    sizes = [g.node("Shape", [v], start=0, end=2) for v in (ids, frames)]
    d = g.node("Reshape", [d, g.node("Concat", sizes, axis=0)])  # [Q, L, B, T]
    zero = g.constant(0, np.float32)
    kept = g.node("Unsqueeze", [ids, g.constant([2, 3])])
    kept = g.node("Cast", [kept], to=TensorProto.BOOL)
    if mode == "mug":
        # Where instead of a product: padding has no effect in this mode, even if it is NaN.
        s = d = g.node("Where", [kept, d, zero])
    else:
        s = g.node("Mul", [d, g.node("Cast", [kept], to=TensorProto.FLOAT)])
    a = _weighted(g, g.node("Softmax", [s], axis=3), d, 3)  # [Q, L, B]
    c = _weighted(g, g.node("Softmax", [_skip(g, s, zero)], axis=1), d, 1)  # [Q, B, T]
    p = g.node("Softmax", [_skip(g, a, zero)], axis=1)
    q = g.node("Softmax", [c], axis=2)
    if mode == "mug":
        both = g.node("Add", [_weighted(g, p, a, 1), _weighted(g, q, c, 2)])
        return g.node("Mul", [both, g.constant(0.5 / tau, np.float32)])
    q = g.node("Unsqueeze", [q, g.constant([1])])
    scores = _weighted(g, p, _weighted(g, q, d, 3), 1)
    return g.node("Mul", [scores, g.constant(1 / tau, np.float32)])


def add_length(g: GraphWriter, x: str) -> str:
    """Add the nodes of the Euclidean norm along the last axis, which stays; return its name.

    Not ReduceL2, because ONNX Runtime's symbolic shape inference, on which its quantiser and
    transformers.optimizer build, cannot read axes that are an input of that operation.
    """
    squares = g.node("ReduceSum", [g.node("Mul", [x, x]), g.constant([-1])], keepdims=1)
    return g.node("Sqrt", [squares])


def _unit(g: GraphWriter, x: str) -> str:
    norm = add_length(g, x)
    return g.node("Div", [x, g.node("Max", [norm, g.constant(_SMALLEST, np.float32)])])


def _skip(g: GraphWriter, x: str, zero: str) -> str:
    """Replace exact zeros by -inf. If all entries are 0, the softmax is NaN, as in the release."""
    lowest = g.constant(-np.inf, np.float32)
    return g.node("Where", [g.node("Equal", [x, zero]), lowest, x])


def _weighted(g: GraphWriter, weights: str, x: str, axis: int) -> str:
    product = g.node("Mul", [weights, x])
    return g.node("ReduceSum", [product, g.constant([axis])], keepdims=0)
