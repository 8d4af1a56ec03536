"""What `linear` computes, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stan_infer.kernels.row_norm import row_sums_reference
from stan_infer.kernels.tiles import plain_norm


def linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor | None,
    stats: Tensor | None,
    residual: Tensor | None,
    after: Tensor | None,
    activation: str,
    eps: float,
    wide: bool,
    parts: bool,
    dependent: bool = False,
) -> tuple[Tensor, Tensor]:
    """Rows [M, K] -> [M, N], or [R, N] with a residual [R, N], R >= M: rows M to R are copied.

    sums: s and t of weight, fp32 [2, N]; given, x is normed first by stats, the sums of its rows
    [>= M, 2, S]. activation: "", "silu", "gelu", applied before the residual. wide: the result is
    fp32. parts: the second result is the sums of the rows y + after, after fp32 [N] or None; else
    it is empty. dependent: the kernel may begin while the one before it ends (see `linear`). In
    plain torch, in fp32 inside (fp64 stays fp64).
    """
    inner = torch.promote_types(x.dtype, torch.float32)
    y = F.linear(x.to(inner), weight.to(inner))
    if sums is not None:
        assert stats is not None
        mean, rstd = plain_norm(stats[: x.shape[0]], x.shape[1], eps)
        y = rstd * (y + sums[1] - mean * sums[0])
    y = plain_epilogue(y + bias.to(inner), residual, activation)
    y = y if wide else y.to(x.dtype)
    return y, row_sums_reference(y, after) if parts else y.new_empty(0, dtype=torch.float32)


def plain_epilogue(y: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    """What follows the bias, in plain torch: activation and residual, as in `linear_reference`."""
    if activation:
        y = F.silu(y) if activation == "silu" else F.gelu(y)
    if residual is None:
        return y
    m = y.shape[0]
    if residual.shape[0] == m:
        return y + residual
    return torch.cat([y + residual[:m], residual[m:]])
