"""uint8 pixels -> the trunk's rows: a linear of patches, position table, norm, class token.

video uint8 [B, T, S, S, 3]; W [D, K >= 3 p p] with mean and std folded in; its columns are in the
order of a patch in memory (row, column, channel), and zeros follow so that rows of W are aligned;
table [P, D]; out [F, P + 1, D], the class token last. The pixels become floats in registers
(0..255 are exact in bf16), so no image of floats is written to memory. Two launches: the linear
with the table, and the norm before the trunk, which also writes the class token's constant row and
the sums of all rows (`row_norm`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from stan_infer.kernels.operation import operation
from stan_infer.kernels.row_norm import row_sums_reference
from stan_infer.kernels.tiles import SPAN, check_rows, parts_of_row, spans, upcast
from stan_infer.kernels.tuned import Tile, only_tile


def patch_embed_reference(
    video: Tensor,
    weight: Tensor,
    table: Tensor,
    gamma: Tensor,
    beta: Tensor,
    cls_row: Tensor,
    patch: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Clips uint8 [B, T, S, S, 3] -> [F, P + 1, D] in the dtype of weight; sums of its rows.

    The sums are fp32 [F (P + 1), 2, S]. In plain torch, in fp32 inside (fp64 stays fp64).
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    x = video.flatten(0, 1).to(wide).unflatten(2, (-1, patch)).unflatten(1, (-1, patch))
    x = x.transpose(2, 3).flatten(3).flatten(1, 2)  # [F, P, 3 p p]
    x = F.linear(x, weight[:, : x.shape[-1]].to(wide)) + table.to(wide)
    x = F.layer_norm(x, x.shape[-1:], gamma.to(wide), beta.to(wide), eps)
    cls = cls_row.to(wide).expand(len(x), 1, -1)
    y = torch.cat([x, cls], 1).to(weight.dtype)
    return y, row_sums_reference(y.flatten(0, 1), None)


@triton.jit(do_not_specialize=["rows", "patches"])
def _patches_kernel(
    p_v, p_w, p_t, p_y, rows, patches, side, n, k, line, w_row,
    PATCH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    n_tiles = tl.cdiv(n, BN)
    o_m = (pid // n_tiles).to(tl.int64) * BM + tl.arange(0, BM)  # f P + patch
    o_n = pid % n_tiles * BN + tl.arange(0, BN)
    m_m, m_n = o_m < rows, o_n < n
    i_p = o_m % patches
    # The first byte of a patch: frames are side x PATCH lines of `line` bytes.
    o_row = (o_m // patches * side + i_p // side) * PATCH * line + i_p % side * (3 * PATCH)
    acc = tl.zeros((BM, BN), tl.float32)
    for i_k in range(0, k, BK):
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < k
        o_x = o_k // (3 * PATCH) * line + o_k % (3 * PATCH)
        x = tl.load(p_v + o_row[:, None] + o_x[None, :], m_m[:, None] & m_k[None, :], other=0)
        w = tl.load(
            p_w + o_n[None, :].to(tl.int64) * w_row + o_k[:, None],
            m_n[None, :] & m_k[:, None],
            other=0.0,
        )
        if UPCAST:
            acc = tl.dot(x.to(tl.float32), w.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(x.to(w.dtype), w, acc, input_precision="ieee")
    m_y = m_m[:, None] & m_n[None, :]
    acc += tl.load(p_t + i_p[:, None] * n + o_n[None, :], m_y, other=0.0).to(tl.float32)
    tl.store(p_y + o_m[:, None] * n + o_n[None, :], acc.to(p_y.dtype.element_ty), m_y)


@triton.jit(do_not_specialize=["patches"])
def _norm_kernel(
    p_x, p_g, p_b, p_c, p_y, p_parts, patches, d, eps, PARTS: tl.constexpr, BD: tl.constexpr,
    SPAN: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)  # f (P + 1) + token
    i_p = pid % (patches + 1)
    o_d = tl.arange(0, BD)
    m_d = o_d < d
    y = tl.load(p_c + o_d, m_d, other=0.0).to(tl.float32)
    if i_p < patches:
        x = tl.load(p_x + (pid - pid // (patches + 1)) * d + o_d, m_d, other=0.0).to(tl.float32)
        mean = tl.sum(x) / d
        x = tl.where(m_d, x - mean, 0.0)
        x = x / tl.sqrt(tl.sum(x * x) / d + eps)
        g = tl.load(p_g + o_d, m_d, other=0.0).to(tl.float32)
        y = x * g + tl.load(p_b + o_d, m_d, other=0.0).to(tl.float32)
    stored = y.to(p_y.dtype.element_ty)
    tl.store(p_y + pid * d + o_d, stored, m_d)
    parts_of_row(stored.to(tl.float32), p_parts + pid * 2 * PARTS, PARTS, BD, SPAN)


def _check(
    video: Tensor,
    weight: Tensor,
    table: Tensor,
    gamma: Tensor,
    beta: Tensor,
    cls_row: Tensor,
    patch: int,
    *_: float,
) -> None:
    shape = list(video.shape)
    if video.dtype != torch.uint8 or len(shape) != 5 or shape[4] != 3 or shape[2] != shape[3]:
        raise ValueError(f"video is {video.dtype} {shape}; need uint8 [B, T, S, S, 3]")
    if not video.is_contiguous():
        raise ValueError("video must be contiguous")
    patches, d = (shape[2] // patch) ** 2, len(weight)
    if shape[2] % patch or list(table.shape) != [patches, d] or not table.is_contiguous():
        raise ValueError(
            f"table is {list(table.shape)}; frames of {shape[2]} in patches of {patch} need "
            f"[{patches}, {d}]"
        )
    check_rows("weight", weight)
    if weight.shape[1] < 3 * patch * patch:
        raise ValueError(f"weight has {weight.shape[1]} columns; need {3 * patch * patch} or more")
    for name, row in (("gamma", gamma), ("beta", beta), ("cls_row", cls_row)):
        if row.shape != (d,) or not row.is_contiguous():
            raise ValueError(f"{name} must be [{d}]; got {list(row.shape)}")


def launch(
    video: Tensor,
    weight: Tensor,
    table: Tensor,
    gamma: Tensor,
    beta: Tensor,
    cls_row: Tensor,
    patch: int,
    eps: float,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Run both kernels; `tile` overrides the table. The rest is as in `patch_embed_reference`."""
    _check(video, weight, table, gamma, beta, cls_row, patch)
    f, side, (patches, d) = video.shape[0] * video.shape[1], video.shape[2] // patch, table.shape
    tile = tile or only_tile("patch_embed", video.device)
    rows = torch.empty(f * patches, d, dtype=weight.dtype, device=video.device)
    grid = (triton.cdiv(f * patches, tile.bm) * triton.cdiv(d, tile.bn),)
    _patches_kernel[grid](
        video, weight, table, rows, f * patches, patches, side, d, 3 * patch * patch,
        3 * video.shape[3], weight.stride(0),
        PATCH=patch, BM=tile.bm, BN=tile.bn, BK=tile.bk, UPCAST=upcast(weight.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    y = torch.empty(f, patches + 1, d, dtype=weight.dtype, device=video.device)
    parts = torch.empty(f * (patches + 1), 2, spans(d), dtype=torch.float32, device=video.device)
    _norm_kernel[(f * (patches + 1),)](
        rows, gamma, beta, cls_row, y, parts, patches, d, eps,
        PARTS=spans(d), BD=max(SPAN, triton.next_power_of_2(d)), SPAN=SPAN,
    )  # fmt: skip
    return y, parts


def _fake(video: Tensor, weight: Tensor, table: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    f, tokens, d = video.shape[0] * video.shape[1], table.shape[0] + 1, table.shape[1]
    y = weight.new_empty(f, tokens, d)
    return y, weight.new_empty(f * tokens, 2, spans(d), dtype=torch.float32)


patch_embed = operation(
    "stan_infer::patch_embed",
    reference=patch_embed_reference,
    check=_check,
    launch=launch,
    fake=_fake,
    flops=lambda video, weight, table, gamma, beta, cls_row, patch, eps: (
        2 * video[0] * video[1] * table[0] * 3 * patch * patch * table[1]
    ),
)


def bytes_and_flops(
    frames: int, patches: int, width: int, patch: int, size: int = 2
) -> tuple[int, int]:
    """Bytes moved if each operand of the two launches moves once, and FLOPs, for F frames."""
    k, rows = 3 * patch * patch, frames * patches
    moved = rows * k + (k * width + patches * width + (3 * rows + frames) * width) * size
    return moved, 2 * rows * k * width
