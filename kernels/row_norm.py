"""What a row's norm needs, made once per row: its sums, or the normed row itself.

x [R, D]; c [D] is what the stream x carries apart (see `kernel_weights.carry_biases`), so that the
row is x + c. `row_sums` writes the sum and the sum of squares of every SPAN columns, fp32
[R, 2, ceil(D / SPAN)]: a product that writes rows of the stream writes them beside, a product or an
attention that reads the rows adds them (`tiles.norm_of_parts`). `row_norm` writes
(x + c - mean) / std, for the library's products and in 8 bits for any; `quantise_rows` rounds rows
that need no norm. PERFORMANCE: inside a product the same sums were
taken again for every tile of columns, in its inner loop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from stan_infer.kernels.operation import operation
from stan_infer.kernels.tiles import INTERPRETED, SPAN, check_rows, parts_of_row, spans, to_e4m3

LARGEST = 448.0  # of e4m3


def quantise(x: Tensor, scale: float) -> Tensor:
    """Round x / scale to e4m3, nearest even, saturating, in plain torch."""
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def check_scale(name: str, scale: float) -> None:
    """ValueError unless the scale is a positive number."""
    if not 0 < scale < float("inf"):
        raise ValueError(f"{name} is {scale}; need a positive number")


def narrow(y: Tensor, dtype: torch.dtype, scale: float | None) -> Tensor:
    """Round a result to dtype, or to e4m3 by a scale, in plain torch."""
    return y.to(dtype) if scale is None else quantise(y, scale)


def new_rows(like: Tensor, rows: int, columns: int, scale: float | None) -> Tensor:
    """An empty result [rows, columns], of the dtype of `like`, or of e4m3 where it has a scale."""
    if scale is not None:
        check_scale("y_scale", scale)
    dtype = like.dtype if scale is None else torch.float8_e4m3fn
    return torch.empty(rows, columns, dtype=dtype, device=like.device)


def check_offset(offset: Tensor | None, columns: int) -> None:
    """ValueError unless the offset is None or fp32 [columns]."""
    if offset is not None and (offset.dtype != torch.float32 or offset.shape != (columns,)):
        raise ValueError(f"offset is {offset.dtype} {list(offset.shape)}; need float32 [{columns}]")


def row_sums_reference(x: Tensor, offset: Tensor | None) -> Tensor:
    """Rows [R, D] and c fp32 [D] or None -> fp32 [R, 2, S] (fp64 stays fp64), in plain torch."""
    z = x.to(torch.promote_types(x.dtype, torch.float32))
    z = z if offset is None else z + offset
    z = F.pad(z, (0, -z.shape[1] % SPAN)).unflatten(1, (-1, SPAN))
    return torch.stack([z.sum(2), (z * z).sum(2)], 1)


def row_norm_reference(x: Tensor, offset: Tensor | None, eps: float, scale: float | None) -> Tensor:
    """Rows [R, D] and c fp32 [D] or None -> rows [R, D], normed; in fp32 inside (fp64 stays fp64).

    scale: the result is e4m3, divided by it; None: it has the dtype of x.
    """
    z = x.to(torch.promote_types(x.dtype, torch.float32))
    z = z if offset is None else z + offset
    z = F.layer_norm(z, z.shape[-1:], eps=eps)
    return z.to(x.dtype) if scale is None else quantise(z, scale)


def quantise_rows_reference(x: Tensor, scale: float) -> Tensor:
    """Rows [R, D] -> e4m3 rows [R, D] of x / scale, in plain torch."""
    return quantise(x, scale)


@triton.jit
def _row_kernel(
    p_x, p_c, p_y, d, row, eps, scale,
    OFFSET: tl.constexpr, NORM: tl.constexpr, PARTS: tl.constexpr, BD: tl.constexpr,
    SPAN: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BD)
    m_d = o_d < d
    x = tl.load(p_x + pid * row + o_d, m_d, other=0.0).to(tl.float32)
    if OFFSET:
        x += tl.load(p_c + o_d, m_d, other=0.0)
    if NORM:
        x = tl.where(m_d, x - tl.sum(x) / d, 0.0)
        x = x / tl.sqrt(tl.sum(x * x) / d + eps)
    if p_y.dtype.element_ty == tl.float8e4nv:
        tl.store(p_y + pid * d + o_d, to_e4m3(x, scale, ROUND), m_d)
    elif NORM:
        tl.store(p_y + pid * d + o_d, x.to(p_y.dtype.element_ty), m_d)
    else:
        parts_of_row(x, p_y + pid * 2 * PARTS, PARTS, BD, SPAN)


def _launch(
    x: Tensor, offset: Tensor | None, y: Tensor, norm: bool, eps: float, scale: float | None
) -> Tensor:
    r, d = x.shape
    _row_kernel[(r,)](
        x, offset, y, d, x.stride(0), eps, 1.0 if scale is None else scale,
        OFFSET=offset is not None, NORM=norm, PARTS=spans(d),
        BD=max(SPAN, triton.next_power_of_2(d)), SPAN=SPAN, ROUND=INTERPRETED,
    )  # fmt: skip
    return y


def _rows(x: Tensor, scale: float | None) -> Tensor:
    dtype = x.dtype if scale is None else torch.float8_e4m3fn
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _check(x: Tensor, offset: Tensor | None, *_: float | None) -> None:
    check_rows("x", x)
    check_offset(offset, x.shape[1])


def launch_sums(x: Tensor, offset: Tensor | None) -> Tensor:
    """Run the kernel; arguments and result as in `row_sums_reference`."""
    _check(x, offset)
    y = torch.empty(len(x), 2, spans(x.shape[1]), dtype=torch.float32, device=x.device)
    return _launch(x, offset, y, False, 0.0, None)


def launch(x: Tensor, offset: Tensor | None, eps: float, scale: float | None) -> Tensor:
    """Run the kernel; arguments and result as in `row_norm_reference`."""
    _check(x, offset)
    if scale is not None:
        check_scale("scale", scale)
    return _launch(x, offset, _rows(x, scale), True, eps, scale)


def launch_quantise(x: Tensor, scale: float) -> Tensor:
    """Run the kernel; arguments and result as in `quantise_rows_reference`."""
    _check_quantise(x, scale)
    return _launch(x, None, _rows(x, scale), False, 0.0, scale)


def _check_quantise(x: Tensor, scale: float) -> None:
    check_rows("x", x)
    check_scale("scale", scale)


row_sums = operation(
    "stan_infer::row_sums",
    reference=row_sums_reference,
    check=_check,
    launch=launch_sums,
    fake=lambda x, offset: x.new_empty(x.shape[0], 2, spans(x.shape[1]), dtype=torch.float32),
)

row_norm = operation(
    "stan_infer::row_norm",
    reference=row_norm_reference,
    check=_check,
    launch=launch,
    fake=lambda x, offset, eps, scale: _rows(x, scale),
)

quantise_rows = operation(
    "stan_infer::quantise_rows",
    reference=quantise_rows_reference,
    check=_check_quantise,
    launch=launch_quantise,
    fake=_rows,
)
