"""Folded weights as the kernels need them: on a device, with row sums, aligned, or in 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from stan_infer.errors import InputError
from stan_infer.network.eight_bits import quantise_weight
from stan_infer.network.folded import FoldedLinear, Patches, map_weights

W = TypeVar("W")
_ALIGN = 64  # columns; a row of L/14's patch weights has 588, which is not a multiple of 16 bytes


@dataclasses.dataclass(frozen=True)
class KernelLinear(FoldedLinear):
    """A linear with the row sums of its weight, fp32 [out], which a fused norm needs."""

    sums: Tensor


@dataclasses.dataclass(frozen=True)
class Fp8Linear(KernelLinear):
    """A linear whose weight is e4m3 [out, in] with one scale per row; its sums are empty."""

    scale: Tensor  # fp32 [out]
    x_scale: float  # of its input


def prepare(
    weights: W,
    device: torch.device | str,
    scales: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
) -> W:
    """Return folded weights of either tower with every linear made ready for the kernels.

    Row sums are those of the rounded weight, so that a norm's mean cancels exactly. scales: of the
    inputs of the linears that run in 8 bits, by path. dtype: of all other weights (default: as they
    are); the 8-bit weights are rounded from those given. Raises InputError for a scale whose path
    no linear has.
    """
    left = dict(scales or {})
    place = torch.device(device)

    def change(part: Any) -> Any:
        if isinstance(part, FoldedLinear):
            return _linear(part, place, left.pop(part.path, None), dtype)
        if isinstance(part, Patches):
            padded = torch.nn.functional.pad(part.weight, (0, -part.weight.shape[1] % _ALIGN))
            if padded.shape != part.weight.shape:
                return map_weights(dataclasses.replace(part, weight=padded), change)
        return part.to(place, dtype) if isinstance(part, Tensor) else None

    ready = map_weights(weights, change)
    if left:
        raise InputError(f"activation scales name no linear of this model: {sorted(left)[0]}")
    return ready


def _linear(
    w: FoldedLinear, device: torch.device, x_scale: float | None, dtype: torch.dtype | None
) -> KernelLinear:
    weight = w.weight if w.gain is None else w.weight * w.gain  # a kernel's norm has no gain
    bias = w.bias.to(device, dtype)
    if x_scale is None:
        weight = weight.to(device, dtype)
        return KernelLinear(w.block, w.name, weight, bias, weight.double().sum(1).float())
    weight8, scale = (x.to(device) for x in in_e4m3(weight))
    none = torch.empty(0, device=device)
    return Fp8Linear(w.block, w.name, weight8, bias, none, scale, x_scale)


def in_e4m3(weight: Tensor) -> tuple[Tensor, Tensor]:
    """W [out, in] -> e4m3 [out, in] and fp32 scales [out], those that a graph in fp8 has."""
    found = quantise_weight(weight.detach().float().cpu().numpy(), "fp8")
    codes, scale = (torch.from_numpy(x).to(weight.device) for x in found)
    return codes.view(torch.float8_e4m3fn), scale
