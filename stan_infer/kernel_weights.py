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
    done = _prepare(weights, torch.device(device), _PATH[type(weights).__name__], left)
    if left:
        raise InputError(f"activation scales name no product of this model: {sorted(left)[0]}")
    return done


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
        if name in _IN_FP8 and x.dim() > 2:
            self._found[self._path + name] = float(x.abs().max())
        return super().product(name, x, w, **options)


# Fields of fold's classes as the scopes and names of `fused`.
_PATH = {"VideoWeights": "video", "TextWeights": "text"}
_SCOPES = {
    "trunk": "trunk/layer{}",
    "branch": "branch/layer{}",
    "layers": "layer{}",
    "temporal": "temporal",
    "spatial": "",
}
_IN_FP8 = ("qkv", "out", "fc1", "fc2")


def _prepare(value: Any, device: torch.device, path: str, scales: dict[str, float]) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Product):
        return _product(value, device, scales.pop(path, None))
    if isinstance(value, Patches):
        k = value.weight.shape[1]
        padded = torch.nn.functional.pad(value.weight, (0, -k % _ALIGN))
        value = dataclasses.replace(value, weight=padded)
    if isinstance(value, (list, tuple)):
        return tuple(_prepare(v, device, path.format(i), scales) for i, v in enumerate(value))
    if not dataclasses.is_dataclass(value):
        return value
    return dataclasses.replace(
        value,  # type: ignore[type-var]
        **{
            f.name: _prepare(getattr(value, f.name), device, _inner(path, f.name, value), scales)
            for f in dataclasses.fields(value)
        },
    )


def _inner(path: str, field: str, owner: Any) -> str:
    """The name under which `fused` uses a field of `owner`, which itself is at `path`."""
    if field in _SCOPES:
        return "/".join(p for p in (path, _SCOPES[field]) if p)
    kind = type(owner).__name__
    if kind in ("Layer", "LastSpatial"):
        block = "mlp" if field in ("fc1", "fc2") else "attention"
        if "/branch/" in path and block == "attention":
            block = "spatial"
        return f"{path}/{block}/{field}"
    return f"{path}/{field}"


def _product(p: Product, device: torch.device, x_scale: float | None) -> KernelProduct:
    weight, bias = p.weight.to(device), p.bias.to(device)
    if x_scale is None:
        sums = weight.double().sum(1).float()
        return KernelProduct(weight, bias, sums)
    weight8, scale = quantise_weight(weight)
    return Fp8Product(weight8, bias, torch.empty(0, device=device), scale, x_scale)
