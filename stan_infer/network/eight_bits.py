"""Linear layers in 8 bits: int8 or e4m3 weights, one scale per output; inputs by one scale each.

Symmetric, zero point 0. y = s_x s_w (q(x / s_x) q(W / s_w)) + b, with sums in fp32: what a
Q/DQ graph says, computed here so that other engines have something to be compared with.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stan_infer.errors import InputError, check_word
from stan_infer.network.folded import FoldedLinear

LARGEST = {"int8": 127.0, "fp8": 448.0}  # fp8 is e4m3, which has no infinity
# Names of the linears that may run in 8 bits: those of layers. `single` is temporal attention for
# one frame, `q` the last layer's.
LINEARS = ("qkv", "q", "out", "single", "fc1", "fc2")


@dataclasses.dataclass(frozen=True)
class QuantisedLinear(FoldedLinear):
    """A linear in 8 bits; weight is int8 or e4m3 [out, in], bias in fp32."""

    scale: Tensor  # fp32 [out]
    x_scale: float  # of its input (times gain, where there is one)
    format: str

    def apply(self, x: Tensor) -> Tensor:
        """y of the class's formula; x float [..., in]."""
        z = round_to(self.format, x / self.x_scale).to(x.dtype)
        y = F.linear(z, self.weight.to(x.dtype)) * (self.scale * self.x_scale).to(x.dtype)
        return y + self.bias.to(x.dtype)


def round_to(format: str, x: Tensor) -> Tensor:
    """Round to the values of int8 (-128 to 127) or e4m3: nearest even, saturating."""
    if format == "int8":
        return x.round().clamp(-128, 127).to(torch.int8)
    return x.clamp(-LARGEST["fp8"], LARGEST["fp8"]).to(torch.float8_e4m3fn)


def grid(format: str) -> NDArray[np.float64]:
    """The values from 0 up that a format has, sorted."""
    if format == "int8":
        return np.arange(128, dtype=np.float64)
    bits = torch.arange(127, dtype=torch.uint8)  # 127 is NaN
    return bits.view(torch.float8_e4m3fn).double().numpy()


def quantise_weight(weight: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """W [out, in] -> its 8 bits and fp32 scales [out]; a row's largest value takes all the range.

    A row of zeros has a scale that is not zero, so that it stays a row of zeros.
    """
    largest = weight.float().abs().amax(1)
    scale = largest.clamp(min=torch.finfo(torch.float32).tiny * 1e6) / LARGEST[format]
    return round_to(format, weight.float() / scale[:, None]), scale


def quantise_linear(
    w: FoldedLinear, x_scale: float, format: str, gain: Tensor | None = None
) -> QuantisedLinear:
    """Put a linear into 8 bits. gain [in]: see FoldedLinear; the weight is divided by it first.

    Raises InputError for a scale that is not a positive number.
    """
    check_word("8-bit format", format, LARGEST)
    if not 0 < x_scale < float("inf"):
        raise InputError(f"scale {x_scale} of a linear's input; it must be a positive number")
    weight = w.weight if gain is None else w.weight / gain
    weight8, scale = quantise_weight(weight, format)
    return QuantisedLinear(w.block, w.name, weight8, w.bias, scale, x_scale, format, gain=gain)
