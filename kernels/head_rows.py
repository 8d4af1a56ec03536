"""The rows that the head's linear reads: norm(trunk class + branch class), and their mean per clip.

trunk [F, P + 1, D], class token last; cls [B, D]; out [F + B, D]: one normed row per frame, then
per clip the mean of its T rows. The norm's gain and shift are in the head's weights. PERFORMANCE:
one linear then makes the embeddings of both frames and clips.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from stan_infer.kernels.operation import operation
from stan_infer.kernels.tiles import check_rows


def head_rows_reference(trunk: Tensor, cls: Tensor, eps: float) -> Tensor:
    """Trunk rows [F, P + 1, D] and class tokens [B, D] -> normed rows and their means [F + B, D].

    In plain torch, in fp32 inside (fp64 stays fp64).
    """
    wide = torch.promote_types(trunk.dtype, torch.float32)
    x = trunk[:, -1].to(wide).unflatten(0, (len(cls), -1)) + cls[:, None].to(wide)
    z = F.layer_norm(x, x.shape[-1:], eps=eps)
    return torch.cat([z.flatten(0, 1), z.mean(1)]).to(trunk.dtype)


@triton.jit
def _head_kernel(p_x, p_cls, p_y, batch, frames, tokens, d, cls_row, eps, BD: tl.constexpr):
    i_b = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BD)
    m_d = o_d < d
    cls = tl.load(p_cls + i_b * cls_row + o_d, m_d, other=0.0).to(tl.float32)
    total = tl.zeros((BD,), tl.float32)
    for i_t in range(frames):
        i_f = i_b * frames + i_t
        at = (i_f * tokens + tokens - 1) * d
        x = tl.load(p_x + at + o_d, m_d, other=0.0).to(tl.float32) + cls
        x = tl.where(m_d, x - tl.sum(x) / d, 0.0)
        x = x / tl.sqrt(tl.sum(x * x) / d + eps)
        total += x
        tl.store(p_y + i_f * d + o_d, x.to(p_y.dtype.element_ty), m_d)
    at = (batch * frames + i_b) * d
    tl.store(p_y + at + o_d, (total / frames).to(p_y.dtype.element_ty), m_d)


def _check(trunk: Tensor, cls: Tensor, *_: float) -> None:
    if trunk.dim() != 3 or not trunk.is_contiguous():
        raise ValueError(f"trunk is {list(trunk.shape)}; need contiguous [F, P + 1, D]")
    check_rows("cls", cls, trunk.shape[2])
    if len(cls) < 1 or len(trunk) % len(cls):
        raise ValueError(f"{len(cls)} class tokens for {len(trunk)} frames")


def launch(trunk: Tensor, cls: Tensor, eps: float) -> Tensor:
    """Run the kernel; arguments and result as in `head_rows_reference`."""
    _check(trunk, cls)
    (f, tokens, d), batch = trunk.shape, len(cls)
    y = torch.empty(f + batch, d, dtype=trunk.dtype, device=trunk.device)
    _head_kernel[(batch,)](
        trunk, cls, y, batch, f // batch, tokens, d, cls.stride(0), eps,
        BD=triton.next_power_of_2(d),
    )  # fmt: skip
    return y


head_rows = operation(
    "stan_infer::head_rows",
    reference=head_rows_reference,
    check=_check,
    launch=launch,
    fake=lambda trunk, cls, eps: trunk.new_empty(trunk.shape[0] + cls.shape[0], trunk.shape[2]),
)
