"""What several kernels share: the interpreter's switches, a norm from running sums, a softmax.

Prefixes of names in the kernels: i_ index, o_ offset, p_ pointer, b_ block value, m_ mask. Sums and
norms are in fp32; masked loads give 0; offsets along rows are 64 bits wide.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

LOG2_E = math.log2(math.e)
# Set by TRITON_INTERPRET=1 before the first import: kernels then run on CPU tensors.
INTERPRETED = bool(triton.knobs.runtime.interpret)
# Columns whose sum and sum of squares are one part of a row's (see `row_norm`).
SPAN = 64
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def upcast(dtype: torch.dtype) -> bool:
    """Whether operands become fp32 after each load: the interpreter multiplies no bf16 or fp8."""
    return INTERPRETED and dtype in (torch.bfloat16, torch.float8_e4m3fn)


def check_rows(name: str, x: torch.Tensor, columns: int | None = None) -> None:
    """ValueError unless x [R, C] has a type and a layout that the kernels read, and `columns`."""
    if x.dtype not in DTYPES:
        raise ValueError(f"{name} is {x.dtype}; kernels take float16, bfloat16 and float32")
    if x.dim() != 2 or x.stride(1) != 1:
        raise ValueError(
            f"{name} must be rows [R, C] with neighbouring columns; got {list(x.shape)}, strides "
            f"{list(x.stride())}"
        )
    if columns is not None and x.shape[1] != columns:
        raise ValueError(f"{name} has {x.shape[1]} columns, {columns} were expected")


def check_head(width: int, heads: int) -> int:
    """Return the head width; ValueError unless it is one that the kernels compile for."""
    if heads < 1 or width % heads or width // heads not in (16, 32, 64, 128):
        raise ValueError(
            f"width {width} with {heads} heads: kernels take heads of 16, 32, 64 or 128 columns"
        )
    return width // heads


def check_frames(frames: int) -> None:
    """ValueError unless 1 <= T <= 64."""
    if not 1 <= frames <= 64:
        raise ValueError(f"{frames} frames: kernels take 1 to 64")


def spans(columns: int) -> int:
    """Parts that the sums of a row have."""
    return -(-columns // SPAN)


def check_parts(parts: torch.Tensor, rows: int, columns: int) -> None:
    """ValueError unless parts are the sums of at least `rows` rows of `columns`."""
    wanted = (2, spans(columns))
    if parts.dtype != torch.float32 or not parts.is_contiguous() or parts.dim() != 3:
        raise ValueError("sums of rows must be contiguous float32 [R, 2, S]")
    if parts.shape[0] < rows or parts.shape[1:] != wanted:
        raise ValueError(f"sums of rows are {list(parts.shape)}; need [{rows}, 2, {wanted[1]}]")


def plain_norm(parts: torch.Tensor, columns: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1/std [R, 1] of rows from their parts, in plain torch."""
    total, squares = parts.sum(2).split(1, 1)
    mean = total / columns
    return mean, (squares / columns - mean * mean).clamp(min=0).add(eps).rsqrt()


@triton.jit
def norm_of_sums(b_sum, b_squares, columns, eps):
    """Mean and 1/std of rows from their sums and sums of squares.

    The variance's relative error is about 1e-7 (mean / std)^2, far below that of 16-bit rows.
    """
    mean = b_sum / columns
    variance = tl.maximum(b_squares / columns - mean * mean, 0.0)
    return mean, 1.0 / tl.sqrt(variance + eps)


@triton.jit
def round_e4m3(x):
    """Round fp32 within +-448 to the values of e4m3: the interpreter's own cast truncates."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF  # 3 bits of the fraction stay
    tiny = (x + 24576.0) - 24576.0  # multiples of 2^-9, e4m3's smallest
    return tl.where(tl.abs(x) < 0.015625, tiny, bits.to(tl.float32, bitcast=True))


@triton.jit
def to_e4m3(x, scale, ROUND: tl.constexpr):
    """x / scale of fp32 x, nearest even, saturating; ROUND in the interpreter."""
    x = tl.minimum(tl.maximum(x / scale, -448.0), 448.0)
    if ROUND:
        x = round_e4m3(x)
    return x.to(tl.float8e4nv)


@triton.jit
def as_stored(x, p_y, scale, ROUND: tl.constexpr):
    """fp32 x as memory at p_y holds it: in 8 bits divided by scale."""
    if p_y.dtype.element_ty == tl.float8e4nv:
        y = to_e4m3(x, scale, ROUND)
    else:
        y = x.to(p_y.dtype.element_ty)
    return y


@triton.jit
def prefetch(p):
    """Fetch the lines of memory at these addresses into L2 (on a GPU alone)."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [p], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def norm_of_parts(p_parts, o_row, m_row, columns, eps, PARTS: tl.constexpr, BP: tl.constexpr):
    """Mean and 1/std of rows o_row, whose sums are parts [R, 2, PARTS]; BP >= PARTS."""
    o_p = tl.arange(0, BP)
    m = m_row[:, None] & (o_p < PARTS)[None, :]
    p = p_parts + o_row[:, None] * (2 * PARTS) + o_p[None, :]
    total = tl.sum(tl.load(p, m, other=0.0), 1)
    squares = tl.sum(tl.load(p + PARTS, m, other=0.0), 1)
    return norm_of_sums(total, squares, columns, eps)


@triton.jit
def parts_of_row(x, p_parts, PARTS: tl.constexpr, BD: tl.constexpr, SPAN: tl.constexpr):
    """Write the parts [2, PARTS] of one row x [BD], fp32, zero beyond its end."""
    x = tl.reshape(x, (BD // SPAN, SPAN))
    o_p = tl.arange(0, BD // SPAN)
    tl.store(p_parts + o_p, tl.sum(x, 1), o_p < PARTS)
    tl.store(p_parts + PARTS + o_p, tl.sum(x * x, 1), o_p < PARTS)


@triton.jit
def packed_attention(q, k, v, b_group, scale):
    """softmax2(scale q k^T) v; each row attends to the rows of its own group, itself included."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    s = tl.where(b_group[:, None] == b_group[None, :], s, float("-inf"))
    e = tl.exp2(s - tl.max(s, 1)[:, None])
    o = tl.dot(e.to(v.dtype), v, input_precision="ieee")
    return o / tl.sum(e, 1)[:, None]
