"""y = act(q(x / s_x) q(W)^T s_x s_w + b) + residual with q to 8 bits (e4m3), sums in fp32.

x [M, K] in fp16, bf16 or fp32 is rounded after it was loaded; W is float8_e4m3fn [N, K] with one
scale per output channel; x has one scale, from a calibration. Values beyond +-448 saturate, since
e4m3 has no infinity. Tensor cores of sm_90 keep about 14 bits of such a sum. Needs sm_89 or newer.
The residual is as in `linear`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from stan_infer.kernels.linear import check_epilogue, plain_epilogue
from stan_infer.kernels.operation import operation
from stan_infer.kernels.tiles import INTERPRETED, check_rows
from stan_infer.kernels.tuned import Tile, family, tiles

LARGEST = 448.0  # of e4m3


def quantise(x: Tensor, scale: Tensor) -> Tensor:
    """Round x / scale to e4m3, nearest even, saturating; scale broadcasts."""
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def fp8_linear_reference(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    x_scale: float,
    bias: Tensor,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """Rows [M, K] -> [M, N], or [R, N] with a residual [R, N]; weight e4m3, weight_scale fp32 [N].

    In plain torch, in fp32 inside.
    """
    z = quantise(x, torch.tensor(x_scale, device=x.device)).float()
    y = F.linear(z, weight.float()) * (weight_scale * x_scale) + bias.float()
    return plain_epilogue(y, residual, activation).to(x.dtype)


@triton.jit
def _round_e4m3(x):
    """Round fp32 within +-448 to the values of e4m3: the interpreter's own cast truncates."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF  # 3 bits of the fraction stay
    tiny = (x + 24576.0) - 24576.0  # multiples of 2^-9, e4m3's smallest
    return tl.where(tl.abs(x) < 0.015625, tiny, bits.to(tl.float32, bitcast=True))


@triton.jit
def _fp8_linear_kernel(
    p_x, p_w, p_ws, p_b, p_r, p_y, m, n, k, rows, x_row, w_row, r_row, y_row, x_scale,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, GROUP: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    per_group = GROUP * tl.cdiv(n, BN)
    first = pid // per_group * GROUP
    height = tl.minimum(tl.cdiv(rows, BM) - first, GROUP)
    o_m = (first + (pid % per_group) % height).to(tl.int64) * BM + tl.arange(0, BM)
    o_n = (pid % per_group) // height * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    m_m, m_n = o_m < m, o_n < n
    p_xt = p_x + o_m[:, None] * x_row + o_k[None, :]
    p_wt = p_w + o_n[None, :].to(tl.int64) * w_row + o_k[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    for i_k in range(0, k, BK):
        m_k = o_k < k - i_k
        x = tl.load(p_xt + i_k, m_m[:, None] & m_k[None, :], other=0.0).to(tl.float32)
        w = tl.load(p_wt + i_k, m_n[None, :] & m_k[:, None], other=0.0)
        x = tl.minimum(tl.maximum(x / x_scale, -448.0), 448.0)
        if INTERPRET:
            acc = tl.dot(_round_e4m3(x), w.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(x.to(tl.float8e4nv), w, acc)
    acc = acc * (tl.load(p_ws + o_n, m_n, other=0.0) * x_scale)[None, :]
    acc += tl.load(p_b + o_n, m_n, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == "silu":
        acc = acc * tl.sigmoid(acc)
    if ACTIVATION == "gelu":
        acc = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    m_y = (o_m < rows)[:, None] & m_n[None, :]
    if RESIDUAL:
        r = tl.load(p_r + o_m[:, None] * r_row + o_n[None, :], m_y, other=0.0).to(tl.float32)
        acc = tl.where(m_m[:, None], acc, 0.0) + r
    tl.store(p_y + o_m[:, None] * y_row + o_n[None, :], acc.to(p_y.dtype.element_ty), m_y)


def _check(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    x_scale: float,
    bias: Tensor,
    residual: Tensor | None,
    activation: str,
) -> None:
    check_rows("x", x)
    if weight.dtype != torch.float8_e4m3fn or weight.dim() != 2 or weight.stride(1) != 1:
        raise ValueError(f"weight is {weight.dtype}; need float8_e4m3fn [N, K]")
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"x has {x.shape[1]} columns, weight {weight.shape[1]}")
    if weight_scale.dtype != torch.float32 or weight_scale.shape != weight.shape[:1]:
        raise ValueError(f"weight_scale must be float32 [{len(weight)}]")
    if not 0 < x_scale < float("inf"):
        raise ValueError(f"x_scale is {x_scale}; need a positive number")
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{len(weight)}]")
    check_epilogue(x, weight, residual, activation)


def launch(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    x_scale: float,
    bias: Tensor,
    residual: Tensor | None,
    activation: str,
    tile: Tile | None = None,
) -> Tensor:
    """Run the kernel; `tile` overrides the table. The rest is as in `fp8_linear_reference`."""
    _check(x, weight, weight_scale, x_scale, bias, residual, activation)
    (m, k), n = x.shape, len(weight)
    rows = m if residual is None else len(residual)
    if tile is None:
        options = tiles("fp8_linear", family(x.device))
        if not options:
            raise ValueError(f"{family(x.device)} has no 8-bit floats: sm_89 or newer is needed")
        tile = options[0] if rows >= 1024 else options[-1]
    y = torch.empty(rows, n, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(rows, tile.bm) * triton.cdiv(n, tile.bn),)
    _fp8_linear_kernel[grid](
        x, weight, weight_scale, bias, residual, y, m, n, k, rows,
        x.stride(0), weight.stride(0), 0 if residual is None else residual.stride(0), y.stride(0),
        x_scale,
        ACTIVATION=activation, RESIDUAL=residual is not None,
        BM=tile.bm, BN=tile.bn, BK=tile.bk, GROUP=8, INTERPRET=INTERPRETED,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


fp8_linear = operation(
    "stan_infer::fp8_linear",
    reference=fp8_linear_reference,
    check=_check,
    launch=launch,
    fake=lambda x, weight, weight_scale, x_scale, bias, residual, activation: x.new_empty(
        (x if residual is None else residual).shape[0], weight.shape[0]
    ),
    flops=lambda x, weight, *others: 2 * x[0] * weight[0] * weight[1],
)


def bytes_and_flops(
    m: int, n: int, k: int, *, residual_rows: int = 0, size: int = 2
) -> tuple[int, int]:
    """Bytes moved if each operand moves once, and FLOPs; activations have `size` bytes."""
    elements = m * k + n + max(m, residual_rows) * n + residual_rows * n
    return elements * size + n * k + 4 * n, 2 * m * n * k
