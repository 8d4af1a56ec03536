"""Trunk rows added to the branch's: patch to patch, the frames' mean class token to the clip's.

trunk [F, P + 1, D], class token last; branch rows [F P + B, D], patches frame after frame, then one
class token per clip. First branch layer: patches + position + time, (mean_t class + class_0) / 2.
Later layers: patches + rows, mean_t class + rows. What the two streams carry apart (`row_norm`) is
added, so that the result carries nothing. The sums of its rows are the second result: temporal
attention norms them next. The reference model does this with a mean, five additions, a transpose
and a concatenation. PERFORMANCE: every value moves once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stan_infer.kernels.operation import operation
from stan_infer.kernels.row_norm import check_offset, row_sums_reference
from stan_infer.kernels.tiles import SPAN, check_rows, parts_of_row, spans


def branch_merge_reference(
    trunk: Tensor,
    rows: Tensor | None,
    positions: Tensor | None,
    time: Tensor | None,
    cls: Tensor | None,
    trunk_offset: Tensor | None,
    offset: Tensor | None,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """Trunk rows [F, P + 1, D], with branch rows or the three tables -> branch rows [F P + B, D].

    positions [P, D], time [>= T, D], cls [D]; trunk_offset, offset: what the trunk and the branch
    rows carry apart, fp32 [D]. The second result: sums of the rows, fp32 [F P + B, 2, S]. In plain
    torch, in fp32 inside (fp64 stays fp64).
    """
    wide = torch.promote_types(trunk.dtype, torch.float32)
    x = trunk.to(wide).unflatten(0, (batch, -1))  # [B, T, P + 1, D]
    x = x if trunk_offset is None else x + trunk_offset
    own = x[:, :, -1].mean(1)
    if rows is not None:
        y = torch.cat([x[:, :, :-1].flatten(0, 2), own]) + rows
        y = y if offset is None else y + offset
    else:
        assert positions is not None and time is not None and cls is not None
        table = positions.to(wide) + time[: x.shape[1], None].to(wide)
        y = torch.cat([(x[:, :, :-1] + table).flatten(0, 2), (own + cls) / 2])
    y = y.to(trunk.dtype)
    return y, row_sums_reference(y, None)


@triton.jit(do_not_specialize=["frames", "patches", "total"])
def _merge_kernel(
    p_x, p_r, p_pos, p_time, p_cls, p_tc, p_rc, p_y, p_parts, frames, patches, total, d, row,
    START: tl.constexpr, TRUNK_OFFSET: tl.constexpr, OFFSET: tl.constexpr, PARTS: tl.constexpr,
    BD: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)  # a row of the branch
    o_d = tl.arange(0, BD)
    m_d = o_d < d
    c = tl.zeros((BD,), tl.float32)  # of the trunk; the mean over frames has it once
    if TRUNK_OFFSET:
        c += tl.load(p_tc + o_d, m_d, other=0.0)
    if OFFSET:
        c += tl.load(p_rc + o_d, m_d, other=0.0)
    if pid < total:
        i_f, i_p = pid // patches, pid % patches
        y = tl.load(p_x + (pid + i_f) * d + o_d, m_d, other=0.0).to(tl.float32) + c
        if START:
            y += tl.load(p_pos + i_p * d + o_d, m_d, other=0.0).to(tl.float32) + tl.load(
                p_time + i_f % frames * d + o_d, m_d, other=0.0
            ).to(tl.float32)
    else:
        first = (pid - total) * frames
        y = tl.zeros((BD,), tl.float32)
        for i_t in range(frames):
            at = (first + i_t) * (patches + 1) + patches
            y += tl.load(p_x + at * d + o_d, m_d, other=0.0).to(tl.float32)
        y = y / frames + c
        if START:
            y = (y + tl.load(p_cls + o_d, m_d, other=0.0).to(tl.float32)) / 2
    if not START:
        y += tl.load(p_r + pid * row + o_d, m_d, other=0.0).to(tl.float32)
    stored = y.to(p_y.dtype.element_ty)
    tl.store(p_y + pid * d + o_d, stored, m_d)
    parts_of_row(stored.to(tl.float32), p_parts + pid * 2 * PARTS, PARTS, BD, SPAN)


def _check(
    trunk: Tensor,
    rows: Tensor | None,
    positions: Tensor | None,
    time: Tensor | None,
    cls: Tensor | None,
    trunk_offset: Tensor | None,
    offset: Tensor | None,
    batch: int,
) -> tuple[int, int]:
    """Refuse what the kernel cannot take with a ValueError; return T and P."""
    if trunk.dim() != 3 or not trunk.is_contiguous() or batch < 1 or len(trunk) % batch:
        raise ValueError(
            f"trunk is {list(trunk.shape)}; need contiguous [B T, P + 1, D], B = {batch}"
        )
    check_rows("trunk", trunk.flatten(0, 1))
    frames, patches, d = len(trunk) // batch, trunk.shape[1] - 1, trunk.shape[2]
    for one in (trunk_offset, offset):
        check_offset(one, d)
    if rows is not None:
        check_rows("rows", rows, d)
        if len(rows) != batch * frames * patches + batch:
            raise ValueError(f"rows are {list(rows.shape)}; need [F P + B, D]")
        return frames, patches
    if positions is None or time is None or cls is None or offset is not None:
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
    trunk_offset: Tensor | None,
    offset: Tensor | None,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """Run the kernel; arguments and result as in `branch_merge_reference`."""
    frames, patches = _check(trunk, rows, positions, time, cls, trunk_offset, offset, batch)
    total, d = batch * frames * patches, trunk.shape[2]
    y = torch.empty(total + batch, d, dtype=trunk.dtype, device=trunk.device)
    parts = torch.empty(total + batch, 2, spans(d), dtype=torch.float32, device=trunk.device)
    _merge_kernel[(total + batch,)](
        trunk, rows, positions, time, cls, trunk_offset, offset, y, parts, frames, patches, total,
        d, 0 if rows is None else rows.stride(0),
        START=rows is None, TRUNK_OFFSET=trunk_offset is not None, OFFSET=offset is not None,
        PARTS=spans(d), BD=max(SPAN, triton.next_power_of_2(d)), SPAN=SPAN,
    )  # fmt: skip
    return y, parts


def _fake(trunk: Tensor, *others: Tensor | int | None) -> tuple[Tensor, Tensor]:
    batch = others[-1]
    assert not isinstance(batch, Tensor) and batch is not None
    rows, d = trunk.shape[0] * (trunk.shape[1] - 1) + batch, trunk.shape[2]
    return trunk.new_empty(rows, d), trunk.new_empty(rows, 2, spans(d), dtype=torch.float32)


branch_merge = operation(
    "stan_infer::branch_merge",
    reference=branch_merge_reference,
    check=_check,
    launch=launch,
    fake=_fake,
)
