"""The operations of `fused` in plain torch: the oracle of every other set.

Patches are [B, T, P, D], the clip's class token [B, D], rows [B, T P + 1, D] with it last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from stan_infer.network.eight_bits import QuantProduct
from stan_infer.network.fold import (
    Conv,
    LastSpatial,
    Patches,
    Product,
    Stream,
    TextWeights,
    VideoWeights,
)
from stan_infer.network.fused import text_tower, video_tower


class TorchOps:
    """See fused.Ops. One object per call: it knows B and T.

    record: called with the full name and the value of every operation.
    """

    def __init__(
        self, batch: int, frames: int, record: Callable[[str, Tensor], None] | None = None
    ) -> None:
        """Take clips [B, T, ...]; for texts B is Q and T is 1."""
        self.single_frame = frames == 1
        self._b, self._t, self._record, self._path = batch, frames, record, ""

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        outer, self._path = self._path, f"{self._path}{name}/"
        try:
            yield
        finally:
            self._path = outer

    def _done(self, name: str, value: Tensor) -> Tensor:
        if self._record:
            self._record(self._path + name, value)
        return value

    def embed(self, name: str, video: Tensor, w: Patches, stream: Stream) -> Tensor:
        x, p = video.flatten(0, 1).to(w.weight.dtype), w.patch
        if w.layout == "BTHWC":
            grid = x.unflatten(2, (-1, p)).unflatten(1, (-1, p))  # [F, g, p, g, p, 3]
            x = grid.transpose(2, 3).flatten(3).flatten(1, 2)  # [F, P, p p 3]
        else:
            grid = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [F, 3, g, p, g, p]
            x = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [F, P, 3 p p]
        x = F.linear(x, w.weight) + w.table
        x = F.layer_norm(x, x.shape[-1:], w.gamma, w.beta, stream.eps)
        if stream.centred:
            x = x - x.mean(-1, keepdim=True)
        return self._done(name, torch.cat([x, w.cls_row.expand(x.shape[0], 1, -1)], 1))

    def norm(self, name: str, x: Tensor, stream: Stream, gain: Tensor | None = None) -> Tensor:
        if stream.centred:
            y = x * (x.square().mean(-1, keepdim=True) + stream.eps).rsqrt()
        else:
            y = F.layer_norm(x, x.shape[-1:], eps=stream.eps)
        return self._done(name, y if gain is None else y * gain)

    def product(
        self,
        name: str,
        x: Tensor,
        w: Product,
        *,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        y = w.apply(x) if isinstance(w, QuantProduct) else F.linear(x, w.weight, w.bias)
        if self._record and (activation or residual is not None):
            self._record(f"{self._path}{name}/Add", y)
        if activation:
            y = F.silu(y) if activation == "silu" else F.gelu(y)
        return self._done(name, y if residual is None else y + residual)

    def attention(self, name: str, qkv: Tensor, stream: Stream, *, causal: bool = False) -> Tensor:
        y = self._attend(name, qkv, stream, causal)
        return self._done(name, y)

    def start(self, name: str, trunk: Tensor, w: VideoWeights) -> tuple[Tensor, Tensor]:
        """See Ops.start; the two tables are added to each other first: once, not per clip."""
        x = trunk.unflatten(0, (self._b, self._t))
        table = w.branch_positions + w.time[: self._t, None]  # [T, P, D]
        patches = self._done(name, x[:, :, :-1] + table)
        return patches, (x[:, :, -1].mean(1) + w.branch_cls) / 2

    def merge(
        self, name: str, patches: Tensor, cls: Tensor, trunk: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = trunk.unflatten(0, (self._b, self._t))
        return self._done(name, patches + x[:, :, :-1]), cls + x[:, :, -1].mean(1)

    def temporal_attention(self, name: str, qkv: Tensor, stream: Stream) -> Tensor:
        p = qkv.shape[2]
        heads = qkv.unflatten(-1, (3, stream.heads, -1))  # [B, T, P, 3, H, dh]
        q, k, v = heads.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # [B P, H, T, dh]
        y = self._weigh(name, q, k, v, stream)
        y = y.unflatten(0, (self._b, p)).permute(0, 3, 1, 2, 4).flatten(-2)
        return self._done(name, y)

    def temporal_conv(self, name: str, patches: Tensor, w: Conv) -> Tensor:
        side = math.isqrt(patches.shape[2])
        grid = patches.unflatten(2, (side, side)).permute(0, 4, 1, 2, 3)  # [B, D, T, side, side]
        y = F.conv3d(grid, w.weight, w.bias, padding=1)
        return self._done(name, patches + y.permute(0, 2, 3, 4, 1).flatten(2, 3))

    def join(self, name: str, patches: Tensor, cls: Tensor) -> Tensor:
        return self._done(name, torch.cat([patches.flatten(1, 2), cls[:, None]], 1))

    def split(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows[:, :-1].unflatten(1, (self._t, -1)), rows[:, -1]

    def spatial_attention(self, name: str, qkv: Tensor, stream: Stream) -> Tensor:
        patches = qkv[:, :-1].unflatten(1, (self._t, -1))  # [B, T, P, 3D]
        shared = qkv[:, -1, None, None].expand(-1, self._t, -1, -1)
        frames = torch.cat([patches, shared], 2).flatten(0, 1)  # [F, N, 3D]
        y = self._attend(name, frames, stream).unflatten(0, (self._b, self._t))  # [B, T, N, D]
        rows = torch.cat([y[:, :, :-1].flatten(1, 2), y[:, :, -1].mean(1, keepdim=True)], 1)
        return self._done(name, rows)

    def class_attention(
        self, name: str, q: Tensor, patches: Tensor, cls: Tensor, w: LastSpatial, stream: Stream
    ) -> Tensor:
        heads = stream.heads
        u = (q.view(self._b, heads, 1, -1) @ w.k)[:, :, 0]  # [B, H, D]
        keys = patches.flatten(1, 2)  # [B, T P, D]
        scores = (keys @ u.mT).unflatten(1, (self._t, -1))  # [B, T, P, H]
        own = (cls[:, None] @ u.mT)[:, None].expand(-1, self._t, -1, -1)  # [B, T, 1, H]
        a = (torch.cat([scores, own], 2) * stream.softmax_scale).softmax(2) / self._t
        z = a[:, :, :-1].flatten(1, 2).mT @ keys  # [B, H, D]
        z = z + a[:, :, -1].sum(1)[..., None] * cls[:, None]
        return self._done(name, (w.v @ z[..., None]).flatten(1))

    def class_rows(self, name: str, trunk: Tensor, cls: Tensor) -> Tensor:
        return self._done(name, trunk[:, -1].unflatten(0, (self._b, self._t)) + cls[:, None])

    def frame_mean(self, name: str, x: Tensor) -> Tensor:
        return self._done(name, x.mean(1))

    def embed_text(self, name: str, ids: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        return self._done(name, tokens[ids] + positions[: ids.shape[1]])

    def end_rows(self, name: str, x: Tensor, ids: Tensor) -> Tensor:
        return self._done(name, x[torch.arange(len(ids), device=x.device), ids.argmax(-1)])

    def _attend(self, name: str, qkv: Tensor, stream: Stream, causal: bool = False) -> Tensor:
        """[M, N, 3D] -> [M, N, D]."""
        q, k, v = qkv.unflatten(-1, (3, stream.heads, -1)).permute(2, 0, 3, 1, 4)  # [M, H, N, dh]
        return self._weigh(name, q, k, v, stream, causal).transpose(1, 2).flatten(-2)

    def _weigh(
        self, name: str, q: Tensor, k: Tensor, v: Tensor, stream: Stream, causal: bool = False
    ) -> Tensor:
        if self._record:
            self._record(f"{self._path}{name}/MatMul", q @ k.mT)
        scale = stream.softmax_scale
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)


def encode_video(
    w: VideoWeights, video: Tensor, record: Callable[[str, Tensor], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Clips [B, T, ...] in the layout of w.patches -> video_embeds [B, E], frame_embeds [B, T, E].

    record: called with the name and value of every operation.
    """
    return video_tower(TorchOps(video.shape[0], video.shape[1], record), w, video)


def encode_text(
    w: TextWeights, ids: Tensor, record: Callable[[str, Tensor], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Ids [Q, L] -> text_embeds [Q, E], token_embeds [Q, L, E]."""
    return text_tower(TorchOps(ids.shape[0], 1, record), w, ids)
