"""Folded weights as the kernels want them: on a device, with row sums, aligned, or in 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from stan_infer.errors import InputError
from stan_infer.network.eight_bits import map_products, quantise_weight
from stan_infer.network.fold import Patches, Product

W = TypeVar("W")
_ALIGN = 64  # columns; a row of L/14's patch weights has 588, which is not a multiple of 16 bytes


@dataclasses.dataclass(frozen=True)
class KernelProduct(Product):
    """A product with sums, fp32 [out], the row sums of its weight: what a fused norm needs."""

    sums: Tensor


@dataclasses.dataclass(frozen=True)
class Fp8Product(KernelProduct):
    """A product of which the weight is e4m3 [out, in] with one scale per row."""

    scale: Tensor  # fp32 [out]
    x_scale: float  # of its input


def prepare(
    weights: W,
    device: torch.device | str,
    scales: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
) -> W:
    """Return folded weights of either tower with every product made ready for the kernels.

    The sums are those of the weight as rounded: a norm's mean then cancels exactly. scales: of the
    inputs of the products that run in 8 bits, by name; InputError for a name that no product has.
    dtype: of all else (default: as it is); 8 bits are made of the weights as they are given.
    """
    left = dict(scales or {})
    place = torch.device(device)
    done = map_products(weights, lambda name, p: _product(p, place, left.pop(name, None), dtype))
    if left:
        raise InputError(f"activation scales name no product of this model: {sorted(left)[0]}")
    moved: W = _moved(done, place, dtype)
    return moved


def _moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """All other tensors of folded weights to a device, those of the patches' pixels aligned."""
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    if isinstance(value, (list, tuple)):
        return tuple(_moved(v, device, dtype) for v in value)
    if isinstance(value, Product) or not dataclasses.is_dataclass(value):
        return value
    if isinstance(value, Patches):
        k = value.weight.shape[1]
        padded = torch.nn.functional.pad(value.weight, (0, -k % _ALIGN))
        value = dataclasses.replace(value, weight=padded)
    fields = {
        f.name: _moved(getattr(value, f.name), device, dtype) for f in dataclasses.fields(value)
    }
    return dataclasses.replace(value, **fields)  # type: ignore[type-var]


def _product(
    p: Product, device: torch.device, x_scale: float | None, dtype: torch.dtype | None
) -> KernelProduct:
    weight = p.weight if p.gain is None else p.weight * p.gain  # a kernel's norm has no gain
    bias = p.bias.to(device, dtype)
    if x_scale is None:
        weight = weight.to(device, dtype)
        return KernelProduct(weight, bias, weight.double().sum(1).float())
    weight8, scale = quantise_weight(weight.to(device), "fp8")
    return Fp8Product(weight8, bias, torch.empty(0, device=device), scale, x_scale)
