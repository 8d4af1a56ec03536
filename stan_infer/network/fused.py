"""The network rewritten for inference, written once against a set of operations.

The set is an argument: plain torch (`torch_ops`), a writer of ONNX nodes (`export.onnx_ops`) or
kernels (`kernel_ops`). This file only passes the values that operations return on to others, so a
set lays them out in memory as it likes: patches and the clip's class token as two tensors or as one
buffer.

Differences from the reference (`model`): the class token comes last in a frame, the branch keeps
patches frame-major, one linear makes q, k and v, the class token of the branch is projected once
per clip instead of once per frame, the last branch layer computes the class token alone, and the
mean over frames is taken before the projection. `fold` describes how the weights were rewritten.
B clips, T frames, F = B T, P patches, N = P + 1, D width, E embedding width, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

from stan_infer.network.folded import (
    BranchLayer,
    Conv,
    FoldedLinear,
    LastSpatial,
    Layer,
    Patches,
    Start,
    Temporal,
    TextWeights,
    Tokens,
    TowerConfig,
    VideoWeights,
)

V = TypeVar("V")


class Ops(Protocol[V]):
    """A set of operations. V: the type of its values, tensors or the names of ONNX values.

    The name of an operation in graphs and records is the path of its weights; operations without
    weights get their whole name as `name`.
    """

    def embed(self, video: V, w: Patches, tower: TowerConfig) -> V:
        """Pixels in the layout that w has -> trunk rows [F, N, D], normed, the class token last."""

    def linear(
        self, x: V, w: FoldedLinear, *, activation: str | None = None, residual: V | None = None
    ) -> V:
        """Rows [..., in] -> [..., out]; then the activation, silu or gelu, or plus the residual."""

    def norm_linear(
        self, x: V, w: FoldedLinear, tower: TowerConfig, *, activation: str | None = None
    ) -> V:
        """`linear` of (x - mean) / sqrt(var + eps) over the last axis, times w.gain."""

    def attention(self, name: str, qkv: V, tower: TowerConfig, *, causal: bool = False) -> V:
        """Softmax attention along axis 1: [M, N, 3D] -> [M, N, D]."""

    def start(self, trunk: V, w: Start) -> tuple[V, V]:
        """Trunk rows -> patches and class token [B, D] of branch layer 0, tables added."""

    def merge(self, name: str, patches: V, cls: V, trunk: V) -> tuple[V, V]:
        """Add trunk rows to the patches, and the mean over T of their class tokens to cls."""

    def temporal(self, patches: V, w: Temporal, tower: TowerConfig) -> V:
        """Patches plus the attention of each, normed, to itself in all frames (folded.Temporal)."""

    def temporal_conv(self, patches: V, w: Conv) -> V:
        """Patches plus their 3x3x3 convolution over time, row and column."""

    def join(self, name: str, patches: V, cls: V) -> V:
        """Patches and class token -> rows, so that one linear covers both."""

    def split(self, name: str, rows: V) -> tuple[V, V]:
        """Rows -> patches and class token."""

    def spatial_attention(self, name: str, qkv: V, tower: TowerConfig) -> V:
        """Attention within each frame and the clip's class token, whose output is the mean over T.

        qkv: of the rows that `join` made; the result has the layout of those rows.
        """

    def class_attention(self, patches: V, cls: V, w: LastSpatial, tower: TowerConfig) -> V:
        """The mean over T of the class token's attention, to a frame's patches and itself: [B, D].

        With z the normed rows: u_h = W_k,h^T q_h; score = u_h . z; out_h = W_v,h mean_t sum_p a z,
        since mean and W_v commute.
        """

    def head(self, trunk: V, cls: V, w: FoldedLinear, tower: TowerConfig) -> tuple[V, V]:
        """The sum of the trunk's class tokens and the branch's, normed -> embeddings of clips
        [B, E], which are the linear of the mean over frames, and of frames [B, T, E]."""

    def embed_text(self, ids: V, w: Tokens) -> V:
        """Ids [Q, L] -> token rows [Q, L, D], positions added."""

    def text_head(self, x: V, ids: V, w: FoldedLinear, tower: TowerConfig) -> tuple[V, V]:
        """Rows [Q, L, D], which it norms -> embeddings [Q, E] at the largest id of each text (the
        first if several), and [Q, L, E] of all tokens."""


class Schedule:
    """When and where branch layers run: here each between two trunk layers, on the same stream.

    A branch layer reads the trunk's rows; the trunk reads nothing of the branch.
    """

    def branch_layer(self, trunk: object) -> AbstractContextManager[None]:
        """Entered around the operations of a branch layer, which reads these trunk rows."""
        return nullcontext()

    def meet(self, cls: object) -> None:
        """Called before the head, which reads the trunk and this class token of the branch."""


def video_tower(
    ops: Ops[V], w: VideoWeights, video: V, schedule: Schedule | None = None
) -> tuple[V, V]:
    """Pixels in the layout of w.patches -> video_embeds [B, E], frame_embeds [B, T, E]."""
    return branch_part(ops, w, trunk_part(ops, w, video), schedule)


def trunk_part(ops: Ops[V], w: VideoWeights, video: V) -> Iterator[V]:
    """Pixels -> the trunk rows [F, N, D] behind each of its last K layers, as they are made.

    They are all that the branch reads. A frame's rows do not depend on the other frames, so they
    are the same in every window of a long video that holds the frame.
    """
    first = len(w.trunk) - len(w.branch)
    x = ops.embed(video, w.patches, w.tower)
    for i, layer in enumerate(w.trunk):
        x = _layer(ops, layer, x, w.tower)
        if i >= first:
            yield x


def branch_part(
    ops: Ops[V], w: VideoWeights, rows: Iterable[V], schedule: Schedule | None = None
) -> tuple[V, V]:
    """K times trunk rows [F, N, D] of B T frames -> video_embeds [B, E], frame_embeds [B, T, E]."""
    schedule, branch = schedule or Schedule(), None
    for beside, x in zip(w.branch, rows, strict=True):
        with schedule.branch_layer(x):
            if branch is None:
                branch = ops.start(x, w.start)
            else:
                branch = ops.merge(f"{beside.path}/merge", *branch, x)
            branch = _branch_layer(ops, beside, *branch, w.tower)
    assert branch is not None  # K >= 1
    schedule.meet(branch[1])
    return ops.head(x, branch[1], w.head, w.tower)


def text_tower(ops: Ops[V], w: TextWeights, ids: V) -> tuple[V, V]:
    """Ids [Q, L] -> text_embeds [Q, E] at the end token, token_embeds [Q, L, E]."""
    x = ops.embed_text(ids, w.tokens)
    for layer in w.layers:
        x = _layer(ops, layer, x, w.tower, causal=True)
    return ops.text_head(x, ids, w.head, w.tower)


def _layer(ops: Ops[V], w: Layer, x: V, tower: TowerConfig, causal: bool = False) -> V:
    qkv = ops.norm_linear(x, w.qkv, tower)
    y = ops.attention(f"{w.qkv.block}/softmax", qkv, tower, causal=causal)
    return _mlp(ops, w, ops.linear(y, w.out, residual=x), tower)


def _mlp(ops: Ops[V], w: Layer | LastSpatial, x: V, tower: TowerConfig) -> V:
    u = ops.norm_linear(x, w.fc1, tower, activation=tower.activation)
    return ops.linear(u, w.fc2, residual=x)


def _branch_layer(
    ops: Ops[V], w: BranchLayer, patches: V, cls: V, tower: TowerConfig
) -> tuple[V, V]:
    spatial = w.spatial
    if isinstance(w.temporal, Conv):
        patches = ops.temporal_conv(patches, w.temporal)
    else:
        patches = ops.temporal(patches, w.temporal, tower)
    if isinstance(spatial, LastSpatial):
        y = ops.class_attention(patches, cls, spatial, tower)
        cls = ops.linear(y, spatial.out, residual=cls)
        return patches, _mlp(ops, spatial, cls, tower)  # the head reads the class token alone
    rows = ops.join(f"{spatial.qkv.block}/join", patches, cls)
    qkv = ops.norm_linear(rows, spatial.qkv, tower)
    y = ops.spatial_attention(f"{spatial.qkv.block}/softmax", qkv, tower)
    rows = ops.linear(y, spatial.out, residual=rows)
    return ops.split(f"{w.path}/split", _mlp(ops, spatial, rows, tower))
