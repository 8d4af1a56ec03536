"""y = act(norm(x) W^T + b) + residual: a linear with the norm, activation and sum beside it.

x [M, K], W [N, K], b [N]; norm(x) = (x + c - mean) / std over each row; its gain and shift are
folded into W and b, and c [K] is what the stream carries apart (`row_norm`). Mean and std come from
the sums of the rows, made once by whoever wrote them: norm(x) W^T = rstd (x W^T + t - mean s), with
s_n = sum_k W_nk and t_n = sum_k W_nk c_k. The residual may have more rows than x; the further ones
are copied to the result. That is how the class tokens, which lie behind the patches in a branch's
buffer, get past a linear of the patches. The sums of the result's rows are written beside it where
a norm reads them next. Two forms: a program per tile, and one per processor that takes its tiles
from tensor descriptors (sm_90 and newer). Dependent (sm_90 and newer), a kernel starts while the
one before it in the stream ends, fetches weights into L2, and waits before it touches what others
wrote or read. PERFORMANCE: the norm costs neither a pass over memory
nor work in the inner loop; QuickGELU (as SiLU), bias and residual need no kernels of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from stan_infer.kernels.linear_reference import linear_reference as linear_reference
from stan_infer.kernels.operation import operation
from stan_infer.kernels.row_norm import check_offset
from stan_infer.kernels.tiles import (
    INTERPRETED,
    SPAN,
    as_stored,
    check_parts,
    check_rows,
    norm_of_parts,
    prefetch,
    spans,
    upcast,
)
from stan_infer.kernels.tuned import Tile, linear_tile, processors

ACTIVATIONS = ("", "silu", "gelu")


@triton.jit
def _place(pid, rows, n, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """Row and column tile of a program; GROUP row tiles share columns of W while it is cached."""
    per_group = GROUP * tl.cdiv(n, BN)
    first = pid // per_group * GROUP
    height = tl.minimum(tl.cdiv(rows, BM) - first, GROUP)
    return first + (pid % per_group) % height, (pid % per_group) // height


@triton.jit
def _finish_columns(
    acc, p_b, p_ws, p_s, p_st, p_r, p_a, p_y, p_parts, i_m, first, m, n, k, rows, r_row, y_row, eps,
    x_scale, y_scale, SCALED: tl.constexpr, ROUND: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, AFTER: tl.constexpr,
    PARTS: tl.constexpr, K_PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SPAN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """From the product of a tile, whose columns begin at `first`, to the stored result."""
    o_m = i_m.to(tl.int64) * BM + tl.arange(0, BM)
    o_n = first + tl.arange(0, BN)
    m_m, m_n = o_m < m, o_n < n
    if SCALED:
        acc *= (tl.load(p_ws + o_n, m_n, other=0.0) * x_scale)[None, :]
    if NORM:
        mean, rstd = norm_of_parts(p_st, o_m, m_m, k, eps, K_PARTS, BP)
        s = tl.load(p_s + o_n, m_n, other=0.0)
        t = tl.load(p_s + n + o_n, m_n, other=0.0)
        acc = rstd[:, None] * (acc + t[None, :] - mean[:, None] * s[None, :])
    acc += tl.load(p_b + o_n, m_n, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == "silu":
        acc = acc * tl.sigmoid(acc)
    if ACTIVATION == "gelu":
        acc = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    m_y = (o_m < rows)[:, None] & m_n[None, :]
    if RESIDUAL:
        r = tl.load(p_r + o_m[:, None] * r_row + o_n[None, :], m_y, other=0.0).to(tl.float32)
        acc = tl.where(m_m[:, None], acc, 0.0) + r
    y = as_stored(acc, p_y, y_scale, ROUND)
    tl.store(p_y + o_m[:, None] * y_row + o_n[None, :], y, m_y)
    if PARTS > 0:
        z = y.to(tl.float32)  # as the reader of the row finds it
        if AFTER:
            z += tl.load(p_a + o_n, m_n, other=0.0)[None, :]
        z = tl.reshape(z, (BM, BN // SPAN, SPAN))
        o_p = first // SPAN + tl.arange(0, BN // SPAN)
        p = p_parts + o_m[:, None] * (2 * PARTS) + o_p[None, :]
        m_p = (o_m < rows)[:, None] & (o_p < PARTS)[None, :]
        tl.store(p, tl.sum(z, 2), m_p)
        tl.store(p + PARTS, tl.sum(z * z, 2), m_p)


@triton.jit
def _finish_half(
    acc, p_b, p_ws, p_s, p_st, p_r, p_a, p_y, p_parts, i_m, first, m, n, k, rows, r_row, y_row, eps,
    x_scale, y_scale, SCALED: tl.constexpr, ROUND: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, AFTER: tl.constexpr,
    PARTS: tl.constexpr, K_PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SPAN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """At most 64 columns at once: a wide tile would need too many registers."""
    if BN > 64:
        left, right = acc.reshape(BM, 2, BN // 2).permute(0, 2, 1).split()
        _finish_columns(
            left, p_b, p_ws, p_s, p_st, p_r, p_a, p_y, p_parts, i_m, first, m, n, k,
            rows, r_row, y_row, eps, x_scale, y_scale, SCALED, ROUND, NORM, ACTIVATION,
            RESIDUAL, AFTER, PARTS, K_PARTS, BM, BN // 2, SPAN, BP,
        )  # fmt: skip
        _finish_columns(
            right, p_b, p_ws, p_s, p_st, p_r, p_a, p_y, p_parts, i_m, first + BN // 2, m, n, k,
            rows, r_row, y_row, eps, x_scale, y_scale, SCALED, ROUND, NORM, ACTIVATION,
            RESIDUAL, AFTER, PARTS, K_PARTS, BM, BN // 2, SPAN, BP,
        )  # fmt: skip
    else:
        _finish_columns(
            acc, p_b, p_ws, p_s, p_st, p_r, p_a, p_y, p_parts, i_m, first, m, n, k,
            rows, r_row, y_row, eps, x_scale, y_scale, SCALED, ROUND, NORM, ACTIVATION,
            RESIDUAL, AFTER, PARTS, K_PARTS, BM, BN, SPAN, BP,
        )  # fmt: skip


# Not _finish_half once more: functions of Triton cannot call themselves.
@triton.jit
def _finish(
    acc, p_b, p_ws, p_s, p_st, p_r, p_a, p_y, p_parts, i_m, first, m, n, k, rows, r_row, y_row, eps,
    x_scale, y_scale, SCALED: tl.constexpr, ROUND: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, AFTER: tl.constexpr,
    PARTS: tl.constexpr, K_PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SPAN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """At most 128 columns at once, see _finish_half."""
    if BN > 128:
        left, right = acc.reshape(BM, 2, BN // 2).permute(0, 2, 1).split()
        _finish_half(
            left, p_b, p_ws, p_s, p_st, p_r, p_a, p_y, p_parts, i_m, first, m, n, k,
            rows, r_row, y_row, eps, x_scale, y_scale, SCALED, ROUND, NORM, ACTIVATION,
            RESIDUAL, AFTER, PARTS, K_PARTS, BM, BN // 2, SPAN, BP,
        )  # fmt: skip
        _finish_half(
            right, p_b, p_ws, p_s, p_st, p_r, p_a, p_y, p_parts, i_m, first + BN // 2, m, n, k,
            rows, r_row, y_row, eps, x_scale, y_scale, SCALED, ROUND, NORM, ACTIVATION,
            RESIDUAL, AFTER, PARTS, K_PARTS, BM, BN // 2, SPAN, BP,
        )  # fmt: skip
    else:
        _finish_half(
            acc, p_b, p_ws, p_s, p_st, p_r, p_a, p_y, p_parts, i_m, first, m, n, k,
            rows, r_row, y_row, eps, x_scale, y_scale, SCALED, ROUND, NORM, ACTIVATION,
            RESIDUAL, AFTER, PARTS, K_PARTS, BM, BN, SPAN, BP,
        )  # fmt: skip


@triton.jit(do_not_specialize=["m", "rows"])
def _linear_kernel(
    p_x, p_w, p_b, p_ws, p_s, p_st, p_r, p_a, p_y, p_parts, m, n, k, rows, x_row, w_row, r_row,
    y_row, eps, x_scale, y_scale,
    SCALED: tl.constexpr, ROUND: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr, AFTER: tl.constexpr, PARTS: tl.constexpr, K_PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, SPAN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    EVEN_K: tl.constexpr, GROUP: tl.constexpr, UPCAST: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    i_m, i_n = _place(tl.program_id(0), rows, n, BM, BN, GROUP)
    o_m = i_m.to(tl.int64) * BM + tl.arange(0, BM)
    o_n = i_n * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    m_m, m_n = o_m < m, o_n < n
    p_xt = p_x + o_m[:, None] * x_row + o_k[None, :]
    p_wt = p_w + o_n[None, :].to(tl.int64) * w_row + o_k[:, None]
    if DEPENDENT:
        gdc_launch_dependents()  # they wait until this kernel has ended
        LINE: tl.constexpr = 128 * 8 // p_w.dtype.element_ty.primitive_bitwidth
        p_line = p_w + tl.minimum(o_n, n - 1).to(tl.int64) * w_row
        for i_k in range(0, k, LINE):
            prefetch(p_line + i_k)
        gdc_wait()
    acc = tl.zeros((BM, BN), tl.float32)
    for i_k in range(0, tl.cdiv(k, BK)):
        if EVEN_K:
            x = tl.load(p_xt, m_m[:, None], other=0.0)
            w = tl.load(p_wt, m_n[None, :], other=0.0)
        else:
            m_k = o_k < k - i_k * BK
            x = tl.load(p_xt, m_m[:, None] & m_k[None, :], other=0.0)
            w = tl.load(p_wt, m_n[None, :] & m_k[:, None], other=0.0)
        if UPCAST:
            x, w = x.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(x, w, acc, input_precision="ieee")
        p_xt += BK
        p_wt += BK
    _finish(
        acc, p_b, p_ws, p_s, p_st, p_r, p_a, p_y, p_parts, i_m, i_n * BN, m, n, k,
        rows, r_row, y_row, eps, x_scale, y_scale, SCALED, ROUND, NORM, ACTIVATION,
        RESIDUAL, AFTER, PARTS, K_PARTS, BM, BN, SPAN, BP,
    )  # fmt: skip


@triton.jit(do_not_specialize=["m", "rows"])
def _linear_persistent_kernel(
    d_x, d_w, p_b, p_ws, p_s, p_st, p_r, p_a, p_y, p_parts, m, n, k, rows, r_row, y_row, eps,
    x_scale, y_scale,
    SCALED: tl.constexpr, ROUND: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr, AFTER: tl.constexpr, PARTS: tl.constexpr, K_PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, SPAN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, UPCAST: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    tiles = tl.cdiv(rows, BM) * tl.cdiv(n, BN)
    for pid in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        i_m, i_n = _place(pid, rows, n, BM, BN, GROUP)
        acc = tl.zeros((BM, BN), tl.float32)
        for i_k in range(0, tl.cdiv(k, BK)):
            x = d_x.load([i_m * BM, i_k * BK])
            w = d_w.load([i_n * BN, i_k * BK])
            if UPCAST:
                x, w = x.to(tl.float32), w.to(tl.float32)
            acc = tl.dot(x, w.T, acc, input_precision="ieee")
        _finish(
            acc, p_b, p_ws, p_s, p_st, p_r, p_a, p_y, p_parts, i_m, i_n * BN, m, n, k,
            rows, r_row, y_row, eps, x_scale, y_scale, SCALED, ROUND, NORM, ACTIVATION,
            RESIDUAL, AFTER, PARTS, K_PARTS, BM, BN, SPAN, BP,
        )  # fmt: skip


def check_epilogue(x: Tensor, weight: Tensor, residual: Tensor | None, activation: str) -> None:
    """ValueError for a residual or an activation that a linear of x and weight cannot end with."""
    if residual is not None:
        check_rows("residual", residual, len(weight))
        if len(residual) < len(x):
            raise ValueError(f"residual has {len(residual)} rows, x has {len(x)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation '{activation}' is unknown ('', silu, gelu)")


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor | None,
    stats: Tensor | None,
    residual: Tensor | None,
    after: Tensor | None,
    activation: str,
    *_: Any,
) -> None:
    check_rows("x", x)
    check_rows("weight", weight, x.shape[1])
    n = len(weight)
    if bias.shape != (n,) or bias.stride(0) != 1:
        raise ValueError(f"bias must be [{n}]; got {list(bias.shape)}")
    if sums is not None:
        if sums.shape != (2, n) or sums.dtype != torch.float32 or not sums.is_contiguous():
            raise ValueError(f"sums must be float32 [2, {n}]; got {list(sums.shape)}")
        if stats is None:
            raise ValueError("a norm needs the sums of x's rows")
        check_parts(stats, len(x), x.shape[1])
    check_offset(after, n)
    check_epilogue(x, weight, residual, activation)
    if weight.dtype != x.dtype or (residual is not None and residual.dtype != x.dtype):
        raise ValueError("x, weight and residual must have one dtype")


def launch(
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
    tile: Tile | None = None,
    dependent: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run the kernel; `tile` overrides the rule. The rest is as in `linear_reference`."""
    _check(x, weight, bias, sums, stats, residual, after, activation)
    like, norm = torch.float32 if wide else x.dtype, (sums, stats, eps)
    return run(
        x, weight, bias, norm, residual, after, activation, like, parts, tile, dependent=dependent
    )


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: tuple[Tensor | None, Tensor | None, float],
    residual: Tensor | None,
    after: Tensor | None,
    activation: str,
    out: torch.dtype,
    parts: bool,
    tile: Tile | None,
    scales: tuple[Tensor | None, float, float] = (None, 1.0, 1.0),
    dependent: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run the kernel on checked arguments; `fp8_linear` does, too.

    norm: sums, stats and eps of `linear_reference`. out: dtype of the result. scales: of 8-bit
    weights, fp32 [N], of x and of an 8-bit result.
    """
    (m, k), n = x.shape, len(weight)
    rows = m if residual is None else len(residual)
    operation = "linear" if scales[0] is None else "fp8_linear"
    tile = tile or linear_tile(x.device, x.dtype, rows, n, k, operation)
    if parts and tile.bn % SPAN:
        raise ValueError(f"a tile of {tile.bn} columns cannot write the sums of {SPAN}")
    if tile.split_k != 1:
        # It would not pay: benchmarks/split_k.py.
        raise ValueError("no kernel of ours splits the sum over K: the library does, for few rows")
    y = torch.empty(rows, n, dtype=out, device=x.device)
    shape = (rows, 2, spans(n)) if parts else (0,)
    own = torch.empty(shape, dtype=torch.float32, device=x.device)
    r_row = 0 if residual is None else residual.stride(0)
    sums, stats, eps = norm
    beside = (bias, scales[0], sums, stats, residual, after, y, own)
    options: dict[str, Any] = {
        "SCALED": scales[0] is not None, "ROUND": INTERPRETED, "NORM": sums is not None,
        "ACTIVATION": activation, "RESIDUAL": residual is not None, "AFTER": after is not None,
        "PARTS": spans(n) if parts else 0, "K_PARTS": spans(k), "BM": tile.bm, "BN": tile.bn,
        "SPAN": SPAN, "BP": triton.next_power_of_2(spans(k)), "BK": tile.bk, "GROUP": 8,
        "UPCAST": upcast(x.dtype), "num_warps": tile.warps, "num_stages": tile.stages,
        "DEPENDENT": dependent and not INTERPRETED,
    }  # fmt: skip
    if dependent and not INTERPRETED:
        options["launch_pdl"] = True
    if tile.maxnreg:
        options["maxnreg"] = tile.maxnreg
    count = triton.cdiv(rows, tile.bm) * triton.cdiv(n, tile.bn)
    if tile.persistent:
        _linear_persistent_kernel[(min(count, processors(x.device)),)](
            TensorDescriptor.from_tensor(x, [tile.bm, tile.bk]),
            TensorDescriptor.from_tensor(weight, [tile.bn, tile.bk]),
            *beside, m, n, k, rows, r_row, y.stride(0), eps, *scales[1:], **options,
        )  # fmt: skip
    else:
        _linear_kernel[(count,)](
            x, weight, *beside, m, n, k, rows, x.stride(0), weight.stride(0), r_row, y.stride(0),
            eps, *scales[1:], EVEN_K=k % tile.bk == 0, **options,
        )  # fmt: skip
    return y, own


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, sums: Any, stats: Any, residual: Any, *others: Any
) -> tuple[Tensor, Tensor]:
    _, _, _, wide, parts, *_ = others
    rows, n = (x if residual is None else residual).shape[0], weight.shape[0]
    y = x.new_empty(rows, n, dtype=torch.float32 if wide else x.dtype)
    return y, x.new_empty((rows, 2, spans(n)) if parts else (0,), dtype=torch.float32)


def _launch(*args: Any) -> tuple[Tensor, Tensor]:
    """Take the operation's arguments, which have no tile."""
    options: dict[str, Any] = {"dependent": args[11]} if args[11:] else {}
    return launch(*args[:11], **options)


linear = operation(
    "stan_infer::linear",
    reference=linear_reference,
    check=_check,
    launch=_launch,
    fake=_fake,
    flops=lambda x, weight, *others: 2 * x[0] * weight[0] * weight[1],
)


def bytes_and_flops(
    m: int, n: int, k: int, *, residual_rows: int = 0, size: int = 2
) -> tuple[int, int]:
    """Bytes moved if each operand moves once, and FLOPs, of one call with `size`-byte values."""
    elements = m * k + n * k + n + max(m, residual_rows) * n + residual_rows * n
    return elements * size, 2 * m * n * k
