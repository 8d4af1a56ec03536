"""Linear layers in 8 bits: int8 or e4m3 weights, one scale per output; inputs by one scale each.

Symmetric, zero point 0. y = s_x s_w (q(x / s_x) q(W / s_w)) + b, with sums in fp32: what a
Q/DQ graph says, computed here so that other engines have something to be compared with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stan_infer.errors import InputError, check_word
from stan_infer.network.fold import Product

W = TypeVar("W")
LARGEST = {"int8": 127.0, "fp8": 448.0}  # fp8 is e4m3, which has no infinity
# The products of a layer; `single` is temporal attention for one frame, `q` the last layer's.
LINEARS = ("qkv", "q", "out", "single", "fc1", "fc2")
# Fields of fold's classes as the scopes and names of `fused`.
_PATH = {"VideoWeights": "video", "TextWeights": "text"}
_SCOPES = {
    "trunk": "trunk/layer{}",
    "branch": "branch/layer{}",
    "layers": "layer{}",
    "temporal": "temporal",
    "spatial": "",
}


@dataclasses.dataclass(frozen=True)
class QuantProduct(Product):
    """A product in 8 bits; weight is int8 or e4m3 [out, in], bias in fp32."""

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


def quantise_product(
    p: Product, x_scale: float, format: str, gain: Tensor | None = None
) -> QuantProduct:
    """Put a product into 8 bits. gain [in]: see Product; the weight is divided by it first.

    Raises InputError for a scale that is not a positive number.
    """
    check_word("8-bit format", format, LARGEST)
    if not 0 < x_scale < float("inf"):
        raise InputError(f"scale {x_scale} of a product's input; it must be a positive number")
    weight = p.weight if gain is None else p.weight / gain
    weight8, scale = quantise_weight(weight, format)
    return QuantProduct(weight8, p.bias, scale, x_scale, format, gain=gain)


def map_products(weights: W, change: Callable[[str, Product], Product]) -> W:
    """Return folded weights of either tower with `change` of each product and its name."""
    return _map(weights, _PATH[type(weights).__name__], change)


def products(weights: Any) -> dict[str, Product]:
    """Return the products of folded weights of either tower, by the names of `fused`."""
    found: dict[str, Product] = {}

    def note(name: str, p: Product) -> Product:
        found[name] = p
        return p

    map_products(weights, note)
    return found


def _map(value: Any, path: str, change: Callable[[str, Product], Product]) -> Any:
    if isinstance(value, Product):
        return change(path, value)
    if isinstance(value, (list, tuple)):
        return tuple(_map(v, path.format(i), change) for i, v in enumerate(value))
    if not dataclasses.is_dataclass(value):
        return value
    fields = {
        f.name: _map(getattr(value, f.name), _inner(path, f.name, value), change)
        for f in dataclasses.fields(value)
    }
    return dataclasses.replace(value, **fields)  # type: ignore[type-var]


def _inner(path: str, field: str, owner: Any) -> str:
    """The name under which `fused` uses a field of `owner`, which itself is at `path`."""
    if field in _SCOPES:
        return "/".join(p for p in (path, _SCOPES[field]) if p)
    kind = type(owner).__name__
    if kind in ("Layer", "LastSpatial"):
        block = "mlp" if field in ("fc1", "fc2") else "attention"
        if "/branch/" in path and block == "attention":
            block = "spatial"
        elif kind == "LastSpatial":
            block = "spatial/mlp"
        return f"{path}/{block}/{field}"
    return f"{path}/{field}"
