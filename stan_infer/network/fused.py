"""The network rewritten for inference, written once against a set of operations.

The set is an argument: plain torch (`torch_ops`), a writer of ONNX nodes (`export.onnx_ops`),
kernels. Values are whatever the set hands out; this file only passes them on. What the set decides
is memory: rows of patches and the clip's class token may be two tensors or two views of one buffer.

Against the reference (`model`): the class token comes last in a frame, the branch keeps patches
frame-major, one product makes q, k and v, the class token of the branch is projected once per clip
and not once per frame, the last branch layer computes the class token alone, and the mean over
frames is taken before the projection. `fold` says what became of the weights.
B clips, T frames, F = B T, P patches, N = P + 1, D width, E embedding width, L tokens.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from stan_infer.network.fold import (
    BranchLayer,
    Conv,
    LastSpatial,
    Layer,
    Patches,
    Product,
    Stream,
    TextWeights,
    VideoWeights,
)

if TYPE_CHECKING:
    from torch import Tensor

Value = Any  # of the set of operations: a tensor, or the name of an ONNX value


class Ops(Protocol):
    """A set of operations; `name` is the operation's name within the scopes around it."""

    single_frame: bool
    """Whether T is 1 in every call: temporal attention is then one product."""

    def scope(self, name: str) -> AbstractContextManager[None]:
        """Prefix the names of operations inside: video/trunk/layer3/attention/qkv."""
        ...

    def embed(self, name: str, video: Value, w: Patches, stream: Stream) -> Value:
        """Pixels -> trunk rows [F, N, D], normed, the class token last."""
        ...

    def norm(self, name: str, x: Value, stream: Stream, gain: Tensor | None = None) -> Value:
        """(x - mean) / sqrt(var + eps) over the last axis, times gain [D]; no mean if centred."""
        ...

    def product(
        self,
        name: str,
        x: Value,
        w: Product,
        *,
        activation: str | None = None,
        residual: Value | None = None,
    ) -> Value:
        """Rows [..., in] -> [..., out]; then silu or gelu, or plus the residual."""
        ...

    def attention(self, name: str, qkv: Value, stream: Stream, *, causal: bool = False) -> Value:
        """Softmax attention along axis 1: [M, N, 3D] -> [M, N, D]."""
        ...

    def start(self, name: str, trunk: Value, w: VideoWeights) -> tuple[Value, Value]:
        """Trunk rows -> patches and class token [B, D] of branch layer 0, tables added."""
        ...

    def merge(self, name: str, patches: Value, cls: Value, trunk: Value) -> tuple[Value, Value]:
        """Add trunk rows to patches and class token; of the class tokens their mean over T."""
        ...

    def temporal_attention(self, name: str, qkv: Value, stream: Stream) -> Value:
        """Patches' q, k, v -> patches, each patch attending to itself in all frames."""
        ...

    def temporal_conv(self, name: str, patches: Value, w: Conv) -> Value:
        """Patches plus their 3x3x3 convolution over time, row and column."""
        ...

    def join(self, name: str, patches: Value, cls: Value) -> Value:
        """Patches and class token -> rows, so that one product covers both."""
        ...

    def split(self, name: str, rows: Value) -> tuple[Value, Value]:
        """Rows -> patches and class token."""
        ...

    def spatial_attention(self, name: str, qkv: Value, stream: Stream) -> Value:
        """Rows' q, k, v -> rows: each frame with the clip's class token, its output averaged."""
        ...

    def class_attention(
        self, name: str, q: Value, patches: Value, cls: Value, w: LastSpatial, stream: Stream
    ) -> Value:
        """Query [B, D] against normed patches and class token -> [B, D], averaged over frames.

        u_h = W_k,h^T q_h; score = u_h . z; out_h = W_v,h mean_t sum_p a z: mean and W_v commute.
        """
        ...

    def class_rows(self, name: str, trunk: Value, cls: Value) -> Value:
        """Trunk rows' class tokens plus the branch's: [B, T, D]."""
        ...

    def frame_mean(self, name: str, x: Value) -> Value:
        """[B, T, D] -> [B, D]."""
        ...

    def embed_text(self, name: str, ids: Value, tokens: Tensor, positions: Tensor) -> Value:
        """Ids [Q, L] -> token rows [Q, L, D], positions added."""
        ...

    def end_rows(self, name: str, x: Value, ids: Value) -> Value:
        """Rows [Q, L, D] at the largest id of each text, the first if several -> [Q, D]."""
        ...


def video_tower(ops: Ops, w: VideoWeights, video: Value) -> tuple[Value, Value]:
    """Pixels in the layout of w.patches -> video_embeds [B, E], frame_embeds [B, T, E]."""
    first = len(w.trunk) - len(w.branch)
    patches = cls = None
    with ops.scope("video"):
        x = ops.embed("patches", video, w.patches, w.stream)
        for i, layer in enumerate(w.trunk):
            with ops.scope(f"trunk/layer{i}"):
                x = _layer(ops, layer, x, w.stream)
            if i < first:
                continue
            with ops.scope(f"branch/layer{i - first}"):
                if i == first:
                    patches, cls = ops.start("start", x, w)
                else:
                    patches, cls = ops.merge("merge", patches, cls, x)
                patches, cls = _branch_layer(ops, w.branch[i - first], patches, cls, w.stream)
        with ops.scope("head"):
            rows = ops.norm("norm", ops.class_rows("class", x, cls), w.stream)
            mean = ops.frame_mean("mean", rows)
            return ops.product("video", mean, w.head), ops.product("frames", rows, w.head)


def text_tower(ops: Ops, w: TextWeights, ids: Value) -> tuple[Value, Value]:
    """Ids [Q, L] -> text_embeds [Q, E] at the end token, token_embeds [Q, L, E]."""
    with ops.scope("text"):
        x = ops.embed_text("tokens", ids, w.tokens, w.positions)
        for i, layer in enumerate(w.layers):
            with ops.scope(f"layer{i}"):
                x = _layer(ops, layer, x, w.stream, causal=True)
        with ops.scope("head"):
            rows = ops.norm("norm", x, w.stream)
            end = ops.end_rows("end", rows, ids)
            return ops.product("text", end, w.head), ops.product("tokens", rows, w.head)


def _layer(ops: Ops, w: Layer, x: Value, stream: Stream, causal: bool = False) -> Value:
    with ops.scope("attention"):
        qkv = ops.product("qkv", ops.norm("norm", x, stream, w.qkv.gain), w.qkv)
        y = ops.attention("softmax", qkv, stream, causal=causal)
        x = ops.product("out", y, w.out, residual=x)
    return _mlp(ops, w, x, stream)


def _mlp(ops: Ops, w: Layer | LastSpatial, x: Value, stream: Stream) -> Value:
    with ops.scope("mlp"):
        u = ops.product(
            "fc1", ops.norm("norm", x, stream, w.fc1.gain), w.fc1, activation=stream.activation
        )
        return ops.product("fc2", u, w.fc2, residual=x)


def _branch_layer(
    ops: Ops, w: BranchLayer, patches: Value, cls: Value, stream: Stream
) -> tuple[Value, Value]:
    with ops.scope("temporal"):
        patches = _temporal(ops, w, patches, stream)
    with ops.scope("spatial"):
        if isinstance(w.spatial, Layer):
            rows = ops.join("join", patches, cls)
            z = ops.norm("norm", rows, stream, w.spatial.qkv.gain)
            qkv = ops.product("qkv", z, w.spatial.qkv)
            y = ops.spatial_attention("softmax", qkv, stream)
            rows = ops.product("out", y, w.spatial.out, residual=rows)
        else:
            # Nobody reads the patches of the last layer.
            keys, own = ops.norm("norm", patches, stream), ops.norm("norm_cls", cls, stream)
            q = ops.product("q", own, w.spatial.q)
            y = ops.class_attention("softmax", q, keys, own, w.spatial, stream)
            cls = ops.product("out", y, w.spatial.out, residual=cls)
            return patches, _mlp(ops, w.spatial, cls, stream)
    return ops.split("split", _mlp(ops, w.spatial, rows, stream))


def _temporal(ops: Ops, w: BranchLayer, patches: Value, stream: Stream) -> Value:
    if isinstance(w.temporal, Conv):
        return ops.temporal_conv("conv", patches, w.temporal)
    first = w.temporal.single if ops.single_frame else w.temporal.qkv
    z = ops.norm("norm", patches, stream, first.gain)
    if ops.single_frame:
        return ops.product("single", z, first, residual=patches)
    qkv = ops.product("qkv", z, first)
    y = ops.temporal_attention("softmax", qkv, stream)
    return ops.product("out", y, w.temporal.out, residual=patches)
