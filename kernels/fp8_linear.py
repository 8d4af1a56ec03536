"""y = act(q(x) q(W)^T s_x s_w + b) + residual with x and W in 8 bits (e4m3), sums in fp32.

x [M, K] e4m3 was rounded once, by whoever wrote it: the norm before the linear, the activation of
fc1, or `quantise_rows`. W is e4m3 [N, K] with one scale per output channel; x has one scale, from a
calibration. Values beyond +-448 saturate, since e4m3 has no infinity. Tensor cores of sm_90 keep
about 14 bits of such a sum. Needs sm_89 or newer. The kernel, the residual and the sums of the
result are those of `linear`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stan_infer.kernels.linear import check_epilogue, run
from stan_infer.kernels.linear_reference import plain_epilogue
from stan_infer.kernels.operation import operation
from stan_infer.kernels.row_norm import check_offset, check_scale, row_sums_reference
from stan_infer.kernels.row_norm import quantise as quantise
from stan_infer.kernels.tiles import spans
from stan_infer.kernels.tuned import Tile, family, tiles


def fp8_linear_reference(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    x_scale: float,
    bias: Tensor,
    residual: Tensor | None,
    after: Tensor | None,
    activation: str,
    y_scale: float | None,
    parts: bool,
) -> tuple[Tensor, Tensor]:
    """Rows [M, K] -> [M, N], or [R, N] with a residual [R, N]; x, weight e4m3, weight_scale [N].

    The result has the dtype of bias, or is e4m3 by y_scale. parts, after and the second result: as
    in `linear_reference`. In plain torch, in fp32 inside.
    """
    y = F.linear(x.float(), weight.float()) * (weight_scale * x_scale) + bias.float()
    y = plain_epilogue(y, residual, activation)
    y = y.to(bias.dtype) if y_scale is None else quantise(y, y_scale)
    return y, row_sums_reference(y, after) if parts else y.new_empty(0, dtype=torch.float32)


def _check(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    x_scale: float,
    bias: Tensor,
    residual: Tensor | None,
    after: Tensor | None,
    activation: str,
    y_scale: float | None,
    parts: bool,
) -> None:
    for name, rows in (("x", x), ("weight", weight)):
        if rows.dtype != torch.float8_e4m3fn or rows.dim() != 2 or rows.stride(1) != 1:
            raise ValueError(f"{name} is {rows.dtype}; need float8_e4m3fn rows")
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"x has {x.shape[1]} columns, weight {weight.shape[1]}")
    if weight_scale.dtype != torch.float32 or weight_scale.shape != weight.shape[:1]:
        raise ValueError(f"weight_scale must be float32 [{len(weight)}]")
    check_scale("x_scale", x_scale)
    if y_scale is not None:
        check_scale("y_scale", y_scale)
        if residual is not None or parts:
            raise ValueError("an 8-bit result is no stream: it has no residual and no sums")
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{len(weight)}]")
    check_offset(after, len(weight))
    check_epilogue(x, weight, residual, activation)


def launch(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    x_scale: float,
    bias: Tensor,
    residual: Tensor | None,
    after: Tensor | None,
    activation: str,
    y_scale: float | None,
    parts: bool,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the kernel; `tile` overrides the rule. The rest is as in `fp8_linear_reference`."""
    _check(x, weight, weight_scale, x_scale, bias, residual, after, activation, y_scale, parts)
    if not tiles("fp8_linear", family(x.device)):
        raise ValueError(f"{family(x.device)} has no 8-bit floats: sm_89 or newer is needed")
    out = bias.dtype if y_scale is None else torch.float8_e4m3fn
    norm = (None, None, 0.0)
    scales = (weight_scale, x_scale, y_scale or 1.0)
    return run(x, weight, bias, norm, residual, after, activation, out, parts, tile, scales)


def _fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    x_scale: float,
    bias: Tensor,
    residual: Tensor | None,
    after: Tensor | None,
    activation: str,
    y_scale: float | None,
    parts: bool,
) -> tuple[Tensor, Tensor]:
    rows, n = (x if residual is None else residual).shape[0], weight.shape[0]
    own = (rows, 2, spans(n)) if parts else (0,)
    out = bias.dtype if y_scale is None else torch.float8_e4m3fn
    return x.new_empty(rows, n, dtype=out), x.new_empty(own, dtype=torch.float32)


fp8_linear = operation(
    "stan_infer::fp8_linear",
    reference=fp8_linear_reference,
    check=_check,
    launch=launch,
    fake=_fake,
    flops=lambda x, weight, *others: 2 * x[0] * weight[0] * weight[1],
)


def bytes_and_flops(
    m: int, n: int, k: int, *, residual_rows: int = 0, size: int = 2
) -> tuple[int, int]:
    """Bytes moved if each operand moves once, and FLOPs; results have `size` bytes."""
    elements = n + max(m, residual_rows) * n + residual_rows * n
    return elements * size + (m + n) * k + 4 * n, 2 * m * n * k
