"""The rows that the head's linear reads: norm(trunk class + branch class), and their mean per clip.

trunk [F, P + 1, D], class token last; cls [B, D]; out [F + B, D]: one normed row per frame, then
per clip the mean of its T rows. The norm's gain and shift are in the head's weights; c [D] is what
both streams carry apart (`row_norm`). A program per frame writes its row, one per clip norms all
frames of the clip again, FRAMES at once, and writes the mean. PERFORMANCE: one linear then makes
the embeddings of both frames and clips; no program waits for one frame after the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from stan_infer.kernels.operation import operation
from stan_infer.kernels.row_norm import check_offset
from stan_infer.kernels.tiles import check_rows

FRAMES = 16  # a clip's program holds as many rows at once


def head_rows_reference(trunk: Tensor, cls: Tensor, offset: Tensor | None, eps: float) -> Tensor:
    """Trunk rows [F, P + 1, D] and class tokens [B, D] -> normed rows and their means [F + B, D].

    offset: fp32 [D], added to the sum of both. In plain torch, in fp32 inside (fp64 stays fp64).
    """
    wide = torch.promote_types(trunk.dtype, torch.float32)
    x = trunk[:, -1].to(wide).unflatten(0, (len(cls), -1)) + cls[:, None].to(wide)
    x = x if offset is None else x + offset
    z = F.layer_norm(x, x.shape[-1:], eps=eps)
    return torch.cat([z.flatten(0, 1), z.mean(1)]).to(trunk.dtype)


@triton.jit
def _normed(x, m_d, d, eps):
    """Norm rows x [R, BD]."""
    x = tl.where(m_d[None, :], x - (tl.sum(x, 1) / d)[:, None], 0.0)
    return x / tl.sqrt(tl.sum(x * x, 1) / d + eps)[:, None]


@triton.jit(do_not_specialize=["batch", "frames", "tokens"])
def _head_kernel(
    p_x, p_cls, p_c, p_y, batch, frames, tokens, d, cls_row, eps,
    OFFSET: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)  # frames, then clips
    own = pid < batch * frames
    i_b = tl.where(own, pid // frames, pid - batch * frames)
    o_d = tl.arange(0, BD)
    m_d = o_d < d
    add = tl.load(p_cls + i_b * cls_row + o_d, m_d, other=0.0).to(tl.float32)
    if OFFSET:
        add += tl.load(p_c + o_d, m_d, other=0.0)
    if own:
        x = tl.load(p_x + (pid * tokens + tokens - 1) * d + o_d, m_d, other=0.0).to(tl.float32)
        y = tl.sum(_normed((x + add)[None, :], m_d, d, eps), 0)
    else:
        y = tl.zeros((BD,), tl.float32)
        for first in range(0, frames, BT):
            i_t = first + tl.arange(0, BT)
            at = ((i_b * frames + i_t) * tokens + tokens - 1) * d
            m = (i_t < frames)[:, None] & m_d[None, :]
            x = tl.load(p_x + at[:, None] + o_d[None, :], m, other=0.0).to(tl.float32)
            z = _normed(x + add[None, :], m_d, d, eps)
            y += tl.sum(tl.where(m, z, 0.0), 0)
        y = y / frames
    tl.store(p_y + pid * d + o_d, y.to(p_y.dtype.element_ty), m_d)


def _check(trunk: Tensor, cls: Tensor, offset: Tensor | None, *_: float) -> None:
    if trunk.dim() != 3 or not trunk.is_contiguous():
        raise ValueError(f"trunk is {list(trunk.shape)}; need contiguous [F, P + 1, D]")
    check_rows("cls", cls, trunk.shape[2])
    check_offset(offset, trunk.shape[2])
    if len(cls) < 1 or len(trunk) % len(cls):
        raise ValueError(f"{len(cls)} class tokens for {len(trunk)} frames")


def launch(trunk: Tensor, cls: Tensor, offset: Tensor | None, eps: float) -> Tensor:
    """Run the kernel; arguments and result as in `head_rows_reference`."""
    _check(trunk, cls, offset)
    (f, tokens, d), batch = trunk.shape, len(cls)
    y = torch.empty(f + batch, d, dtype=trunk.dtype, device=trunk.device)
    frames = f // batch
    _head_kernel[(f + batch,)](
        trunk, cls, offset, y, batch, frames, tokens, d, cls.stride(0), eps,
        OFFSET=offset is not None, BT=min(FRAMES, triton.next_power_of_2(frames)),
        BD=triton.next_power_of_2(d), num_warps=8,
    )  # fmt: skip
    return y


head_rows = operation(
    "stan_infer::head_rows",
    reference=head_rows_reference,
    check=_check,
    launch=launch,
    fake=lambda trunk, cls, *others: trunk.new_empty(trunk.shape[0] + cls.shape[0], trunk.shape[2]),
)
