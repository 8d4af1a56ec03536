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
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def upcast(dtype: torch.dtype) -> bool:
    """Whether operands become fp32 after each load: the interpreter cannot multiply bf16."""
    return INTERPRETED and dtype == torch.bfloat16


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


@triton.jit
def norm_of_sums(b_sum, b_squares, columns, eps):
    """Mean and 1/std of rows from their sums and sums of squares.

    The variance's relative error is about 1e-7 (mean / std)^2, far below that of 16-bit rows.
    """
    mean = b_sum / columns
    variance = tl.maximum(b_squares / columns - mean * mean, 0.0)
    return mean, 1.0 / tl.sqrt(variance + eps)


@triton.jit
def packed_attention(q, k, v, b_group, scale):
    """softmax2(scale q k^T) v; each row attends to the rows of its own group, itself included."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    s = tl.where(b_group[:, None] == b_group[None, :], s, float("-inf"))
    e = tl.exp2(s - tl.max(s, 1)[:, None])
    o = tl.dot(e.to(v.dtype), v, input_precision="ieee")
    return o / tl.sum(e, 1)[:, None]
