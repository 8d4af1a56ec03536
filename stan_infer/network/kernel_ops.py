"""The operations of `fused` on the kernels.

Trunk rows are [F, P + 1, D]. The branch is one buffer [F P + B, D]: patches frame after frame, then
one class token per clip; products of patches copy the tail, so that joining costs nothing. A norm
is not computed until a product wants it: the product takes it inside. Temporal q, k, v wait
likewise, since their attention can be the product's epilogue.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
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
from stan_infer.kernels.patch_embed import patch_embed
from stan_infer.kernels.spatial_attention import spatial_attention
from stan_infer.kernels.temporal_attention import temporal_attention
from stan_infer.kernels.temporal_qkv_attention import temporal_qkv_attention
from stan_infer.network.fold import Conv, LastSpatial, Patches, Product, Stream, VideoWeights
from stan_infer.network.kernel_weights import Fp8Product, KernelProduct


@dataclasses.dataclass(frozen=True)
class _Part:
    """Patches or class tokens of a branch buffer."""

    rows: Tensor  # [F P + B, D]
    batch: int
    is_cls: bool

    @property
    def own(self) -> Tensor:
        return self.rows[-self.batch :] if self.is_cls else self.rows[: -self.batch]


@dataclasses.dataclass(frozen=True)
class _Head:
    """The class tokens that the head reads, not added yet."""

    trunk: Tensor  # [F, P + 1, D]
    cls: Tensor  # [B, D]


@dataclasses.dataclass(frozen=True)
class _Normed:
    """A norm that its reader will take."""

    x: Any  # Tensor, _Part or _Head
    eps: float


@dataclasses.dataclass(frozen=True)
class _Mean:
    """The mean over frames of a normed head."""

    of: _Normed


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """A product that its reader will make."""

    x: _Normed
    w: Product


class KernelOps:
    """See fused.Ops. One object per call: it knows B and T.

    counters: int32 zeros [>= B H] that spatial attention counts with and leaves at zero. branch:
    a stream of `cuda` (torch.cuda) on which branch layers run beside the trunk's next layer, or
    None. kernels: choices to override: "trunk" runs the trunk's attention in our kernel and not in
    torch's, "product" makes temporal q, k, v with a product of their own, "library" every product
    with torch's.
    """

    def __init__(
        self,
        batch: int,
        frames: int,
        counters: Tensor,
        *,
        branch: Any = None,
        kernels: frozenset[str] = frozenset(),
        cuda: Any = torch.cuda,
        family: str | None = None,
    ) -> None:
        """Take clips [B, T, ...]; for texts B is Q and T is 1."""
        self.single_frame = frames == 1
        self._b, self._t, self._counters, self._kernels = batch, frames, counters, kernels
        self._family = family or tuned.family(counters.device)
        self._branch, self._cuda, self._path = branch, cuda, ""
        # What one stream made and the other reads must live until both have met.
        self._held: list[Any] = []
        self._heads: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """See Ops.scope; branch layers go to their own stream, the head waits for it."""
        outer, self._path = self._path, f"{self._path}{name}/"
        try:
            if self._branch is not None and name.startswith("branch/"):
                self._branch.wait_stream(self._cuda.current_stream())
                with self._cuda.stream(self._branch):
                    yield
            else:
                if self._branch is not None and name == "head":
                    self._cuda.current_stream().wait_stream(self._branch)
                yield
        finally:
            self._path = outer

    def embed(self, name: str, video: Tensor, w: Patches, stream: Stream) -> Tensor:
        return patch_embed(
            video, w.weight, w.table, w.gamma, w.beta, w.cls_row, w.patch, stream.eps
        )

    def norm(self, name: str, x: Any, stream: Stream, gain: Tensor | None = None) -> _Normed:
        """See Ops.norm; `kernel_weights.prepare` has put gains back into the weights."""
        return _Normed(x, stream.eps)

    def product(
        self,
        name: str,
        x: Any,
        w: Product,
        *,
        activation: str | None = None,
        residual: Any = None,
    ) -> Any:
        if name == "qkv" and self._path.endswith("/temporal/"):
            return _Waiting(x, w)
        if isinstance(x, _Mean):
            return self._head_product(x.of, w)[0]
        if isinstance(x, _Normed) and isinstance(x.x, _Head):
            return self._head_product(x, w)[1]
        part = residual if isinstance(residual, _Part) else None
        if part is None:
            return self._linear(x, w, activation or "", residual)
        # Patches: the class tokens behind them are copied. Class tokens: only they are read.
        rows = part.own if part.is_cls else part.rows
        y = self._linear(x, w, activation or "", rows)
        return y if part.is_cls else dataclasses.replace(part, rows=y)

    def attention(self, name: str, qkv: Tensor, stream: Stream, *, causal: bool = False) -> Tensor:
        if not causal and self._in_kernel(qkv):
            y = spatial_attention(
                qkv.flatten(0, 1), self._counters, self._b, self._t, stream.heads,
                stream.softmax_scale, False,
            )  # fmt: skip
            return y.view(*qkv.shape[:2], -1)
        q, k, v = qkv.unflatten(-1, (3, stream.heads, -1)).permute(2, 0, 3, 1, 4)  # [M, H, N, dh]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=stream.softmax_scale)
        return y.transpose(1, 2).flatten(-2)

    def start(self, name: str, trunk: Tensor, w: VideoWeights) -> tuple[_Part, _Part]:
        self._held.append(trunk)
        rows = branch_merge(trunk, None, w.branch_positions, w.time, w.branch_cls, self._b)
        return self.split(name, rows)

    def merge(self, name: str, patches: _Part, cls: _Part, trunk: Tensor) -> tuple[_Part, _Part]:
        self._held.append(trunk)
        return self.split(name, branch_merge(trunk, patches.rows, None, None, None, self._b))

    def temporal_attention(self, name: str, qkv: _Waiting, stream: Stream) -> Tensor:
        part, w = qkv.x.x, qkv.w
        places = part.own.shape[0] // (self._b * self._t)
        assert isinstance(w, KernelProduct)
        fused = not isinstance(w, Fp8Product) and "product" not in self._kernels
        places_all = self._b * places
        if fused and tuned.fuses_qkv(self._family, part.rows.dtype, self._t, places_all):
            return temporal_qkv_attention(
                part.rows, w.weight, w.bias, w.sums, None, None, self._b, self._t, places,
                stream.heads, stream.softmax_scale, stream.eps,
            )  # fmt: skip
        rows = self._linear(qkv.x, w, "", None)
        return temporal_attention(rows, self._t, places, stream.heads, stream.softmax_scale)

    def temporal_conv(self, name: str, patches: _Part, w: Conv) -> _Part:
        """See Ops.temporal_conv; the convolution is the library's."""
        x = patches.own.unflatten(0, (self._b, self._t, -1))  # [B, T, P, D]
        side = math.isqrt(x.shape[2])
        grid = x.unflatten(2, (side, side)).permute(0, 4, 1, 2, 3)
        y = F.conv3d(grid, w.weight, w.bias, padding=1)
        y = patches.own + y.permute(0, 2, 3, 4, 1).reshape(patches.own.shape)
        return dataclasses.replace(patches, rows=torch.cat([y, patches.rows[-self._b :]]))

    def join(self, name: str, patches: _Part, cls: _Part) -> Tensor:
        """See Ops.join: the class tokens lie behind the patches already."""
        return patches.rows

    def split(self, name: str, rows: Tensor) -> tuple[_Part, _Part]:
        return _Part(rows, self._b, False), _Part(rows, self._b, True)

    def spatial_attention(self, name: str, qkv: Tensor, stream: Stream) -> Tensor:
        return spatial_attention(
            qkv, self._counters, self._b, self._t, stream.heads, stream.softmax_scale, True
        )

    def class_attention(
        self, name: str, q: Tensor, patches: _Normed, cls: _Normed, w: LastSpatial, stream: Stream
    ) -> Tensor:
        """See Ops.class_attention; the two small products are the library's, per head."""
        heads = q.unflatten(1, (stream.heads, -1)).transpose(0, 1)  # [H, B, dh]
        u = torch.bmm(heads, w.k).transpose(0, 1)  # [B, H, D]
        z = cls_attention(u, patches.x.rows, self._b, self._t, stream.softmax_scale, stream.eps)
        return torch.bmm(z.transpose(0, 1), w.v.mT).transpose(0, 1).flatten(1)

    def class_rows(self, name: str, trunk: Tensor, cls: Tensor) -> _Head:
        self._held.append(cls)
        return _Head(trunk, cls)

    def frame_mean(self, name: str, x: _Normed) -> _Mean:
        return _Mean(x)

    def embed_text(self, name: str, ids: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        return tokens[ids] + positions[: ids.shape[1]]

    def end_rows(self, name: str, x: _Normed, ids: Tensor) -> _Normed:
        """See Ops.end_rows: picks rows before they are normed."""
        rows = x.x[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]
        return _Normed(rows, x.eps)

    def _head_product(self, head: _Normed, w: Product) -> tuple[Tensor, Tensor]:
        """Clip and frame embeddings [B, E], [B, T, E], fp32: one product, asked for twice."""
        key = id(head.x)
        if key not in self._heads:
            rows = head_rows(head.x.trunk, head.x.cls, head.eps)
            y = linear(rows, w.weight, w.bias, None, None, "", head.eps, True)
            frames = y[: -self._b].unflatten(0, (self._b, self._t))
            self._heads[key] = y[-self._b :], frames
        return self._heads[key]

    def _linear(self, x: Any, w: Product, activation: str, residual: Tensor | None) -> Tensor:
        eps, normed = 0.0, isinstance(x, _Normed)
        if isinstance(x, _Normed):
            x, eps = x.x, x.eps
        x = x.own if isinstance(x, _Part) else x
        rows = x.flatten(0, -2)
        res = None if residual is None else residual.flatten(0, -2)
        assert isinstance(w, KernelProduct)
        if isinstance(w, Fp8Product):
            if normed:
                rows = F.layer_norm(rows, rows.shape[-1:], eps=eps)
            y = fp8_linear(rows, w.weight, w.scale, w.x_scale, w.bias, res, activation)
        elif self._library(rows, w):
            y = library_product(rows, w, activation, res, eps if normed else None)
        else:
            sums = w.sums if normed else None
            y = linear(rows, w.weight, w.bias, sums, res, activation, eps, False)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], -1)

    def _in_kernel(self, qkv: Tensor) -> bool:
        if "trunk" in self._kernels:
            return True
        f, tokens = qkv.shape[:2]
        return tuned.trunk_in_kernel(self._family, qkv.dtype, f, tokens - 1)

    def _library(self, x: Tensor, w: Product) -> bool:
        if "library" in self._kernels:
            return True
        n, k = w.weight.shape
        return tuned.library_is_faster(self._family, x.dtype, x.shape[0], n, k)


def library_product(
    x: Tensor, w: Product, activation: str, residual: Tensor | None, eps: float | None
) -> Tensor:
    """The same with torch's product: a kernel each for norm, product, activation and sum."""
    z = x if eps is None else F.layer_norm(x, x.shape[-1:], eps=eps)
    y = F.linear(z, w.weight, w.bias)
    if activation:
        y = F.silu(y) if activation == "silu" else F.gelu(y)
    if residual is None:
        return y
    m = y.shape[0]
    if residual.shape[0] == m:
        return y + residual
    return torch.cat([y + residual[:m], residual[m:]])
