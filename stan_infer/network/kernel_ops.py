"""The operations of `fused` on the kernels.

Trunk rows are [F, P + 1, D]. The branch is one buffer [F P + B, D]: patches frame after frame, then
one class token per clip. The value `patches` is the whole buffer, and `cls` its last B rows: a
linear that changes the patches copies the class tokens behind them, so that joining both costs
nothing. A norm is computed in the kernel of the linear behind it. Temporal attention shares a
kernel with the linear of its q, k and v where that is faster.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stan_infer.kernels import tuned
from stan_infer.kernels.branch_merge import branch_merge
from stan_infer.kernels.cls_attention import cls_attention
from stan_infer.kernels.fp8_linear import fp8_linear
from stan_infer.kernels.head_rows import head_rows
from stan_infer.kernels.linear import linear, plain_epilogue
from stan_infer.kernels.patch_embed import patch_embed
from stan_infer.kernels.spatial_attention import spatial_attention
from stan_infer.kernels.temporal_attention import temporal_attention
from stan_infer.kernels.temporal_qkv_attention import temporal_qkv_attention
from stan_infer.network.folded import (
    Conv,
    FoldedLinear,
    LastSpatial,
    Patches,
    Start,
    Temporal,
    Tokens,
    TowerConfig,
)
from stan_infer.network.fused import Ops
from stan_infer.network.kernel_weights import Fp8Linear, KernelLinear


class KernelOps(Ops[Tensor]):
    """See fused.Ops. One object per call, for its B and T. Weights are those of `prepare`, which
    has multiplied the gains of norms back into them.

    counters: int32 zeros [>= B H] that spatial attention counts with and leaves at zero. kernels:
    choices of `tuned` to override: "trunk" runs the trunk's attention in our kernel instead of
    torch's, "linear" makes temporal q, k, v with a linear of their own, "library" runs every linear
    as torch's. family: the GPU's, of `tuned` (default: that of the device of counters).
    """

    def __init__(
        self,
        batch: int,
        frames: int,
        counters: Tensor,
        *,
        kernels: frozenset[str] = frozenset(),
        family: str | None = None,
    ) -> None:
        """Take clips [B, T, ...]; for texts B is Q and T is 1."""
        self._b, self._t, self._counters, self._kernels = batch, frames, counters, kernels
        self._family = family or tuned.family(counters.device)

    def embed(self, video: Tensor, w: Patches, tower: TowerConfig) -> Tensor:
        return patch_embed(video, w.weight, w.table, w.gamma, w.beta, w.cls_row, w.patch, tower.eps)

    def linear(
        self,
        x: Tensor,
        w: FoldedLinear,
        *,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """See Ops.linear; where the residual has more rows than x, those are copied."""
        return self._linear(x, w, None, activation, residual)

    def norm_linear(
        self, x: Tensor, w: FoldedLinear, tower: TowerConfig, *, activation: str | None = None
    ) -> Tensor:
        return self._linear(x, w, tower.eps, activation)

    def attention(
        self, name: str, qkv: Tensor, tower: TowerConfig, *, causal: bool = False
    ) -> Tensor:
        f, tokens = qkv.shape[:2]
        if not causal and (
            "trunk" in self._kernels
            or tuned.trunk_in_kernel(self._family, qkv.dtype, f, tokens - 1)
        ):
            y = spatial_attention(
                qkv.flatten(0, 1), self._counters, self._b, self._t, tower.heads,
                tower.softmax_scale, False,
            )  # fmt: skip
            return y.view(f, tokens, -1)
        q, k, v = qkv.unflatten(-1, (3, tower.heads, -1)).permute(2, 0, 3, 1, 4)  # [M, H, N, dh]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=tower.softmax_scale)
        return y.transpose(1, 2).flatten(-2)

    def start(self, trunk: Tensor, w: Start) -> tuple[Tensor, Tensor]:
        return self._parts(branch_merge(trunk, None, w.positions, w.time, w.cls, self._b))

    def merge(
        self, name: str, patches: Tensor, cls: Tensor, trunk: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self._parts(branch_merge(trunk, patches, None, None, None, self._b))

    def temporal(self, patches: Tensor, w: Temporal, tower: TowerConfig) -> Tensor:
        if self._t == 1:
            return self._linear(patches[: -self._b], w.single, tower.eps, residual=patches)
        return self.linear(self._temporal_qkv(patches, w.qkv, tower), w.out, residual=patches)

    def temporal_conv(self, patches: Tensor, w: Conv) -> Tensor:
        """See Ops.temporal_conv; the convolution is torch's."""
        own = patches[: -self._b]
        x = own.unflatten(0, (self._b, self._t, -1))  # [B, T, P, D]
        side = math.isqrt(x.shape[2])
        grid = x.unflatten(2, (side, side)).permute(0, 4, 1, 2, 3)
        y = F.conv3d(grid, w.weight, w.bias, padding=1)
        y = own + y.permute(0, 2, 3, 4, 1).reshape(own.shape)
        return torch.cat([y, patches[-self._b :]])

    def join(self, name: str, patches: Tensor, cls: Tensor) -> Tensor:
        """See Ops.join: the class tokens lie behind the patches already."""
        return patches

    def split(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self._parts(rows)

    def spatial_attention(self, name: str, qkv: Tensor, tower: TowerConfig) -> Tensor:
        return spatial_attention(
            qkv, self._counters, self._b, self._t, tower.heads, tower.softmax_scale, True
        )

    def class_attention(
        self, patches: Tensor, cls: Tensor, w: LastSpatial, tower: TowerConfig
    ) -> Tensor:
        """See Ops.class_attention; torch multiplies by W_k and W_v, one matrix per head."""
        q = self.norm_linear(cls, w.q, tower)
        heads = q.unflatten(1, (tower.heads, -1)).transpose(0, 1)  # [H, B, dh]
        u = torch.bmm(heads, w.k).transpose(0, 1)  # [B, H, D]
        z = cls_attention(u, patches, self._b, self._t, tower.softmax_scale, tower.eps)
        return torch.bmm(z.transpose(0, 1), w.v.mT).transpose(0, 1).flatten(1)

    def head(
        self, trunk: Tensor, cls: Tensor, w: FoldedLinear, tower: TowerConfig
    ) -> tuple[Tensor, Tensor]:
        """See Ops.head: one linear makes both, in fp32."""
        rows = head_rows(trunk, cls, tower.eps)
        y = linear(rows, w.weight, w.bias, None, None, "", tower.eps, True)
        return y[-self._b :], y[: -self._b].unflatten(0, (self._b, self._t))

    def embed_text(self, ids: Tensor, w: Tokens) -> Tensor:
        return w.table[ids] + w.positions[: ids.shape[1]]

    def text_head(
        self, x: Tensor, ids: Tensor, w: FoldedLinear, tower: TowerConfig
    ) -> tuple[Tensor, Tensor]:
        end = x[torch.arange(ids.shape[0], device=ids.device), ids.argmax(-1)]
        return self.norm_linear(end, w, tower), self.norm_linear(x, w, tower)

    def _parts(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A branch's buffer as patches and class tokens."""
        return rows, rows[-self._b :]

    def _temporal_qkv(self, patches: Tensor, w: FoldedLinear, tower: TowerConfig) -> Tensor:
        """The patches' attention [F P, D], with norm, q, k and v: one kernel where it is faster."""
        assert isinstance(w, KernelLinear)
        places_all = (patches.shape[0] - self._b) // self._t  # not len(): torch.export would fix B
        places = places_all // self._b
        fused = not isinstance(w, Fp8Linear) and "linear" not in self._kernels
        if fused and tuned.fuses_qkv(self._family, patches.dtype, self._t, places_all):
            return temporal_qkv_attention(
                patches, w.weight, w.bias, w.sums, self._b, self._t, places,
                tower.heads, tower.softmax_scale, tower.eps,
            )  # fmt: skip
        rows = self._linear(patches[: -self._b], w, tower.eps)
        return temporal_attention(rows, self._t, places, tower.heads, tower.softmax_scale)

    def _linear(
        self,
        x: Tensor,
        w: FoldedLinear,
        eps: float | None,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Apply w to x, after a norm where eps is given."""
        assert isinstance(w, KernelLinear)
        rows, act = x.flatten(0, -2), activation or ""
        res = None if residual is None else residual.flatten(0, -2)
        if isinstance(w, Fp8Linear):
            if eps is not None:
                rows = F.layer_norm(rows, rows.shape[-1:], eps=eps)
            y = fp8_linear(rows, w.weight, w.scale, w.x_scale, w.bias, res, act)
        elif "library" in self._kernels or tuned.library_is_faster(
            self._family, rows.dtype, rows.shape[0], *w.weight.shape
        ):
            y = library_linear(rows, w.weight, w.bias, act, res, eps)
        else:
            sums = None if eps is None else w.sums
            y = linear(rows, w.weight, w.bias, sums, res, act, eps or 0.0, False)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], -1)


def library_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    residual: Tensor | None,
    eps: float | None,
) -> Tensor:
    """The same as `linear`, with torch's: norm, linear, activation and sum are a kernel each."""
    z = x if eps is None else F.layer_norm(x, x.shape[-1:], eps=eps)
    return plain_epilogue(F.linear(z, weight, bias), residual, activation)
