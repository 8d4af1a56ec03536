"""The class token's attention in the last branch layer: nothing reads what its patches would give.

The score of a patch is u_h . z_p with u_h = W_k,h^T q_h, and the output is W_v,h applied to
mean_t sum_p a_tp z_p (mean and W_v commute), so q, k and v of the patches are not computed. The
caller multiplies by W_k and W_v. u [B, H, D]; rows [F P + B, D] with the clips' class tokens last;
z = (x - mean) / std of a row; out [B, H, D]. In each frame the class token attends to P patches and
itself. One launch makes partial sums per frame and 64 patches, a second adds them in a fixed order.
PERFORMANCE: one pass over F P D values instead of a linear with 3 D^2 weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from stan_infer.kernels.operation import operation
from stan_infer.kernels.tiles import LOG2_E, check_rows, norm_of_sums, upcast
from stan_infer.kernels.tuned import Tile, only_tile

COLUMNS = 128  # of a program that adds the partial sums
MAX_HEADS = 16  # rows of the smallest tensor-core tile, which one program's queries fill


def cls_attention_reference(
    u: Tensor, rows: Tensor, batch: int, frames: int, scale: float, eps: float
) -> Tensor:
    """Absorbed queries [B, H, D] and rows [F P + B, D], not normed -> [B, H, D].

    In plain torch, in fp32 inside (fp64 stays fp64).
    """
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    z = F.layer_norm(wide, wide.shape[-1:], eps=eps)
    keys, own = z[:-batch].unflatten(0, (batch, frames, -1)), z[-batch:]
    own = own[:, None, None].expand(-1, frames, -1, -1)
    z = torch.cat([keys, own], 2)  # [B, T, P + 1, D]
    a = (torch.einsum("bhd,btpd->bthp", u.to(z.dtype), z) * scale).softmax(-1) / frames
    return torch.einsum("bthp,btpd->bhd", a, z).to(rows.dtype)


@triton.jit(do_not_specialize=["patches", "frames", "slices"])
def _partial_kernel(
    p_u, p_x, p_z, p_top, p_norm, patches, frames, slices, d, row, u_b, u_h, scale, eps,
    H: tl.constexpr, H16: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)  # f slices + slice
    i_f = pid // slices
    o_p = pid % slices * BP + tl.arange(0, BP)
    o_h = tl.arange(0, H16)
    o_k = tl.arange(0, BK)
    m_p, m_h = o_p < patches, o_h < H
    p_xt = p_x + (i_f * patches + o_p[:, None]) * row + o_k[None, :]
    p_ut = p_u + (i_f // frames) * u_b + o_h[None, :] * u_h + o_k[:, None]
    s = tl.zeros((BP, H16), tl.float32)
    total = tl.zeros((BP,), tl.float32)
    squares = tl.zeros((BP,), tl.float32)
    u_sum = tl.zeros((H16,), tl.float32)
    for i_k in range(0, d, BK):
        m_k = o_k < d - i_k
        x = tl.load(p_xt + i_k, m_p[:, None] & m_k[None, :], other=0.0)
        u = tl.load(p_ut + i_k, m_h[None, :] & m_k[:, None], other=0.0)
        if UPCAST:
            x, u = x.to(tl.float32), u.to(tl.float32)
        s = tl.dot(x, u, s, input_precision="ieee")
        wide = x.to(tl.float32)
        total += tl.sum(wide, 1)
        squares += tl.sum(wide * wide, 1)
        u_sum += tl.sum(u.to(tl.float32), 0)
    mean, rstd = norm_of_sums(total, squares, d, eps)
    s = (s - mean[:, None] * u_sum[None, :]) * rstd[:, None] * scale
    s = tl.where(m_p[:, None], s, float("-inf"))
    top = tl.max(s, 0)
    e = tl.exp2(s - top[None, :])
    a = e * tl.where(m_p, rstd, 0.0)[:, None]
    if not UPCAST:
        a = a.to(p_x.dtype.element_ty)
    shift = tl.sum(a.to(tl.float32) * mean[:, None], 0)  # of the rounded weights, as multiplied
    tl.store(p_top + pid * H + o_h, top, m_h)
    tl.store(p_norm + pid * H + o_h, tl.sum(e, 0), m_h)
    p_zt = p_z + (pid * H + o_h[:, None]) * d + o_k[None, :]
    for i_k in range(0, d, BK):
        m_k = o_k < d - i_k
        x = tl.load(p_xt + i_k, m_p[:, None] & m_k[None, :], other=0.0)
        if UPCAST:
            x = x.to(tl.float32)
        z = tl.dot(tl.trans(a), x, input_precision="ieee") - shift[:, None]
        tl.store(p_zt + i_k, z, m_h[:, None] & m_k[None, :])


@triton.jit(do_not_specialize=["frames", "slices", "cls_base"])
def _combine_kernel(
    p_u, p_x, p_z, p_top, p_norm, p_out, frames, slices, d, cls_base, row, u_b, u_h, scale, eps,
    H: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)  # (b H + h) columns + column tile
    columns = tl.cdiv(d, BN)
    i_bh = pid // columns
    i_b, i_h = i_bh // H, i_bh % H
    o_d = tl.arange(0, BD)
    m_d = o_d < d
    p_own = p_x + (cls_base + i_b) * row
    x = tl.load(p_own + o_d, m_d, other=0.0).to(tl.float32)
    mean = tl.sum(x) / d
    z = tl.where(m_d, x - mean, 0.0)
    std = tl.sqrt(tl.sum(z * z) / d + eps)
    u = tl.load(p_u + i_b * u_b + i_h * u_h + o_d, m_d, other=0.0).to(tl.float32)
    s_cls = tl.sum(u * (z / std)) * scale
    o_n = pid % columns * BN + tl.arange(0, BN)
    m_n = o_n < d
    z_cls = (tl.load(p_own + o_n, m_n, other=0.0).to(tl.float32) - mean) / std
    o_s = tl.arange(0, BS)
    m_s = o_s < slices
    out = tl.zeros((BN,), tl.float32)
    for i_t in range(frames):
        # All slices of a frame at once: their loads do not wait for each other.
        at = ((i_b * frames + i_t) * slices + o_s) * H + i_h
        tops = tl.load(p_top + at, m_s, other=float("-inf"))
        top = tl.maximum(tl.max(tops), s_cls)
        fade = tl.exp2(tops - top)
        e_cls = tl.exp2(s_cls - top)
        norm = e_cls + tl.sum(tl.load(p_norm + at, m_s, other=0.0) * fade)
        m = m_s[:, None] & m_n[None, :]
        parts = tl.load(p_z + at[:, None] * d + o_n[None, :], m, other=0.0)
        out += (z_cls * e_cls + tl.sum(parts * fade[:, None], 0)) / norm
    tl.store(p_out + i_bh * d + o_n, (out / frames).to(p_out.dtype.element_ty), m_n)


def _check(u: Tensor, rows: Tensor, batch: int, frames: int, *_: float) -> tuple[int, int]:
    """Refuse what the kernels cannot take with a ValueError; return H and P."""
    check_rows("rows", rows)
    patches, rest = divmod(len(rows) - batch, batch * frames)
    if patches < 1 or rest:
        raise ValueError(
            f"rows are {list(rows.shape)}; need [F P + B, D] with B, T = {batch}, {frames}"
        )
    if u.dim() != 3 or u.shape[0] != batch or u.shape[2] != rows.shape[1]:
        raise ValueError(f"u is {list(u.shape)}; need [{batch}, H, {rows.shape[1]}]")
    if u.shape[1] > MAX_HEADS:
        raise ValueError(f"{u.shape[1]} heads: this kernel takes at most {MAX_HEADS}")
    if u.dtype != rows.dtype or u.stride(2) != 1:
        raise ValueError("u must have the dtype of rows, and neighbouring columns")
    return u.shape[1], patches


def launch(
    u: Tensor,
    rows: Tensor,
    batch: int,
    frames: int,
    scale: float,
    eps: float,
    tile: Tile | None = None,
) -> Tensor:
    """Run both kernels; `tile` overrides the table. The rest is as in `cls_attention_reference`."""
    heads, patches = _check(u, rows, batch, frames)
    d, f = rows.shape[1], batch * frames
    tile = tile or only_tile("cls_attention", rows.device)
    slices = triton.cdiv(patches, tile.bm)
    z = torch.empty(f * slices * heads, d, dtype=torch.float32, device=rows.device)
    top, norm = torch.empty(2, f * slices * heads, dtype=torch.float32, device=rows.device)
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    _partial_kernel[(f * slices,)](
        u, rows, z, top, norm, patches, frames, slices, d, rows.stride(0), u.stride(0), u.stride(1),
        scale * LOG2_E, eps,
        H=heads, H16=MAX_HEADS, BP=tile.bm, BK=tile.bk, UPCAST=upcast(rows.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    _combine_kernel[(batch * heads * triton.cdiv(d, COLUMNS),)](
        u, rows, z, top, norm, out, frames, slices, d, f * patches, rows.stride(0),
        u.stride(0), u.stride(1), scale * LOG2_E, eps,
        H=heads, BD=triton.next_power_of_2(d), BN=COLUMNS, BS=triton.next_power_of_2(slices),
        num_warps=4,
    )  # fmt: skip
    return out


cls_attention = operation(
    "stan_infer::cls_attention",
    reference=cls_attention_reference,
    check=_check,
    launch=launch,
    fake=lambda u, *others: u.new_empty(u.shape),
    flops=lambda u, rows, *others: 4 * u[1] * rows[0] * rows[1],
)


def bytes_and_flops(
    batch: int, frames: int, patches: int, heads: int, head: int = 64, size: int = 2
) -> tuple[int, int]:
    """Bytes moved if each operand moves once, and FLOPs, of one call."""
    d, keys = heads * head, batch * (frames * patches + 1)
    return (keys * d + 2 * batch * heads * d) * size, 4 * heads * d * keys
