"""Trunk rows added to the branch's: patch to patch, the frames' mean class token to the clip's.

trunk [F, P + 1, D], class token last; branch rows [F P + B, D], patches frame after frame, then one
class token per clip. First branch layer: patches + position + time, (mean_t class + class_0) / 2.
Later layers: patches + rows, mean_t class + rows. The reference model does this with a mean, five
additions, a transpose and a concatenation. PERFORMANCE: every value moves once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stan_infer.kernels.operation import operation
from stan_infer.kernels.tiles import check_rows


def branch_merge_reference(
    trunk: Tensor,
    rows: Tensor | None,
    positions: Tensor | None,
    time: Tensor | None,
    cls: Tensor | None,
    batch: int,
) -> Tensor:
    """Trunk rows [F, P + 1, D], with branch rows or the three tables -> branch rows [F P + B, D].

    positions [P, D], time [>= T, D], cls [D]. In plain torch, in fp32 inside (fp64 stays fp64).
    """
    wide = torch.promote_types(trunk.dtype, torch.float32)
    x = trunk.to(wide).unflatten(0, (batch, -1))  # [B, T, P + 1, D]
    own = x[:, :, -1].mean(1)
    if rows is not None:
        y = torch.cat([x[:, :, :-1].flatten(0, 2), own]) + rows
    else:
        assert positions is not None and time is not None and cls is not None
        table = positions.to(wide) + time[: x.shape[1], None].to(wide)
        y = torch.cat([(x[:, :, :-1] + table).flatten(0, 2), (own + cls) / 2])
    return y.to(trunk.dtype)


@triton.jit
def _merge_kernel(
    p_x, p_r, p_pos, p_time, p_cls, p_y, frames, patches, total, d, row,
    START: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)  # a row of the branch
    o_d = tl.arange(0, BD)
    m_d = o_d < d
    if pid < total:
        i_f, i_p = pid // patches, pid % patches
        y = tl.load(p_x + (pid + i_f) * d + o_d, m_d, other=0.0).to(tl.float32)
        if START:
            y += tl.load(p_pos + i_p * d + o_d, m_d, other=0.0).to(tl.float32) + tl.load(
                p_time + i_f % frames * d + o_d, m_d, other=0.0
            ).to(tl.float32)
        else:
            y += tl.load(p_r + pid * row + o_d, m_d, other=0.0).to(tl.float32)
        tl.store(p_y + pid * d + o_d, y.to(p_y.dtype.element_ty), m_d)
    else:
        first = (pid - total) * frames
        own = tl.zeros((BD,), tl.float32)
        for i_t in range(frames):
            at = (first + i_t) * (patches + 1) + patches
            own += tl.load(p_x + at * d + o_d, m_d, other=0.0).to(tl.float32)
        own = own / frames
        if START:
            own = (own + tl.load(p_cls + o_d, m_d, other=0.0).to(tl.float32)) / 2
        else:
            own += tl.load(p_r + pid * row + o_d, m_d, other=0.0).to(tl.float32)
        tl.store(p_y + pid * d + o_d, own.to(p_y.dtype.element_ty), m_d)


def _check(
    trunk: Tensor,
    rows: Tensor | None,
    positions: Tensor | None,
    time: Tensor | None,
    cls: Tensor | None,
    batch: int,
) -> tuple[int, int]:
    """Refuse what the kernel cannot take with a ValueError; return T and P."""
    if trunk.dim() != 3 or not trunk.is_contiguous() or batch < 1 or len(trunk) % batch:
        raise ValueError(
            f"trunk is {list(trunk.shape)}; need contiguous [B T, P + 1, D], B = {batch}"
        )
    check_rows("trunk", trunk.flatten(0, 1))
    frames, patches, d = len(trunk) // batch, trunk.shape[1] - 1, trunk.shape[2]
    if rows is not None:
        check_rows("rows", rows, d)
        if len(rows) != batch * frames * patches + batch:
            raise ValueError(f"rows are {list(rows.shape)}; need [F P + B, D]")
        return frames, patches
    if positions is None or time is None or cls is None:
        raise ValueError("the first layer needs positions, time and cls")
    if (
        positions.shape != (patches, d)
        or time.shape[1:] != (d,)
        or len(time) < frames
        or cls.shape != (d,)
        or not (positions.is_contiguous() and time.is_contiguous())
    ):
        raise ValueError(
            f"tables are {list(positions.shape)}, {list(time.shape)}, {list(cls.shape)}; need "
            f"[{patches}, {d}], [{frames} or more, {d}], [{d}]"
        )
    return frames, patches


def launch(
    trunk: Tensor,
    rows: Tensor | None,
    positions: Tensor | None,
    time: Tensor | None,
    cls: Tensor | None,
    batch: int,
) -> Tensor:
    """Run the kernel; arguments and result as in `branch_merge_reference`."""
    frames, patches = _check(trunk, rows, positions, time, cls, batch)
    total, d = batch * frames * patches, trunk.shape[2]
    y = torch.empty(total + batch, d, dtype=trunk.dtype, device=trunk.device)
    _merge_kernel[(total + batch,)](
        trunk, rows, positions, time, cls, y, frames, patches, total, d,
        0 if rows is None else rows.stride(0),
        START=rows is None, BD=triton.next_power_of_2(d),
    )  # fmt: skip
    return y


branch_merge = operation(
    "stan_infer::branch_merge",
    reference=branch_merge_reference,
    check=_check,
    launch=launch,
    fake=lambda trunk, rows, positions, time, cls, batch: trunk.new_empty(
        trunk.shape[0] * (trunk.shape[1] - 1) + batch, trunk.shape[2]
    ),
)
