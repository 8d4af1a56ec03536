"""The operations of `fused` on the kernels.

Trunk rows are [F, P + 1, D]. The branch is one buffer [F P + B, D]: patches frame after frame, then
one class token per clip. The value `patches` is the whole buffer, and `cls` its last B rows: a
linear that changes the patches copies the class tokens behind them, so that joining both costs
nothing. The sums of a row that a norm needs are made once (`row_norm`), by whoever wrote the row
where that is a kernel of ours. Each linear runs in our kernel or in torch's library, as `rule`
says. The library adds a product to a stream in place. Temporal attention shares a kernel with the
linear of its q, k and v where that is faster.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stan_infer.kernels import tuned
from stan_infer.kernels.branch_merge import branch_merge
from stan_infer.kernels.cls_attention import cls_attention
from stan_infer.kernels.fp8_linear import fp8_linear
from stan_infer.kernels.head_rows import head_rows
from stan_infer.kernels.linear import linear
from stan_infer.kernels.linear_reference import plain_epilogue
from stan_infer.kernels.patch_embed import patch_embed
from stan_infer.kernels.row_norm import quantise_rows, row_norm, row_sums
from stan_infer.kernels.rule import Epilogue
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
    VideoWeights,
)
from stan_infer.network.fused import Ops, branch_part, trunk_part
from stan_infer.network.kernel_weights import Fp8Linear, KernelLinear


@dataclasses.dataclass
class Rows:
    """A value: rows of a stream, or of anything else.

    sums: of the rows x + offset, by the flattened row, if whoever wrote x made them. offset: what
    the stream carries apart, fp32 [D] (`kernel_weights`). kept: another stream of the GPU reads x
    later, so it must not be overwritten. attention_scale: see KernelLinear.
    """

    x: Tensor
    sums: Tensor | None = None
    offset: Tensor | None = None
    kept: bool = False
    attention_scale: float | None = None

    @property
    def flat(self) -> Tensor:
        """The rows [R, D]."""
        return self.x.flatten(0, -2)


class KernelOps(Ops[Any]):
    """See fused.Ops; values are Rows, and tensors at both ends. One object per call, for its B and
    T. Weights are those of `prepare`, which has multiplied the gains of norms back into them.

    counters: int32 zeros [>= B H] that spatial attention counts with and leaves at zero. kernels:
    choices of `tuned` to override: "trunk" runs the trunk's attention in our kernel instead of
    torch's, "linear" makes temporal q, k, v with a linear of their own, "library" runs every linear
    as torch's; "dependent" starts our linears while the kernel before ends, on GPUs that can.
    family: the GPU's, of `tuned` (default: that of the device of counters).
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
        self._ones: Tensor | None = None
        self._family = family or tuned.family(counters.device)
        self._dependent = "dependent" in kernels and tuned.has_descriptors(self._family)

    def start_again(self) -> None:
        """Zero the counters, so that a run that was cut off harms no other."""
        self._counters.zero_()

    def embed(self, video: Tensor, w: Patches, tower: TowerConfig) -> Rows:
        """See Ops.embed; zeroes the counters."""
        self.start_again()
        return Rows(
            *patch_embed(video, w.weight, w.table, w.gamma, w.beta, w.cls_row, w.patch, tower.eps)
        )

    def linear(
        self,
        x: Rows,
        w: FoldedLinear,
        *,
        activation: str | None = None,
        residual: Rows | None = None,
    ) -> Rows:
        """See Ops.linear; where the residual has more rows than x, those are copied."""
        return self._linear(x, w, None, activation, residual, place=w.name)

    def norm_linear(
        self, x: Rows, w: FoldedLinear, tower: TowerConfig, *, activation: str | None = None
    ) -> Rows:
        return self._linear(x, w, tower.eps, activation, place=w.name)

    def attention(self, name: str, qkv: Rows, tower: TowerConfig, *, causal: bool = False) -> Rows:
        x = qkv.x
        f, tokens = x.shape[:2]
        if not causal and (
            "trunk" in self._kernels
            or tuned.trunk_in_kernel(
                self._family, x.dtype, f, tokens - 1, tower.heads, x.shape[2] // 3
            )
        ):
            y = spatial_attention(
                x.flatten(0, 1), self._counters, self._b, self._t, tower.heads,
                tower.softmax_scale, False, qkv.attention_scale,
            )  # fmt: skip
            return Rows(y.view(f, tokens, -1))
        q, k, v = x.unflatten(-1, (3, tower.heads, -1)).permute(2, 0, 3, 1, 4)  # [M, H, N, dh]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=tower.softmax_scale)
        return Rows(y.transpose(1, 2).flatten(-2))

    def start(self, trunk: Rows, w: Start) -> tuple[Rows, Rows]:
        trunk.kept = True
        return self._parts(
            Rows(
                *branch_merge(
                    trunk.x, None, w.positions, w.time, w.cls, trunk.offset, None, self._b
                )
            )
        )

    def merge(self, name: str, patches: Rows, cls: Rows, trunk: Rows) -> tuple[Rows, Rows]:
        trunk.kept = True
        return self._parts(
            Rows(
                *branch_merge(
                    trunk.x, patches.x, None, None, None, trunk.offset, patches.offset, self._b
                )
            )
        )

    def temporal(self, patches: Rows, w: Temporal, tower: TowerConfig) -> Rows:
        if self._t == 1:
            own = Rows(patches.x[: -self._b], patches.sums)
            return self._linear(own, w.single, tower.eps, residual=patches)
        return self._linear(self._temporal_qkv(patches, w.qkv, tower), w.out, None, None, patches)

    def temporal_conv(self, patches: Rows, w: Conv) -> Rows:
        """See Ops.temporal_conv; the convolution is torch's."""
        own = patches.x[: -self._b]
        x = own.unflatten(0, (self._b, self._t, -1))  # [B, T, P, D]
        side = math.isqrt(x.shape[2])
        grid = x.unflatten(2, (side, side)).permute(0, 4, 1, 2, 3)
        y = F.conv3d(grid, w.weight, w.bias, padding=1)
        y = own + y.permute(0, 2, 3, 4, 1).reshape(own.shape)
        return Rows(torch.cat([y, patches.x[-self._b :]]))

    def join(self, name: str, patches: Rows, cls: Rows) -> Rows:
        """See Ops.join: the class tokens lie behind the patches already."""
        return patches

    def split(self, name: str, rows: Rows) -> tuple[Rows, Rows]:
        return self._parts(rows)

    def spatial_attention(self, name: str, qkv: Rows, tower: TowerConfig) -> Rows:
        return Rows(
            spatial_attention(
                qkv.x, self._counters, self._b, self._t, tower.heads, tower.softmax_scale, True,
                qkv.attention_scale,
            )
        )  # fmt: skip

    def class_attention(self, patches: Rows, cls: Rows, w: LastSpatial, tower: TowerConfig) -> Rows:
        """See Ops.class_attention; torch multiplies by W_k and W_v, one matrix per head."""
        q = self.norm_linear(cls, w.q, tower).x
        heads = q.unflatten(1, (tower.heads, -1)).transpose(0, 1)  # [H, B, dh]
        u = torch.bmm(heads, w.k).transpose(0, 1)  # [B, H, D]
        z = cls_attention(u, patches.x, self._b, self._t, tower.softmax_scale, tower.eps)
        y = z.new_empty(z.shape[0], tower.heads, w.v.shape[1])
        # Written where the heads lie side by side: no copy.
        torch.bmm(z.transpose(0, 1), w.v.mT, out=y.transpose(0, 1))
        return Rows(y.flatten(1))

    def head(
        self, trunk: Rows, cls: Rows, w: FoldedLinear, tower: TowerConfig
    ) -> tuple[Tensor, Tensor]:
        """See Ops.head: one linear makes both, in fp32."""
        assert isinstance(w, KernelLinear)
        rows = head_rows(trunk.x, cls.x, w.offset, tower.eps)
        y, _ = linear(rows, w.weight, w.bias, None, None, None, None, "", tower.eps, True, False)
        return y[-self._b :], y[: -self._b].unflatten(0, (self._b, self._t))

    def embed_text(self, ids: Tensor, w: Tokens) -> Rows:
        return Rows(w.table[ids] + w.positions[: ids.shape[1]])

    def text_head(
        self, x: Rows, ids: Tensor, w: FoldedLinear, tower: TowerConfig
    ) -> tuple[Tensor, Tensor]:
        end = x.x[torch.arange(ids.shape[0], device=ids.device), ids.argmax(-1)]
        return self.norm_linear(Rows(end), w, tower).x, self.norm_linear(x, w, tower).x

    def _parts(self, rows: Rows) -> tuple[Rows, Rows]:
        """A branch's buffer as patches and class tokens."""
        sums = None if rows.sums is None else rows.sums[-self._b :]
        return rows, Rows(rows.x[-self._b :], sums, rows.offset)

    def _temporal_qkv(self, patches: Rows, w: FoldedLinear, tower: TowerConfig) -> Rows:
        """The patches' attention [F P, D], with norm, q, k and v: one kernel where it is faster."""
        assert isinstance(w, KernelLinear)
        x = patches.x
        places_all = (x.shape[0] - self._b) // self._t  # not len(): torch.export would fix B
        places = places_all // self._b
        fused = not isinstance(w, Fp8Linear) and "linear" not in self._kernels
        if fused and tuned.fuses_qkv(
            self._family, x.dtype, self._t, places_all, tower.heads, x.shape[1]
        ):
            return Rows(
                temporal_qkv_attention(
                    x, w.weight, w.bias, w.sums, self._sums(patches, w), self._b, self._t, places,
                    tower.heads, tower.softmax_scale, tower.eps, w.attention_scale,
                )
            )  # fmt: skip
        rows = self._linear(Rows(x[: -self._b], patches.sums), w, tower.eps).x
        return Rows(
            temporal_attention(
                rows, self._t, places, tower.heads, tower.softmax_scale, w.attention_scale
            )
        )

    def _row_scales(self, rows: int) -> Tensor:
        """Ones fp32 [rows, 1]: the library asks for a scale of every row; made once per call.

        The trunk, if it asks at all, asks before the branch begins, which may have its own stream.
        """
        if self._ones is None or self._ones.shape[0] < rows:
            self._ones = torch.ones(rows, 1, device=self._counters.device)
        return self._ones[:rows]

    def _sums(self, rows: Rows, w: KernelLinear) -> Tensor:
        """The sums of the rows as the norm before w reads them."""
        return row_sums(rows.flat, w.offset) if rows.sums is None else rows.sums

    def _linear(
        self,
        x: Rows,
        w: FoldedLinear,
        eps: float | None,
        activation: str | None = None,
        residual: Rows | None = None,
        place: str = "",
    ) -> Rows:
        """Apply w to x, after a norm where eps is given; place: see tuned.in_library."""
        assert isinstance(w, KernelLinear)
        res = None if residual is None else residual.flat
        eight = isinstance(w, Fp8Linear)
        kind = Epilogue(
            eps is not None and not eight, x.sums is not None, activation is not None,
            residual is not None, residual is not None and residual.kept, w.after is not None,
        )  # fmt: skip
        m = x.x.numel() // x.x.shape[-1]
        library = "library" in self._kernels or tuned.in_library(
            self._family, w.weight.dtype, m, w.weight.shape[0], w.weight.shape[1], kind, place
        )
        parts = None
        if library:
            ones = self._row_scales(m) if isinstance(w, Fp8Linear) else None
            y = library_linear(x, w, eps, activation or "", residual, ones)
        elif isinstance(w, Fp8Linear):
            y, parts = fp8_linear(
                eight_bit_rows(x, w, eps), w.weight, w.scale, w.x_scale, w.bias, res, w.after,
                activation or "", w.y_scale, res is not None,
            )  # fmt: skip
        else:
            sums, stats = (None, None) if eps is None else (w.sums, self._sums(x, w))
            y, parts = linear(
                x.flat, w.weight, w.bias, sums, stats, res, w.after, activation or "", eps or 0.0,
                False, res is not None, self._dependent,
            )  # fmt: skip
        shape = x.x.shape if residual is None else residual.x.shape
        y = y if len(shape) == 2 else y.view(*shape[:-1], -1)
        own = parts if residual is not None else None
        return Rows(y, own, w.after, attention_scale=w.attention_scale)


def eight_bit_rows(x: Rows, w: Fp8Linear, eps: float | None) -> Tensor:
    """The rows as w takes them: normed where eps is given, and rounded unless they are already."""
    if eps is not None:
        return row_norm(x.flat, w.offset, eps, w.x_scale)
    return x.flat if x.x.dtype == w.weight.dtype else quantise_rows(x.flat, w.x_scale)


def library_linear(
    x: Rows,
    w: KernelLinear,
    eps: float | None,
    activation: str,
    residual: Rows | None,
    ones: Tensor | None = None,
) -> Tensor:
    """The same in torch's library: the norm before it, an activation behind it are a kernel each.

    A product for a stream is added to it in place, unless the residual is kept: by the product
    itself where the stream carries the bias, else by a kernel of its own. ones: fp32 [rows, 1], for
    weights in 8 bits.
    """
    if isinstance(w, Fp8Linear):
        z = eight_bit_rows(x, w, eps)
        assert ones is not None
        y = torch._scaled_mm(
            z, w.weight.T, ones, w.scales, None if w.after is not None else w.bias,
            out_dtype=w.bias.dtype,
        )  # fmt: skip
    else:
        z = x.flat if eps is None else row_norm(x.flat, w.offset, eps, None)
        if residual is not None and w.after is not None:
            r = residual.flat
            return torch.addmm(r, z, w.weight.T) if residual.kept else r.addmm_(z, w.weight.T)
        y = F.linear(z, w.weight, w.bias)
    if activation:
        y = F.silu(y, inplace=True) if activation == "silu" else F.gelu(y)
    if residual is None:
        return y
    r = residual.flat
    if residual.kept:
        return plain_epilogue(y, r, "")
    r[: y.shape[0]].add_(y)
    return r


def encode_trunk(ops: KernelOps, w: VideoWeights, frames: Tensor) -> list[Tensor]:
    """Frames uint8 [F, S, S, 3] -> K times trunk rows [F, N, D], without what they carry apart.

    ops: for one clip of F frames.
    """
    found = []
    for rows in trunk_part(ops, w, frames[None]):
        rows.kept = True  # else the next layer would add to them in place
        found.append(rows.x)
    return found


def encode_branch(ops: KernelOps, w: VideoWeights, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """K times rows [B, T, N, D] of encode_trunk -> video_embeds [B, E], frame_embeds [B, T, E]."""
    ops.start_again()
    taps = []
    for layer, x in zip(w.trunk[-len(rows) :], rows, strict=True):
        assert isinstance(layer.fc2, KernelLinear)  # it knows what these rows carry apart
        taps.append(Rows(x.flatten(0, 1), offset=layer.fc2.after))
    return branch_part(ops, w, taps)
