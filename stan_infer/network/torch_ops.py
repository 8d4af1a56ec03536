"""The operations of `fused` in plain torch, with which the other sets are compared.

Patches are [B, T, P, D], the clip's class token [B, D], rows [B, T P + 1, D] with it last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stan_infer.network.eight_bits import NumberFormat, QuantisedLinear
from stan_infer.network.folded import (
    Conv,
    FoldedLinear,
    LastSpatial,
    Patches,
    Start,
    TextWeights,
    Tokens,
    TowerConfig,
    VideoWeights,
    map_weights,
)
from stan_infer.network.fused import branch_part, text_tower, trunk_part, video_tower
from stan_infer.network.plain_ops import PlainOps

W = TypeVar("W")


class TorchOps(PlainOps[Tensor]):
    """See fused.Ops. One object per call, for its B and T.

    record: called with the full name and the value of every operation.
    """

    def __init__(
        self, batch: int, frames: int, record: Callable[[str, Tensor], None] | None = None
    ) -> None:
        """Take clips [B, T, ...]; for texts B is Q and T is 1."""
        self.single_frame = frames == 1
        self._b, self._t, self._record = batch, frames, record

    def _done(self, name: str, value: Tensor) -> Tensor:
        if self._record:
            self._record(name, value)
        return value

    def embed(self, video: Tensor, w: Patches, tower: TowerConfig) -> Tensor:
        x, p = video.flatten(0, 1).to(w.weight.dtype), w.patch
        if w.layout == "BTHWC":
            grid = x.unflatten(2, (-1, p)).unflatten(1, (-1, p))  # [F, g, p, g, p, 3]
            x = grid.transpose(2, 3).flatten(3).flatten(1, 2)  # [F, P, p p 3]
        else:
            grid = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [F, 3, g, p, g, p]
            x = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [F, P, 3 p p]
        x = F.linear(x, w.weight) + w.table
        x = F.layer_norm(x, x.shape[-1:], w.gamma, w.beta, tower.eps)
        return self._done(w.path, torch.cat([x, w.cls_row.expand(x.shape[0], 1, -1)], 1))

    def norm(self, name: str, x: Tensor, tower: TowerConfig, gain: Tensor | None = None) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:], eps=tower.eps)
        return self._done(name, y if gain is None else y * gain)

    def linear(
        self,
        x: Tensor,
        w: FoldedLinear,
        *,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        y = _product(x, w)
        if self._record and (activation or residual is not None):
            self._record(f"{w.path}/Add", y)
        if activation:
            y = F.silu(y) if activation == "silu" else F.gelu(y)
        return self._done(w.path, y if residual is None else y + residual)

    def attention(
        self, name: str, qkv: Tensor, tower: TowerConfig, *, causal: bool = False
    ) -> Tensor:
        return self._done(name, self._attend(name, qkv, tower, causal))

    def start(self, trunk: Tensor, w: Start) -> tuple[Tensor, Tensor]:
        """See Ops.start; the two tables are added to each other once, not for every clip."""
        x = trunk.unflatten(0, (self._b, self._t))
        table = w.positions + w.time[: self._t, None]  # [T, P, D]
        patches = self._done(w.path, x[:, :, :-1] + table)
        return patches, (x[:, :, -1].mean(1) + w.cls) / 2

    def merge(
        self, name: str, patches: Tensor, cls: Tensor, trunk: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = trunk.unflatten(0, (self._b, self._t))
        return self._done(name, patches + x[:, :, :-1]), cls + x[:, :, -1].mean(1)

    def temporal_attention(self, name: str, qkv: Tensor, tower: TowerConfig) -> Tensor:
        p = qkv.shape[2]
        heads = qkv.unflatten(-1, (3, tower.heads, -1))  # [B, T, P, 3, H, dh]
        q, k, v = heads.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # [B P, H, T, dh]
        y = self._weigh(name, q, k, v, tower)
        y = y.unflatten(0, (self._b, p)).permute(0, 3, 1, 2, 4).flatten(-2)
        return self._done(name, y)

    def temporal_conv(self, patches: Tensor, w: Conv) -> Tensor:
        side = math.isqrt(patches.shape[2])
        grid = patches.unflatten(2, (side, side)).permute(0, 4, 1, 2, 3)  # [B, D, T, side, side]
        y = F.conv3d(grid, w.weight, w.bias, padding=1)
        return self._done(w.path, patches + y.permute(0, 2, 3, 4, 1).flatten(2, 3))

    def join(self, name: str, patches: Tensor, cls: Tensor) -> Tensor:
        return self._done(name, torch.cat([patches.flatten(1, 2), cls[:, None]], 1))

    def split(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows[:, :-1].unflatten(1, (self._t, -1)), rows[:, -1]

    def spatial_attention(self, name: str, qkv: Tensor, tower: TowerConfig) -> Tensor:
        patches = qkv[:, :-1].unflatten(1, (self._t, -1))  # [B, T, P, 3D]
        shared = qkv[:, -1, None, None].expand(-1, self._t, -1, -1)
        frames = torch.cat([patches, shared], 2).flatten(0, 1)  # [F, N, 3D]
        y = self._attend(name, frames, tower).unflatten(0, (self._b, self._t))  # [B, T, N, D]
        rows = torch.cat([y[:, :, :-1].flatten(1, 2), y[:, :, -1].mean(1, keepdim=True)], 1)
        return self._done(name, rows)

    def absorbed_attention(
        self, name: str, q: Tensor, patches: Tensor, cls: Tensor, w: LastSpatial, tower: TowerConfig
    ) -> Tensor:
        heads = tower.heads
        u = (q.view(self._b, heads, 1, -1) @ w.k)[:, :, 0]  # [B, H, D]
        keys = patches.flatten(1, 2)  # [B, T P, D]
        scores = (keys @ u.mT).unflatten(1, (self._t, -1))  # [B, T, P, H]
        own = (cls[:, None] @ u.mT)[:, None].expand(-1, self._t, -1, -1)  # [B, T, 1, H]
        a = (torch.cat([scores, own], 2) * tower.softmax_scale).softmax(2) / self._t
        z = a[:, :, :-1].flatten(1, 2).mT @ keys  # [B, H, D]
        z = z + a[:, :, -1].sum(1)[..., None] * cls[:, None]
        return self._done(name, (w.v @ z[..., None]).flatten(1))

    def class_rows(self, name: str, trunk: Tensor, cls: Tensor) -> Tensor:
        return self._done(name, trunk[:, -1].unflatten(0, (self._b, self._t)) + cls[:, None])

    def frame_mean(self, name: str, x: Tensor) -> Tensor:
        return self._done(name, x.mean(1))

    def embed_text(self, ids: Tensor, w: Tokens) -> Tensor:
        return self._done(w.path, w.table[ids] + w.positions[: ids.shape[1]])

    def end_rows(self, name: str, x: Tensor, ids: Tensor) -> Tensor:
        return self._done(name, x[torch.arange(len(ids), device=x.device), ids.argmax(-1)])

    def _attend(self, name: str, qkv: Tensor, tower: TowerConfig, causal: bool = False) -> Tensor:
        """[M, N, 3D] -> [M, N, D]."""
        q, k, v = qkv.unflatten(-1, (3, tower.heads, -1)).permute(2, 0, 3, 1, 4)  # [M, H, N, dh]
        return self._weigh(name, q, k, v, tower, causal).transpose(1, 2).flatten(-2)

    def _weigh(
        self, name: str, q: Tensor, k: Tensor, v: Tensor, tower: TowerConfig, causal: bool = False
    ) -> Tensor:
        if self._record:
            self._record(f"{name}/MatMul", q @ k.mT)
        scale = tower.softmax_scale
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)


def in_torch(weights: W) -> W:
    """Folded weights whose arrays are tensors, of the same memory; tensors stay as they are."""

    def change(part: Any) -> Any:
        return torch.from_numpy(part) if isinstance(part, np.ndarray) else None

    return map_weights(weights, change)


def in_numpy(weights: W) -> W:
    """Folded weights whose tensors, on the CPU, are arrays, of the same memory; see in_torch."""

    def change(part: Any) -> Any:
        return part.numpy() if isinstance(part, Tensor) else None

    return map_weights(weights, change)


def rounded(x: Tensor, format: NumberFormat) -> Tensor:
    """Round float x to a format of 8 bits, nearest even, saturating; the result has its type."""
    low = -format.largest if format.is_float else -format.largest - 1
    whole = x if format.is_float else x.round()
    return whole.clamp(low, format.largest).to(getattr(torch, format.name))


def _product(x: Tensor, w: FoldedLinear) -> Tensor:
    """Rows [..., in] -> W x + b; in 8 bits by the formula of eight_bits."""
    if not isinstance(w, QuantisedLinear):
        return F.linear(x, w.weight, w.bias)
    z = rounded(x / w.x_scale, w.format)
    y = F.linear(z.to(x.dtype), w.weight.view(z.dtype).to(x.dtype))
    return y * (w.scale * w.x_scale).to(x.dtype) + w.bias.to(x.dtype)


def encode_video(
    w: VideoWeights, video: Tensor, record: Callable[[str, Tensor], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Clips [B, T, ...] in the layout of w.patches -> video_embeds [B, E], frame_embeds [B, T, E].

    record: called with the name and value of every operation.
    """
    return video_tower(TorchOps(video.shape[0], video.shape[1], record), w, video)


def encode_trunk(w: VideoWeights, frames: Tensor) -> list[Tensor]:
    """Frames [F, ...] in the layout of w.patches -> K times trunk rows [F, N, D]."""
    return [*trunk_part(TorchOps(1, len(frames)), w, frames[None])]


def encode_branch(w: VideoWeights, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """K times trunk rows [B, T, N, D] -> video_embeds [B, E], frame_embeds [B, T, E]."""
    batch, frames = rows[0].shape[:2]
    return branch_part(TorchOps(batch, frames), w, (x.flatten(0, 1) for x in rows))


def encode_text(
    w: TextWeights, ids: Tensor, record: Callable[[str, Tensor], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Ids [Q, L] -> text_embeds [Q, E], token_embeds [Q, L, E]."""
    return text_tower(TorchOps(ids.shape[0], 1, record), w, ids)
