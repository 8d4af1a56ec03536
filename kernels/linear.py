"""y = act(norm(x) W^T + b) + residual: a linear with the norm, activation and sum beside it.

x [M, K], W [N, K], b [N]; norm(x) = (x - mean) / std over each row; its gain and shift are folded
into W and b. The kernel takes the sums of a row while it reads the row for the linear:
norm(x) W^T = rstd (x W^T - mean s), s_n = sum_k W_nk. The residual may have more rows than x; the
further ones are copied to the result. That is how the class tokens, which lie behind the patches in
a branch's buffer, get past a linear of the patches. Every linear of both towers runs here.
PERFORMANCE: the norm costs no pass over memory; QuickGELU (as SiLU), bias and residual need no
kernels of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from stan_infer.kernels.operation import operation
from stan_infer.kernels.tiles import check_rows, norm_of_sums, upcast
from stan_infer.kernels.tuned import Tile, linear_tile

ACTIVATIONS = ("", "silu", "gelu")


def linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor | None,
    residual: Tensor | None,
    activation: str,
    eps: float,
    wide: bool,
) -> Tensor:
    """Rows [M, K] -> [M, N], or [R, N] with a residual [R, N], R >= M: rows M to R are copied.

    sums: row sums of weight, fp32 [N]; given, x is normed first. activation: "", "silu", "gelu",
    applied before the residual. wide: the result is fp32. In plain torch, in fp32 inside (fp64
    stays fp64).
    """
    inner = torch.promote_types(x.dtype, torch.float32)
    z = x.to(inner)
    if sums is not None:
        z = F.layer_norm(z, z.shape[-1:], eps=eps)
    y = plain_epilogue(F.linear(z, weight.to(inner), bias.to(inner)), residual, activation)
    return y if wide else y.to(x.dtype)


def plain_epilogue(y: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    """What follows the bias, in plain torch: activation and residual, as in `linear_reference`."""
    if activation:
        y = F.silu(y) if activation == "silu" else F.gelu(y)
    if residual is None:
        return y
    m = y.shape[0]
    if residual.shape[0] == m:
        return y + residual
    return torch.cat([y + residual[:m], residual[m:]])


@triton.jit
def _linear_kernel(
    p_x, p_w, p_b, p_s, p_r, p_y, m, n, k, rows, x_row, w_row, r_row, y_row, eps,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, EVEN_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    n_tiles = tl.cdiv(n, BN)
    # GROUP row tiles share their columns of W while those are in the cache.
    per_group = GROUP * n_tiles
    first = pid // per_group * GROUP
    height = tl.minimum(tl.cdiv(rows, BM) - first, GROUP)
    i_m = first + (pid % per_group) % height
    i_n = (pid % per_group) // height
    o_m = i_m.to(tl.int64) * BM + tl.arange(0, BM)
    o_n = i_n * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    m_m, m_n = o_m < m, o_n < n
    p_xt = p_x + o_m[:, None] * x_row + o_k[None, :]
    p_wt = p_w + o_n[None, :].to(tl.int64) * w_row + o_k[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    squares = tl.zeros((BM,), tl.float32)
    for i_k in range(0, tl.cdiv(k, BK)):
        if EVEN_K:
            x = tl.load(p_xt, m_m[:, None], other=0.0)
            w = tl.load(p_wt, m_n[None, :], other=0.0)
        else:
            m_k = o_k < k - i_k * BK
            x = tl.load(p_xt, m_m[:, None] & m_k[None, :], other=0.0)
            w = tl.load(p_wt, m_n[None, :] & m_k[:, None], other=0.0)
        if UPCAST:
            x, w = x.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(x, w, acc, input_precision="ieee")
        if NORM:
            x32 = x.to(tl.float32)
            total += tl.sum(x32, 1)
            squares += tl.sum(x32 * x32, 1)
        p_xt += BK
        p_wt += BK
    if NORM:
        mean, rstd = norm_of_sums(total, squares, k, eps)
        s = tl.load(p_s + o_n, m_n, other=0.0).to(tl.float32)
        acc = rstd[:, None] * (acc - mean[:, None] * s[None, :])
    acc += tl.load(p_b + o_n, m_n, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == "silu":
        acc = acc * tl.sigmoid(acc)
    if ACTIVATION == "gelu":
        acc = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    m_y = (o_m < rows)[:, None] & m_n[None, :]
    if RESIDUAL:
        r = tl.load(p_r + o_m[:, None] * r_row + o_n[None, :], m_y, other=0.0).to(tl.float32)
        acc = tl.where(m_m[:, None], acc, 0.0) + r
    p_yt = p_y + o_m[:, None] * y_row + o_n[None, :]
    tl.store(p_yt, acc.to(p_y.dtype.element_ty), m_y)


def check_epilogue(x: Tensor, weight: Tensor, residual: Tensor | None, activation: str) -> None:
    """ValueError for a residual or an activation that a linear of x and weight cannot end with."""
    if residual is not None:
        check_rows("residual", residual, len(weight))
        if len(residual) < len(x):
            raise ValueError(f"residual has {len(residual)} rows, x has {len(x)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation '{activation}' is unknown ('', silu, gelu)")


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor | None,
    residual: Tensor | None,
    activation: str,
    *_: float,
) -> None:
    check_rows("x", x)
    check_rows("weight", weight, x.shape[1])
    others: list[tuple[str, Any]] = [("bias", bias), ("sums", sums)]
    for name, vector in others:
        if vector is not None and (vector.shape != weight.shape[:1] or vector.stride(0) != 1):
            raise ValueError(f"{name} must be [{len(weight)}]; got {list(vector.shape)}")
    check_epilogue(x, weight, residual, activation)
    if weight.dtype != x.dtype or (residual is not None and residual.dtype != x.dtype):
        raise ValueError("x, weight and residual must have one dtype")


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor | None,
    residual: Tensor | None,
    activation: str,
    eps: float,
    wide: bool,
    tile: Tile | None = None,
) -> Tensor:
    """Run the kernel; `tile` overrides the table. The rest is as in `linear_reference`."""
    _check(x, weight, bias, sums, residual, activation)
    (m, k), n = x.shape, len(weight)
    rows = m if residual is None else len(residual)
    tile = tile or linear_tile(x.device, x.dtype, rows, n, k)
    y = torch.empty(rows, n, dtype=torch.float32 if wide else x.dtype, device=x.device)
    grid = (triton.cdiv(rows, tile.bm) * triton.cdiv(n, tile.bn),)
    _linear_kernel[grid](
        x, weight, bias, sums, residual, y,
        m, n, k, rows,
        x.stride(0), weight.stride(0), 0 if residual is None else residual.stride(0), y.stride(0),
        eps,
        NORM=sums is not None, ACTIVATION=activation, RESIDUAL=residual is not None,
        EVEN_K=k % tile.bk == 0, BM=tile.bm, BN=tile.bn, BK=tile.bk, GROUP=8,
        UPCAST=upcast(x.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


linear = operation(
    "stan_infer::linear",
    reference=linear_reference,
    check=_check,
    launch=launch,
    fake=lambda x, weight, bias, sums, residual, activation, eps, wide: x.new_empty(
        (x if residual is None else residual).shape[0],
        weight.shape[0],
        dtype=torch.float32 if wide else x.dtype,
    ),
    flops=lambda x, weight, *others: 2 * x[0] * weight[0] * weight[1],
)


def bytes_and_flops(
    m: int, n: int, k: int, *, residual_rows: int = 0, size: int = 2
) -> tuple[int, int]:
    """Bytes moved if each operand moves once, and FLOPs, of one call with `size`-byte values."""
    elements = m * k + n * k + n + max(m, residual_rows) * n + residual_rows * n
    return elements * size, 2 * m * n * k
