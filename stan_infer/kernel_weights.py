"""Folded weights as the kernels want them: on a device, with row sums, aligned, or in 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from stan_infer.errors import InputError
from stan_infer.fold import Patches, Product, VideoWeights
from stan_infer.fused import video_tower
from stan_infer.kernels.fp8_linear import LARGEST, quantise_weight
from stan_infer.quantise import LINEARS, map_products
from stan_infer.torch_ops import TorchOps

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


def prepare(weights: W, device: torch.device | str, scales: Mapping[str, float] | None = None) -> W:
    """Return folded weights of either tower with every product made ready for the kernels.

    The sums are those of the weight as rounded: a norm's mean then cancels exactly. scales: of the
    inputs of the products that run in 8 bits, by name (`activation_scales`); InputError for a name
    that no product has.
    """
    left = dict(scales or {})
    place = torch.device(device)
    done = map_products(weights, lambda name, p: _product(p, place, left.pop(name, None)))
    if left:
        raise InputError(f"activation scales name no product of this model: {sorted(left)[0]}")
    moved: W = _moved(done, place)
    return moved


def activation_scales(weights: VideoWeights, video: Tensor) -> dict[str, float]:
    """Largest input of each linear layer's product over `video`, as a scale for e4m3.

    The running maximum over clips is the caller's: of two results, the larger of each name.
    """
    found: dict[str, float] = {}
    ops = _Largest(video.shape[0], video.shape[1], found)
    video_tower(ops, weights, video)
    return {name: max(value, 1e-6) / LARGEST for name, value in found.items()}


class _Largest(TorchOps):
    """TorchOps that notes the largest input of each layer's four products."""

    def __init__(self, batch: int, frames: int, found: dict[str, float]) -> None:
        super().__init__(batch, frames)
        self._found = found

    def product(self, name: str, x: Tensor, w: Product, **options: Any) -> Tensor:
        if name in LINEARS and x.dim() > 2:  # of every token, not of one per clip
            self._found[self._path + name] = float(x.abs().max())
        return super().product(name, x, w, **options)


def _moved(value: Any, device: torch.device) -> Any:
    """All other tensors of folded weights to a device, those of the patches' pixels aligned."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return tuple(_moved(v, device) for v in value)
    if isinstance(value, Product) or not dataclasses.is_dataclass(value):
        return value
    if isinstance(value, Patches):
        k = value.weight.shape[1]
        padded = torch.nn.functional.pad(value.weight, (0, -k % _ALIGN))
        value = dataclasses.replace(value, weight=padded)
    fields = {f.name: _moved(getattr(value, f.name), device) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **fields)  # type: ignore[type-var]


def _product(p: Product, device: torch.device, x_scale: float | None) -> KernelProduct:
    weight = p.weight if p.gain is None else p.weight * p.gain  # a kernel's norm has no gain
    weight, bias = weight.to(device), p.bias.to(device)
    if x_scale is None:
        sums = weight.double().sum(1).float()
        return KernelProduct(weight, bias, sums)
    weight8, scale = quantise_weight(weight)
    return Fp8Product(weight8, bias, torch.empty(0, device=device), scale, x_scale)
