"""Linear layers in 8 bits: int8 or e4m3 weights, one scale per output; inputs by one scale each.

Symmetric, zero point 0. y = s_x s_w (q(x / s_x) q(W / s_w)) + b, with sums in fp32. That is what a
Q/DQ graph means; it is computed here so that engines can be compared with it.
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

# Names of the linears that may run in 8 bits: all within layers. `single` is temporal attention for
# one frame, `q` the last layer's.
LINEARS = ("qkv", "q", "out", "single", "fc1", "fc2")


@dataclasses.dataclass(frozen=True)
class NumberFormat:
    """How 8 bits hold a number."""

    dtype: torch.dtype
    largest: float

    @property
    def is_float(self) -> bool:
        """Whether its relative precision is the same at any scale."""
        return self.dtype.is_floating_point

    def round(self, x: Tensor) -> Tensor:
        """Round float x to the values of the format: nearest even, saturating."""
        if self.is_float:
            return x.clamp(-self.largest, self.largest).to(self.dtype)
        return x.round().clamp(-self.largest - 1, self.largest).to(self.dtype)

    def values(self) -> NDArray[np.float64]:
        """The values of the format that are not negative, sorted."""
        if not self.is_float:
            return np.arange(self.largest + 1)
        held = torch.arange(128, dtype=torch.uint8).view(self.dtype).double()
        return held[held <= self.largest].numpy()


# By precision; fp8 is e4m3, which has no infinity.
NUMBER_FORMATS = {
    "int8": NumberFormat(torch.int8, 127.0),
    "fp8": NumberFormat(torch.float8_e4m3fn, 448.0),
}


@dataclasses.dataclass(frozen=True)
class QuantisedLinear(FoldedLinear):
    """A linear in 8 bits; weight is of the format [out, in], bias in fp32."""

    scale: Tensor  # fp32 [out]
    x_scale: float  # of its input, after the norm has multiplied it by gain
    format: NumberFormat

    def apply(self, x: Tensor) -> Tensor:
        """See FoldedLinear.apply; computes the formula of the module."""
        z = self.format.round(x / self.x_scale).to(x.dtype)
        y = F.linear(z, self.weight.to(x.dtype)) * (self.scale * self.x_scale).to(x.dtype)
        return y + self.bias.to(x.dtype)


def through_v(w: FoldedLinear, factor: Tensor | None) -> FoldedLinear:
    """Move smoothing factors [D] from the input of linear "out" into the rows that make V.

    Changes nothing in fp32. Linears other than qkv and out are returned as they are.
    """
    if factor is None or w.name not in ("qkv", "out"):
        return w
    if w.name == "out":
        return dataclasses.replace(w, weight=w.weight / factor)
    weight, bias = w.weight.clone(), w.bias.clone()
    weight[-len(factor) :] *= factor[:, None]
    bias[-len(factor) :] *= factor
    return dataclasses.replace(w, weight=weight, bias=bias)


def quantise_weight(weight: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """W [out, in] -> 8-bit weights [out, in] and fp32 scales [out], by each row's largest value.

    A row of zeros gets a scale that is not zero, so that its weights are zeros and not NaN.
    """
    scale = weight_scale(weight.float().abs().amax(1), format)
    return NUMBER_FORMATS[format].round(weight.float() / scale[:, None]), scale


def weight_scale(largest: Tensor, format: str) -> Tensor:
    """Scales fp32 [out] of rows whose largest |W| is `largest` [out]; never zero."""
    return largest.clamp(min=torch.finfo(torch.float32).tiny * 1e6) / NUMBER_FORMATS[format].largest


def quantise_linear(
    w: FoldedLinear, x_scale: float, format: str, gain: Tensor | None = None
) -> QuantisedLinear:
    """Return w in 8 bits. gain [in]: see FoldedLinear; the weight is divided by it first.

    Raises InputError for an unknown format, or a scale that is not a positive number.
    """
    check_word("8-bit format", format, NUMBER_FORMATS)
    if not 0 < x_scale < float("inf"):
        raise InputError(f"scale of {w.path}'s input is {x_scale}; it must be a positive number")
    weight = w.weight if gain is None else w.weight / gain
    weight8, scale = quantise_weight(weight, format)
    return QuantisedLinear(
        w.block, w.name, weight8, w.bias, scale, x_scale, NUMBER_FORMATS[format], gain=gain
    )
