"""The operations of `fused` as ONNX nodes: each method adds nodes and returns names of values.

Layouts are those of `torch_ops`: patches [B, T, P, D], class token [B, D], rows [B, T P + 1, D].
Only standard operators are used. In fp16 and bf16 graphs, norms and softmaxes run in fp32 between
casts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from stan_infer.export.onnx_graph import GraphWriter
from stan_infer.export.onnx_nodes import END, Nodes
from stan_infer.network.eight_bits import QuantisedLinear
from stan_infer.network.folded import (
    Array,
    Conv,
    FoldedLinear,
    LastSpatial,
    Patches,
    Start,
    Tokens,
    TowerConfig,
)
from stan_infer.network.plain_ops import PlainOps


class OnnxOps(PlainOps[str]):
    """See fused.Ops. A value is its name in the graph; a weight is added where it is first used."""

    def __init__(self, nodes: Nodes, *, width: int, tokens: int) -> None:
        """width: D; tokens: N of a frame, or the positions of the text tower."""
        self.single_frame = nodes.sizes["T"] == 1
        self._nodes, self._d, self._n = nodes, width, tokens
        self._mask = ""

    @contextmanager
    def _operation(self, name: str) -> Iterator[tuple[GraphWriter, Nodes]]:
        """The scope of one operation; the output of its last node gets the operation's name."""
        graph = self._nodes.graph
        with graph.scope(name):
            yield graph, self._nodes
        graph.rename_last(name)

    def embed(self, video: str, w: Patches, tower: TowerConfig) -> str:
        p, side = w.patch, math.isqrt(len(w.table))
        with self._operation(w.path) as (g, n):
            if w.layout == "BTHWC":
                # The cast comes first, because TensorRT has no Reshape of uint8.
                x = g.node("Cast", [video], to=n.type)
                x = n.transpose(n.reshape(x, [-1, side, p, side, 3 * p]), 0, 1, 3, 2, 4)
            else:
                x = n.cast(video, n.type)
                x = n.transpose(n.reshape(x, [-1, 3, side, p, side, p]), 0, 2, 4, 1, 3, 5)
            x = n.reshape(x, [-1, side * side, 3 * p * p])
            x = g.node("MatMul", [x, n.weight("weight", w.weight.T)])
            x = g.node("Add", [x, n.weight("positions", w.table)])
            gamma, beta = (
                n.weight(k, v, exact=True) for k, v in (("gamma", w.gamma), ("beta", w.beta))
            )
            x = n.layer_norm(x, gamma, beta, tower.eps)
            frames = g.node("Shape", [x], start=0, end=1)
            target = g.node("Concat", [frames, g.constant([1, 1])], axis=0)
            row = n.weight("class", w.cls_row.reshape(1, 1, -1))
            g.node("Concat", [x, g.node("Expand", [row, target])], axis=1)
        return w.path

    def norm(self, name: str, x: str, tower: TowerConfig, gain: Array | None = None) -> str:
        with self._operation(name) as (g, n):
            if gain is None:
                scale = g.constant(np.ones(self._d), np.float32)
            else:
                scale = n.weight("gain", gain, exact=True)
            # The bias is folded into the linear behind. ONNX allows to leave it out, but ONNX
            # Runtime's transformers.optimizer fails then, and ONNX Runtime 1.17 aborts the process.
            zero = g.constant(np.zeros(self._d), np.float32)
            n.layer_norm(x, scale, zero, tower.eps)
        return name

    def linear(
        self,
        x: str,
        w: FoldedLinear,
        *,
        activation: str | None = None,
        residual: str | None = None,
    ) -> str:
        with self._operation(w.path) as (g, n):
            if isinstance(w, QuantisedLinear):
                y = n.quantised_linear(x, w)
            else:
                y = g.node("MatMul", [x, n.weight("weight", w.weight.T)])
                y = g.node("Add", [y, n.weight("bias", w.bias)])
            if activation == "silu":
                y = g.node("Mul", [y, g.node("Sigmoid", [y])])
            elif activation == "gelu":
                y = n.gelu(y)
            if residual is not None:
                g.node("Add", [y, residual])
        return w.path

    def attention(self, name: str, qkv: str, tower: TowerConfig, *, causal: bool = False) -> str:
        with self._operation(name):
            self._attend(qkv, tower, causal)
        return name

    def start(self, trunk: str, w: Start) -> tuple[str, str]:
        """See Ops.start; for a fixed T the two tables are added up here, into one."""
        with self._operation(w.path) as (g, n):
            frames = n.sizes["T"]
            if frames is None:
                time = n.unsqueeze(n.first(n.weight("time", w.time), 0), 1)
                table = g.node("Add", [time, n.weight("positions", w.positions)])
            else:
                table = n.weight("table", w.positions + w.time[:frames, None])
            patches, own = self._frames(trunk)
            own = g.node("Add", [n.mean(own, 1, keep=0), n.weight("class", w.cls)])
            cls = g.node("Mul", [own, n.number(0.5)])
            g.node("Add", [patches, table])
        return w.path, cls

    def merge(self, name: str, patches: str, cls: str, trunk: str) -> tuple[str, str]:
        with self._operation(name) as (g, n):
            more, own = self._frames(trunk)
            cls = g.node("Add", [cls, n.mean(own, 1, keep=0)])
            g.node("Add", [patches, more])
        return name, cls

    def temporal_attention(self, name: str, qkv: str, tower: TowerConfig) -> str:
        with self._operation(name) as (_, n):
            q, k, v = self._heads(qkv, [0, 0, 0, tower.heads, self._d // tower.heads])
            q, k = n.transpose(q, 0, 2, 3, 1, 4), n.transpose(k, 0, 2, 3, 4, 1)
            y = self._weigh(q, k, n.transpose(v, 0, 2, 3, 1, 4), tower)
            n.reshape(n.transpose(y, 0, 3, 1, 2, 4), [0, 0, 0, self._d])
        return name

    def temporal_conv(self, patches: str, w: Conv) -> str:
        side, d = math.isqrt(self._n - 1), self._d
        with self._operation(w.path) as (g, n):
            grid = n.transpose(n.reshape(patches, [0, 0, side, side, d]), 0, 4, 1, 2, 3)
            weights = [n.weight("weight", w.weight), n.weight("bias", w.bias)]
            y = g.node("Conv", [grid, *weights], pads=[1] * 6, kernel_shape=[3] * 3)
            y = n.reshape(n.transpose(y, 0, 2, 3, 4, 1), [0, 0, side * side, d])
            g.node("Add", [y, patches])
        return w.path

    def join(self, name: str, patches: str, cls: str) -> str:
        with self._operation(name) as (g, n):
            rows = n.reshape(patches, [0, -1, self._d])
            g.node("Concat", [rows, n.unsqueeze(cls, 1)], axis=1)
        return name

    def split(self, name: str, rows: str) -> tuple[str, str]:
        with self._operation(name) as (_, n):
            cls = n.reshape(n.slice(rows, 1, -1, END), [-1, self._d])
            n.reshape(n.slice(rows, 1, 0, -1), ["B", "T", self._n - 1, self._d])
        return name, cls

    def spatial_attention(self, name: str, qkv: str, tower: TowerConfig) -> str:
        tokens, d = self._n, self._d
        with self._operation(name) as (g, n):
            patches = n.reshape(n.slice(qkv, 1, 0, -1), ["B", "T", tokens - 1, 3 * d])
            shared = n.per_frame(n.unsqueeze(n.slice(qkv, 1, -1, END), 1))
            frames = g.node("Concat", [patches, shared], axis=2)
            y = self._attend(n.reshape(frames, [-1, tokens, 3 * d]), tower, causal=False)
            y = n.reshape(y, ["B", "T", tokens, d])
            patches = n.reshape(n.slice(y, 2, 0, -1), [0, -1, d])
            own = n.reshape(n.slice(y, 2, -1, END), [0, -1, d])  # [B, T, D]
            g.node("Concat", [patches, n.mean(own, 1)], axis=1)
        return name

    def absorbed_attention(
        self, name: str, q: str, patches: str, cls: str, w: LastSpatial, tower: TowerConfig
    ) -> str:
        d, h = self._d, tower.heads
        with self._operation(name) as (g, n):
            u = g.node("MatMul", [n.reshape(q, [0, h, 1, d // h]), n.weight("k", w.k)])
            u = n.reshape(u, [0, h, d])
            keys, own_key = n.reshape(patches, [0, -1, d]), n.unsqueeze(cls, 1)
            # Heads before rows: TensorRT-RTX 1.7 crashes at B = 1 in a softmax over an inner axis.
            scores = g.node("MatMul", [u, n.transpose(keys, 0, 2, 1)])
            scores = n.reshape(scores, [0, h, -1, self._n - 1])
            own = g.node("MatMul", [u, n.transpose(own_key, 0, 2, 1)])
            own = n.per_frame(n.unsqueeze(own, 3), 2)
            both = g.node("Concat", [scores, own], axis=3)
            a = n.softmax(both, 3, tower.softmax_scale)  # [B, H, T, N]
            a = g.node("Div", [a, n.frame_count()])
            z = g.node("MatMul", [n.reshape(n.slice(a, 3, 0, -1), [0, h, -1]), keys])  # [B, H, D]
            own = n.reshape(n.slice(a, 3, -1, END), [0, h, -1])
            own = g.node("ReduceSum", [own, g.constant([2])], keepdims=1)
            z = g.node("Add", [z, g.node("Mul", [own, own_key])])
            y = g.node("MatMul", [n.weight("v", w.v), n.unsqueeze(z, 3)])  # [B, H, dh, 1]
            n.reshape(y, [0, d])
        return name

    def class_rows(self, name: str, trunk: str, cls: str) -> str:
        with self._operation(name) as (g, n):
            own = n.reshape(n.slice(trunk, 1, -1, END), ["B", "T", self._d])
            g.node("Add", [own, n.unsqueeze(cls, 1)])
        return name

    def frame_mean(self, name: str, x: str) -> str:
        with self._operation(name) as (_, n):
            n.mean(x, 1, keep=0)
        return name

    def embed_text(self, ids: str, w: Tokens) -> str:
        with self._operation(w.path) as (g, n):
            x = g.node("Gather", [n.weight("tokens", w.table), ids])
            g.node("Add", [x, n.first(n.weight("positions", w.positions), 0)])
        return w.path

    def end_rows(self, name: str, x: str, ids: str) -> str:
        with self._operation(name) as (g, n):
            end = n.unsqueeze(g.node("ArgMax", [ids], axis=-1, keepdims=1), 2)  # [Q, 1, 1]
            end = g.node("Expand", [end, g.constant([1, 1, self._d])])
            rows = g.node("GatherElements", [x, end], axis=1)
            n.reshape(rows, [-1, self._d])
        return name

    def _frames(self, trunk: str) -> tuple[str, str]:
        """Trunk rows -> patches [B, T, P, D] and class tokens [B, T, D]."""
        n = self._nodes
        x = n.reshape(trunk, ["B", "T", self._n, self._d])
        own = n.reshape(n.slice(x, 2, -1, END), [0, -1, self._d])
        return n.slice(x, 2, 0, -1), own

    def _heads(self, qkv: str, shape: list[int | str]) -> list[str]:
        """Split [..., 3D] into q, k and v, each reshaped."""
        g, d = self._nodes.graph, self._d
        names = [g.full_name(k) for k in ("q", "k", "v")]
        g.node("Split", [qkv, g.constant([d, d, d])], out=names, axis=-1)
        return [self._nodes.reshape(k, shape) for k in names]

    def _attend(self, qkv: str, tower: TowerConfig, causal: bool) -> str:
        """Attention within each of M sequences: [M, N, 3D] -> [M, N, D]."""
        n = self._nodes
        q, k, v = self._heads(qkv, [0, 0, tower.heads, self._d // tower.heads])
        q, k = n.transpose(q, 0, 2, 1, 3), n.transpose(k, 0, 2, 3, 1)
        y = self._weigh(q, k, n.transpose(v, 0, 2, 1, 3), tower, causal)
        return n.reshape(n.transpose(y, 0, 2, 1, 3), [0, 0, self._d])

    def _weigh(self, q: str, k: str, v: str, tower: TowerConfig, causal: bool = False) -> str:
        g, n = self._nodes.graph, self._nodes
        scores = g.node("MatMul", [q, k])
        if causal:
            scores = g.node("Add", [scores, self._causal()])
        return g.node("MatMul", [n.softmax(scores, -1, tower.softmax_scale), v])

    def _causal(self) -> str:
        """The causal mask [L, L] for the input's length, cut from one table."""
        if not self._mask:
            n = self._nodes
            # Far below every score, and finite, so that fp16 can hold it.
            table = np.triu(np.full((self._n, self._n), -6e4, np.float32), 1)
            self._mask = n.first(n.first(n.weight("mask", table), 0), 1)
        return self._mask
