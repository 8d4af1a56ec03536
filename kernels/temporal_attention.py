"""Attention of every patch with itself in all frames: many short sequences, packed into tiles.

q, k, v lie side by side in rows [B T P, 3 D], frame after frame; out [B T P, D]. A tile of BM rows
holds G = BM // T whole sequences, so that a sequence of 12 frames is not padded to a tile of its
own: scores outside the diagonal blocks are masked. No sequence is longer than a tile, so the
softmax is not online. Sequences are numbered with the head as the fastest index: neighbouring
programs read neighbouring memory, and only the last tile of all has unused sequences. PERFORMANCE:
every byte of q, k, v and out moves once.
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
    check_frames,
    check_head,
    check_rows,
    packed_attention,
    upcast,
)
from stan_infer.kernels.tuned import Tile, temporal_tile


def temporal_attention_reference(
    qkv: Tensor, frames: int, patches: int, heads: int, scale: float, y_scale: float | None
) -> Tensor:
    """Rows [B T P, 3 D] of q, k, v -> [B T P, D]: softmax over T of scale q k^T, times v.

    y_scale: the result is e4m3, divided by it; None: it has the dtype of qkv. In plain
    torch, in fp32 inside (fp64 stays fp64).
    """
    wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    x = wide.unflatten(0, (-1, frames, patches)).unflatten(-1, (3, heads, -1))
    q, k, v = x.permute(3, 0, 2, 4, 1, 5)  # [B, P, H, T, dh]
    y = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return narrow(y.permute(0, 3, 1, 2, 4).reshape(len(qkv), -1), qkv.dtype, y_scale)


@triton.jit(do_not_specialize=["sequences", "patches"])
def _temporal_kernel(
    p_qkv, p_y, sequences, patches, row, y_row, scale, y_scale,
    T: tl.constexpr, H: tl.constexpr, DH: tl.constexpr, BM: tl.constexpr, UPCAST: tl.constexpr,
    ROUND: tl.constexpr,
):  # fmt: skip
    G: tl.constexpr = BM // T
    r = tl.arange(0, BM)
    g = r // T
    s = tl.program_id(0).to(tl.int64) * G + g
    ok = (g < G) & (s < sequences)
    i_h = s % H
    place = s // H  # b P + p
    i_row = (place // patches * T + r % T) * patches + place % patches
    o_d = tl.arange(0, DH)
    o = i_row[:, None] * row + i_h[:, None] * DH + o_d[None, :]
    q = tl.load(p_qkv + o, ok[:, None], other=0.0)
    k = tl.load(p_qkv + o + H * DH, ok[:, None], other=0.0)
    v = tl.load(p_qkv + o + 2 * H * DH, ok[:, None], other=0.0)
    if UPCAST:
        q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
    y = packed_attention(q, k, v, g, scale)
    o_y = i_row[:, None] * y_row + i_h[:, None] * DH + o_d[None, :]
    tl.store(p_y + o_y, as_stored(y, p_y, y_scale, ROUND), ok[:, None])


def _check(qkv: Tensor, frames: int, patches: int, heads: int, *_: float | None) -> int:
    check_rows("qkv", qkv)
    check_frames(frames)
    if qkv.shape[1] % 3 or patches < 1 or len(qkv) % (frames * patches):
        raise ValueError(
            f"qkv is {list(qkv.shape)}; need [B T P, 3 D] with T = {frames}, P = {patches}"
        )
    return check_head(qkv.shape[1] // 3, heads)


def launch(
    qkv: Tensor,
    frames: int,
    patches: int,
    heads: int,
    scale: float,
    y_scale: float | None,
    tile: Tile | None = None,
) -> Tensor:
    """Run the kernel; `tile` overrides the table. The rest is as in the reference."""
    head = _check(qkv, frames, patches, heads)
    d = heads * head
    sequences = len(qkv) // frames * heads
    tile = tile or temporal_tile(qkv.device, qkv.dtype, frames, sequences, heads, d)
    y = new_rows(qkv, len(qkv), d, y_scale)
    grid = (triton.cdiv(sequences, tile.bm // frames),)
    _temporal_kernel[grid](
        qkv, y, sequences, patches, qkv.stride(0), y.stride(0), scale * LOG2_E,
        y_scale or 1.0,
        T=frames, H=heads, DH=head, BM=tile.bm, UPCAST=upcast(qkv.dtype), ROUND=INTERPRETED,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


temporal_attention = operation(
    "stan_infer::temporal_attention",
    reference=temporal_attention_reference,
    check=_check,
    launch=launch,
    fake=lambda qkv, frames, patches, heads, scale, y_scale: new_rows(
        qkv, qkv.shape[0], qkv.shape[1] // 3, y_scale
    ),
    flops=lambda qkv, frames, *others: 4 * qkv[0] * frames * (qkv[1] // 3),
)


def bytes_and_flops(
    batch: int, frames: int, patches: int, heads: int, head: int = 64, size: int = 2
) -> tuple[int, int]:
    """Bytes moved if each operand moves once, and useful FLOPs, of one call."""
    rows, d = batch * frames * patches, heads * head
    return 4 * rows * d * size, 4 * rows * frames * d
