"""Linear layers in 8 bits: int8 or e4m3 weights, one scale per output; inputs by one scale each.

Symmetric, zero point 0. y = s_x s_w (q(x / s_x) q(W / s_w)) + b, with sums in fp32. That is what a
Q/DQ graph means. Weights are quantised here, in NumPy; torch_ops computes the formula, so that
engines can be compared with it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError, check_word
from stan_infer.network.folded import Array, FoldedLinear

# Names of the linears that may run in 8 bits: all within layers. `single` is temporal attention for
# one frame, `q` the last layer's.
LINEARS = ("qkv", "q", "out", "single", "fc1", "fc2")


@dataclasses.dataclass(frozen=True)
class NumberFormat:
    """How 8 bits hold a number."""

    name: str  # of its type in torch
    largest: float

    @property
    def is_float(self) -> bool:
        """Whether its relative precision is the same at any scale."""
        return self.name.startswith("float")

    def round(self, x: np.ndarray) -> np.ndarray:
        """Round float x to the values of the format, nearest even, saturating; return the codes."""
        if self.is_float:  # NumPy has none of 8 bits
            import torch

            held = torch.from_numpy(x).clamp(-self.largest, self.largest)
            return held.to(getattr(torch, self.name)).view(torch.int8).numpy()
        return np.clip(np.rint(x), -self.largest - 1, self.largest).astype(np.int8)

    def values(self) -> NDArray[np.float64]:
        """The values of the format that are not negative, sorted."""
        if not self.is_float:
            return np.arange(self.largest + 1)
        import torch

        held = torch.arange(128, dtype=torch.int8).view(getattr(torch, self.name)).double()
        return held[held <= self.largest].numpy()


# By precision; fp8 is e4m3, which has no infinity.
NUMBER_FORMATS = {
    "int8": NumberFormat("int8", 127.0),
    "fp8": NumberFormat("float8_e4m3fn", 448.0),
}


@dataclasses.dataclass(frozen=True)
class QuantisedLinear(FoldedLinear):
    """A linear in 8 bits; weight holds the format's codes as int8 [out, in], bias is in fp32."""

    scale: Array  # fp32 [out]
    x_scale: float  # of its input, after the norm has multiplied it by gain
    format: NumberFormat


def through_v(w: FoldedLinear, factor: np.ndarray | None) -> FoldedLinear:
    """Move smoothing factors [D] from the input of linear "out" into the rows that make V.

    Changes nothing in fp32. Linears other than qkv and out are returned as they are.
    """
    if factor is None or w.name not in ("qkv", "out"):
        return w
    if w.name == "out":
        return dataclasses.replace(w, weight=w.weight / factor)
    weight, bias = w.weight.copy(order="K"), w.bias.copy()
    weight[-len(factor) :] *= factor[:, None]
    bias[-len(factor) :] *= factor
    return dataclasses.replace(w, weight=weight, bias=bias)


def quantise_weight(weight: np.ndarray, format: str) -> tuple[np.ndarray, np.ndarray]:
    """W [out, in] -> codes of 8 bits [out, in] and fp32 scales [out], by each row's largest value.

    A row of zeros gets a scale that is not zero, so that its weights are zeros and not NaN.
    """
    weight = weight.astype(np.float32, copy=False)
    scale = weight_scale(largest(weight, 1), format)
    return NUMBER_FORMATS[format].round(weight / scale[:, None]), scale


def weight_scale(most: np.ndarray, format: str) -> np.ndarray:
    """Scales fp32 [out] of rows whose largest |W| is `most` [out]; never zero."""
    smallest = np.finfo(np.float32).tiny * np.float32(1e6)
    return np.maximum(most, smallest) / np.float32(NUMBER_FORMATS[format].largest)


def largest(x: np.ndarray, axis: int) -> np.ndarray:
    """The largest |x| along an axis, without an array of |x|."""
    return np.maximum(x.max(axis), -x.min(axis))


def quantise_linear(
    w: FoldedLinear, x_scale: float, format: str, gain: np.ndarray | None = None
) -> QuantisedLinear:
    """Return w, whose values are arrays, in 8 bits.

    gain [in]: see FoldedLinear; the weight is divided by it first. Raises InputError for an unknown
    format, or a scale that is not a positive number.
    """
    check_word("8-bit format", format, NUMBER_FORMATS)
    if not 0 < x_scale < float("inf"):
        raise InputError(f"scale of {w.path}'s input is {x_scale}; it must be a positive number")
    weight = w.weight if gain is None else w.weight / gain
    codes, scale = quantise_weight(weight, format)
    return QuantisedLinear(
        w.block, w.name, codes, w.bias, scale, x_scale, NUMBER_FORMATS[format], gain=gain
    )
