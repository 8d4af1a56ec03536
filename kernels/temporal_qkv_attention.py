"""Temporal attention together with the linear that makes q, k and v, which are not stored.

x [>= B T P, D] (rows after the patches are not read), W [3 D, D], q's bias [D]; out [B T P, D]. A
program makes q, k and v of one head for G = BM // T patches in all frames, each a tile BM x dh,
and attends inside the tile as `temporal_attention` does. Rows of a tile are frame-major, so that G
neighbouring rows come from each frame. Groups are numbered over all clips, so that only the last
one has unused rows. k's bias cancels in the softmax, and v's is in the output linear (see `fold`).
The norm comes from the sums of the rows, as in `linear`. PERFORMANCE: 4 D values of traffic per row
and two kernels less.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from stan_infer.kernels.operation import operation
from stan_infer.kernels.row_norm import narrow, new_rows
from stan_infer.kernels.temporal_attention import temporal_attention_reference
from stan_infer.kernels.tiles import (
    INTERPRETED,
    LOG2_E,
    as_stored,
    check_frames,
    check_head,
    check_parts,
    check_rows,
    norm_of_parts,
    packed_attention,
    plain_norm,
    spans,
    upcast,
)
from stan_infer.kernels.tuned import Tile, temporal_qkv_tile


def temporal_qkv_attention_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor,
    stats: Tensor,
    batch: int,
    frames: int,
    patches: int,
    heads: int,
    scale: float,
    eps: float,
    y_scale: float | None,
) -> Tensor:
    """Rows [>= B T P, D] -> [B T P, D]: q, k, v of norm(x), then temporal attention.

    sums: row sums of weight, fp32 [2, 3 D] of which the second row, for what a stream carries
    apart, is not read: the branch's patches carry nothing here. stats: sums of the rows of x, fp32
    [>= B T P, 2, S]. y_scale: the result is e4m3, divided by it; None: it has the dtype of x. In
    plain torch, in fp32 inside (fp64 stays fp64).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = batch * frames * patches
    d = x.shape[1]
    mean, rstd = plain_norm(stats[:rows], d, eps)
    qkv = rstd * (x[:rows].to(wide) @ weight.to(wide).T - mean * sums[0])
    qkv = qkv + F.pad(bias[:d].to(wide), (0, 2 * d))
    y = temporal_attention_reference(qkv, frames, patches, heads, scale, None)
    return narrow(y, x.dtype, y_scale)


@triton.jit
def _finish_norm(acc, p_sums, o_n, mean, rstd):
    s = tl.load(p_sums + o_n)
    return rstd[:, None] * (acc - mean[:, None] * s[None, :])


@triton.jit(do_not_specialize=["sequences", "patches"])
def _temporal_qkv_kernel(
    p_x, p_w, p_b, p_s, p_st, p_y, sequences, patches, d, x_row, w_row, y_row, scale, eps, y_scale,
    T: tl.constexpr, H: tl.constexpr, DH: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr, EVEN_K: tl.constexpr, PARTS: tl.constexpr,
    BP: tl.constexpr, UPCAST: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    G: tl.constexpr = BM // T
    pid = tl.program_id(0)
    i_h = pid % H
    r = tl.arange(0, BM)
    g = r % G
    s = (pid // H).to(tl.int64) * G + g  # b P + p
    ok = (r < G * T) & (s < sequences)
    i_row = (s // patches * T + r // G) * patches + s % patches
    o_d = tl.arange(0, DH)
    o_k = tl.arange(0, BK)
    p_xt = p_x + i_row[:, None] * x_row + o_k[None, :]
    q = tl.zeros((BM, DH), tl.float32)
    k = tl.zeros((BM, DH), tl.float32)
    v = tl.zeros((BM, DH), tl.float32)
    p_qt = p_w + (i_h * DH + o_d)[None, :].to(tl.int64) * w_row + o_k[:, None]
    part = H * DH * w_row.to(tl.int64)
    for i_k in range(0, tl.cdiv(d, BK)):
        if EVEN_K:
            x = tl.load(p_xt, ok[:, None], other=0.0)
            wq = tl.load(p_qt)
            wk = tl.load(p_qt + part)
            wv = tl.load(p_qt + 2 * part)
        else:
            m_k = o_k < d - i_k * BK
            x = tl.load(p_xt, ok[:, None] & m_k[None, :], other=0.0)
            wq = tl.load(p_qt, m_k[:, None], other=0.0)
            wk = tl.load(p_qt + part, m_k[:, None], other=0.0)
            wv = tl.load(p_qt + 2 * part, m_k[:, None], other=0.0)
        if UPCAST:
            x, wq = x.to(tl.float32), wq.to(tl.float32)
            wk, wv = wk.to(tl.float32), wv.to(tl.float32)
        q = tl.dot(x, wq, q, input_precision="ieee")
        k = tl.dot(x, wk, k, input_precision="ieee")
        v = tl.dot(x, wv, v, input_precision="ieee")
        p_xt += BK
        p_qt += BK
    mean, rstd = norm_of_parts(p_st, i_row, ok, d, eps, PARTS, BP)
    o_n = i_h * DH + o_d
    q = _finish_norm(q, p_s, o_n, mean, rstd)
    k = _finish_norm(k, p_s, o_n + H * DH, mean, rstd)
    v = _finish_norm(v, p_s, o_n + 2 * H * DH, mean, rstd)
    q += tl.load(p_b + o_n).to(tl.float32)[None, :]
    if not UPCAST:
        q, k = q.to(p_x.dtype.element_ty), k.to(p_x.dtype.element_ty)
        v = v.to(p_x.dtype.element_ty)
    # Rows that hold no patch attend to each other only: results are finite, and not stored.
    y = packed_attention(q, k, v, tl.where(r < G * T, g, G), scale)
    o_y = i_row[:, None] * y_row + (i_h * DH + o_d)[None, :]
    tl.store(p_y + o_y, as_stored(y, p_y, y_scale, ROUND), ok[:, None])


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor,
    stats: Tensor,
    batch: int,
    frames: int,
    patches: int,
    heads: int,
    *_: float | None,
) -> int:
    check_rows("x", x)
    check_rows("weight", weight, x.shape[1])
    check_frames(frames)
    rows, d = batch * frames * patches, x.shape[1]
    if len(x) < rows or rows < 1:
        raise ValueError(f"x has {len(x)} rows; B T P = {batch} {frames} {patches} needs {rows}")
    if len(weight) != 3 * d or len(bias) < d or sums.shape != (2, 3 * d):
        raise ValueError(f"weight, bias and sums must be [{3 * d}, {d}], [{d}] and [2, {3 * d}]")
    if sums.dtype != torch.float32 or not sums.is_contiguous():
        raise ValueError("sums must be contiguous float32")
    check_parts(stats, rows, d)
    if weight.dtype != x.dtype:
        raise ValueError("x and weight must have one dtype")
    return check_head(d, heads)


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor,
    stats: Tensor,
    batch: int,
    frames: int,
    patches: int,
    heads: int,
    scale: float,
    eps: float,
    y_scale: float | None,
    tile: Tile | None = None,
) -> Tensor:
    """Run the kernel; `tile` overrides the table. The rest is as in the reference."""
    head = _check(x, weight, bias, sums, stats, batch, frames, patches, heads)
    d, sequences = x.shape[1], batch * patches
    tile = tile or temporal_qkv_tile(x.device, x.dtype, frames, sequences, heads, d)
    y = new_rows(x, sequences * frames, d, y_scale)
    grid = (triton.cdiv(sequences, tile.bm // frames) * heads,)
    _temporal_qkv_kernel[grid](
        x, weight, bias, sums, stats, y, sequences, patches, d, x.stride(0), weight.stride(0),
        y.stride(0), scale * LOG2_E, eps, y_scale or 1.0,
        T=frames, H=heads, DH=head, BM=tile.bm, BK=tile.bk, EVEN_K=d % tile.bk == 0,
        PARTS=spans(d), BP=triton.next_power_of_2(spans(d)), UPCAST=upcast(x.dtype),
        ROUND=INTERPRETED, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


temporal_qkv_attention = operation(
    "stan_infer::temporal_qkv_attention",
    reference=temporal_qkv_attention_reference,
    check=_check,
    launch=launch,
    fake=lambda x, weight, bias, sums, stats, batch, frames, patches, *others: new_rows(
        x, batch * frames * patches, x.shape[1], others[-1]
    ),
    flops=lambda x, weight, bias, sums, stats, batch, frames, patches, *others: (
        batch * frames * patches * x[1] * (6 * x[1] + 4 * frames)
    ),
)


def bytes_and_flops(
    batch: int, frames: int, patches: int, heads: int, head: int = 64, size: int = 2
) -> tuple[int, int]:
    """Bytes moved if each operand moves once, and useful FLOPs, of one call."""
    rows, d = batch * frames * patches, heads * head
    return (2 * rows * d + 3 * d * d) * size, 6 * rows * d * d + 4 * rows * frames * d
