"""Attention within a frame over its patches and one class token, in the trunk and in the branch.

q, k, v lie side by side in rows, [R, 3 D]. Trunk: each frame's P patches are followed by its own
class token, R = F (P + 1). Branch (shared): all patches frame after frame, then one class token per
clip, R = F P + B; every frame attends to its clip's class token too, whose output is the mean over
the frames.

A program computes the queries of BM patches of one frame and head. The online softmax starts from
the class token's key, so that no tile is padded for a 197th column. One more program per frame and
head computes the class token's query. In the branch that program writes its part in fp32, and the
last of a clip's T programs adds the parts in frame order (an atomic counts the programs and is
reset for the next call): one launch, and the same sum every time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from stan_infer.kernels.operation import operation
from stan_infer.kernels.row_norm import narrow, new_rows
from stan_infer.kernels.tiles import (
    INTERPRETED,
    LOG2_E,
    as_stored,
    check_head,
    check_rows,
    upcast,
)
from stan_infer.kernels.tuned import Tile, spatial_tile


def spatial_attention_reference(
    qkv: Tensor,
    counters: Tensor,
    batch: int,
    frames: int,
    heads: int,
    scale: float,
    shared: bool,
    y_scale: float | None,
) -> Tensor:
    """Rows [F (P + 1), 3 D], or shared [F P + B, 3 D] -> the same rows of D columns.

    counters: int32 [>= B H], zero before the first call and after each; only the kernel uses them,
    where shared. y_scale: the result is e4m3, divided by it; None: it has the dtype of qkv. In
    plain torch, in fp32 inside (fp64 stays fp64).
    """
    wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    if shared:
        x = wide[:-batch].unflatten(0, (batch, frames, -1))
        cls = wide[-batch:, None, None].expand(-1, frames, -1, -1)
        x = torch.cat([x, cls], 2).flatten(0, 1)  # [F, P + 1, 3 D]
    else:
        x = wide.unflatten(0, (batch * frames, -1))
    q, k, v = x.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [F, H, P + 1, dh]
    y = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(-2)
    if shared:
        own = y[:, -1].unflatten(0, (batch, frames)).mean(1)
        return narrow(torch.cat([y[:, :-1].flatten(0, 1), own]), qkv.dtype, y_scale)
    return narrow(y.flatten(0, 1), qkv.dtype, y_scale)


@triton.jit(do_not_specialize=["patches", "frame_rows", "cls_base", "cls_step"])
def _spatial_kernel(
    p_qkv, p_y, p_parts, p_count, patches, frame_rows, cls_base, cls_step, row, y_row, scale,
    y_scale,
    T: tl.constexpr, H: tl.constexpr, DH: tl.constexpr, SHARED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, UPCAST: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = H * DH
    pid = tl.program_id(0)
    tiles = tl.cdiv(patches, BM)
    i_t = pid % (tiles + 1)
    i_fh = pid // (tiles + 1)
    i_h = i_fh % H
    i_f = (i_fh // H).to(tl.int64)
    i_b = i_f // T
    # The class token of this frame: its own in the trunk, the clip's in the branch.
    i_cls = cls_base + tl.where(SHARED, i_b, i_f) * cls_step
    o_d = tl.arange(0, DH)
    o_n = tl.arange(0, BN)
    p_head = p_qkv + i_h * DH + o_d
    p_keys = p_head[None, :] + (i_f * frame_rows + o_n[:, None]) * row + D
    k_cls = tl.load(p_head + i_cls * row + D).to(tl.float32)
    v_cls = tl.load(p_head + i_cls * row + 2 * D).to(tl.float32)
    if i_t < tiles:
        o_m = i_t * BM + tl.arange(0, BM)
        m_m = o_m < patches
        q = tl.load(p_head[None, :] + (i_f * frame_rows + o_m[:, None]) * row, m_m[:, None], 0.0)
        if UPCAST:
            q = q.to(tl.float32)
        top = tl.sum(q.to(tl.float32) * k_cls[None, :], 1) * scale
        norm = tl.full((BM,), 1.0, tl.float32)
        acc = tl.zeros((BM, DH), tl.float32) + v_cls[None, :]
        for i_n in range(0, patches, BN):
            m_n = o_n < patches - i_n
            k = tl.load(p_keys + i_n * row.to(tl.int64), m_n[:, None], other=0.0)
            v = tl.load(p_keys + i_n * row.to(tl.int64) + D, m_n[:, None], other=0.0)
            if UPCAST:
                k, v = k.to(tl.float32), v.to(tl.float32)
            s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            s = tl.where(m_n[None, :], s, float("-inf"))
            new = tl.maximum(top, tl.max(s, 1))
            e = tl.exp2(s - new[:, None])
            fade = tl.exp2(top - new)
            norm = norm * fade + tl.sum(e, 1)
            acc = tl.dot(e.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
            top = new
        p_out = p_y + (i_f * frame_rows + o_m[:, None]) * y_row + (i_h * DH + o_d)[None, :]
        tl.store(p_out, as_stored(acc / norm[:, None], p_y, y_scale, ROUND), m_m[:, None])
    else:
        q1 = tl.load(p_head + i_cls * row).to(tl.float32)
        # One query: plain multiplications, since it would fill one row of a tensor-core tile.
        s1 = tl.zeros((BN,), tl.float32) + tl.sum(q1 * k_cls) * scale
        top1 = tl.max(s1)
        norm1 = tl.full([], 1.0, tl.float32)
        acc1 = v_cls
        for i_n in range(0, patches, BN):
            m_n = o_n < patches - i_n
            k1 = tl.load(p_keys + i_n * row.to(tl.int64), m_n[:, None], other=0.0).to(tl.float32)
            v1 = tl.load(p_keys + i_n * row.to(tl.int64) + D, m_n[:, None], other=0.0)
            s1 = tl.where(m_n, tl.sum(k1 * q1[None, :], 1) * scale, float("-inf"))
            new1 = tl.maximum(top1, tl.max(s1))
            e1 = tl.exp2(s1 - new1)
            fade1 = tl.exp2(top1 - new1)
            norm1 = norm1 * fade1 + tl.sum(e1)
            acc1 = acc1 * fade1 + tl.sum(e1[:, None] * v1.to(tl.float32), 0)
            top1 = new1
        out = acc1 / norm1
        p_out1 = p_y + i_cls * y_row + i_h * DH + o_d
        if SHARED:
            i_bh = i_b * H + i_h
            p_part = p_parts + (i_bh * T) * DH + o_d
            tl.store(p_part + (i_f % T) * DH, out)
            tl.debug_barrier()  # all threads have written their part before it is counted
            done = tl.atomic_add(p_count + i_bh, 1, sem="acq_rel")
            if done == T - 1:
                mean = tl.zeros((DH,), tl.float32)
                for i in range(T):
                    mean += tl.load(p_part + i * DH, cache_modifier=".cg")
                tl.store(p_out1, as_stored(mean / T, p_y, y_scale, ROUND))
                tl.store(p_count + i_bh, 0)
        else:
            tl.store(p_out1, as_stored(out, p_y, y_scale, ROUND))


def _check(
    qkv: Tensor,
    counters: Tensor,
    batch: int,
    frames: int,
    heads: int,
    scale: float,
    shared: bool,
    y_scale: float | None,
) -> tuple[int, int]:
    """Refuse what the kernel cannot take with a ValueError; return the head width and P."""
    check_rows("qkv", qkv)
    f = batch * frames
    patches, rest = divmod(len(qkv) - batch, f) if shared else divmod(len(qkv) - f, f)
    if qkv.shape[1] % 3 or patches < 1 or rest:
        form = "F P + B" if shared else "F (P + 1)"
        raise ValueError(
            f"qkv is {list(qkv.shape)}; need [{form}, 3 D] with B, T = {batch}, {frames}"
        )
    head = check_head(qkv.shape[1] // 3, heads)
    if shared and (counters.dtype != torch.int32 or counters.numel() < batch * heads):
        raise ValueError(f"counters must be int32 [{batch * heads}] or longer")
    return head, patches


def launch(
    qkv: Tensor,
    counters: Tensor,
    batch: int,
    frames: int,
    heads: int,
    scale: float,
    shared: bool,
    y_scale: float | None,
    tile: Tile | None = None,
) -> Tensor:
    """Run the kernel; `tile` overrides the table. The rest is as in the reference."""
    head, patches = _check(qkv, counters, batch, frames, heads, scale, shared, y_scale)
    f, d = batch * frames, heads * head
    tile = tile or spatial_tile(qkv.device, patches)
    y = new_rows(qkv, len(qkv), d, y_scale)
    size = batch * heads * frames * head if shared else 0
    parts = torch.empty(size, dtype=torch.float32, device=qkv.device)
    grid = ((triton.cdiv(patches, tile.bm) + 1) * f * heads,)
    _spatial_kernel[grid](
        qkv, y, parts, counters, patches,
        patches if shared else patches + 1, f * patches if shared else patches,
        1 if shared else patches + 1, qkv.stride(0), y.stride(0), scale * LOG2_E,
        y_scale or 1.0,
        T=frames, H=heads, DH=head, SHARED=shared, BM=tile.bm, BN=tile.bn,
        UPCAST=upcast(qkv.dtype), ROUND=INTERPRETED,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


def _flops(qkv, counters, batch, frames, heads, scale, shared, y_scale) -> int:  # qkv: its shape
    f = batch * frames
    tokens = (qkv[0] - batch) // f + 1 if shared else qkv[0] // f
    return 4 * f * tokens**2 * (qkv[1] // 3)


spatial_attention = operation(
    "stan_infer::spatial_attention",
    reference=spatial_attention_reference,
    check=_check,
    launch=launch,
    fake=lambda qkv, *others: new_rows(qkv, qkv.shape[0], qkv.shape[1] // 3, others[-1]),
    flops=_flops,
    mutates=("counters",),
)


def bytes_and_flops(
    batch: int,
    frames: int,
    patches: int,
    heads: int,
    *,
    shared: bool,
    head: int = 64,
    size: int = 2,
) -> tuple[int, int]:
    """Bytes moved if each operand moves once, and useful FLOPs, of one call."""
    f, d = batch * frames, heads * head
    rows = f * patches + (batch if shared else f)
    return 4 * rows * d * size, 4 * f * (patches + 1) ** 2 * d
