"""Folded weights as the kernels need them: on a device, with row sums, aligned, or in 8 bits.

A linear whose result is added to a stream (out, fc2) leaves its bias to the stream's readers, since
the library's product of this kind, addmm, has no place for one (`carry_biases`): the stream holds
x~ with x = x~ + c, and c, a constant per place in the network, is known here. A norm reads x~ + c;
a linear behind a norm adds W c; the branch's start and merge, and the head, add c itself. In exact
arithmetic nothing changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from stan_infer.errors import InputError
from stan_infer.network.eight_bits import quantise_weight
from stan_infer.network.folded import (
    FoldedLinear,
    LastSpatial,
    Layer,
    Patches,
    TextWeights,
    VideoWeights,
    map_weights,
)

W = TypeVar("W")
Carried = dict[str, tuple[Tensor | None, Tensor | None]]
_ALIGN = 64  # columns; a row of L/14's patch weights has 588, which is not a multiple of 16 bytes


@dataclasses.dataclass(frozen=True)
class KernelLinear(FoldedLinear):
    """A linear with what a norm before it and the bias of its stream need."""

    sums: Tensor  # fp32 [2, out]: W's row sums, and W c with c = offset
    offset: Tensor | None  # fp32 [in]: what the stream carries apart that the norm before it reads
    # fp32 [out]: what the stream carries after this linear, its own bias included; None: the linear
    # adds its bias itself
    after: Tensor | None
    # Of attention's result, where this makes q, k and v and a linear in 8 bits reads that result.
    attention_scale: float | None


@dataclasses.dataclass(frozen=True)
class Fp8Linear(KernelLinear):
    """A linear whose weight is e4m3 [out, in] with one scale per row; its sums are not used."""

    scale: Tensor  # fp32 [out]
    scales: Tensor  # fp32 [1, out]: times x_scale, as the library takes them
    x_scale: float  # of its input
    y_scale: float | None  # of its result, where a linear in 8 bits reads that alone (fc1)


def prepare(
    weights: W,
    device: torch.device | str,
    scales: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
) -> W:
    """Return folded weights of either tower with every linear made ready for the kernels.

    Biases are moved as `carry_biases` says. Row sums are those of the rounded weight, so that a
    norm's mean cancels exactly. scales: of the inputs of the linears that run in 8 bits, by path.
    dtype: of all other weights (default: as they are); the 8-bit weights are rounded from those
    given. Raises InputError for a scale whose path no linear has.
    """
    every = scales or {}
    left = dict(every)
    place = torch.device(device)
    carried = carry_biases(weights)

    def change(part: Any) -> Any:
        if isinstance(part, FoldedLinear):
            apart = carried.get(part.path, (None, None))
            reader = {"fc1": "fc2", "qkv": "out"}.get(part.name)
            behind = every.get(f"{part.block}/{reader}")
            return _linear(part, place, left.pop(part.path, None), dtype, apart, behind)
        if isinstance(part, Patches):
            padded = torch.nn.functional.pad(part.weight, (0, -part.weight.shape[1] % _ALIGN))
            if padded.shape != part.weight.shape:
                return map_weights(dataclasses.replace(part, weight=padded), change)
        return part.to(place, dtype) if isinstance(part, Tensor) else None

    ready = map_weights(weights, change)
    if left:
        raise InputError(f"activation scales name no linear of this model: {sorted(left)[0]}")
    return ready


def carry_biases(weights: Any) -> Carried:
    """What the streams of either tower carry, in fp64 by the path of a linear: see KernelLinear.

    The first value is read by the norm before the linear, the second left by the linear. The branch
    carries nothing at the start of a layer, as `merge` adds what both streams carried.
    """
    found: Carried = {}
    if isinstance(weights, (VideoWeights, TextWeights)):
        trunk = weights.trunk if isinstance(weights, VideoWeights) else weights.layers
        c = None
        for layer in trunk:
            c = _through(found, layer, c)
        if isinstance(weights, VideoWeights):
            for beside in weights.branch:
                own = _through(found, beside.spatial, None)
            assert c is not None
            c = c + own  # the head reads the sum of both streams
        found[weights.head.path] = (c, None)
    return found


def _through(found: Carried, layer: Layer | LastSpatial, c: Tensor | None) -> Tensor:
    """Note what a stream that carries c carries inside a layer; return what it carries behind."""
    first = layer.qkv if isinstance(layer, Layer) else layer.q
    found[first.path] = (c, None)
    between = layer.out.bias.double() if c is None else c + layer.out.bias.double()
    found[layer.out.path] = (None, between)
    found[layer.fc1.path] = (between, None)
    behind = between + layer.fc2.bias.double()
    found[layer.fc2.path] = (None, behind)
    return behind


def _linear(
    w: FoldedLinear,
    device: torch.device,
    x_scale: float | None,
    dtype: torch.dtype | None,
    apart: tuple[Tensor | None, Tensor | None],
    behind: float | None,
) -> KernelLinear:
    """behind: scale of the linear that reads fc1, or the attention to what qkv makes."""
    attention = behind if w.name == "qkv" else None
    weight = w.weight if w.gain is None else w.weight * w.gain  # a kernel's norm has no gain
    offset, after = (None if c is None else c.float().to(device) for c in apart)
    bias = (w.bias if after is None else torch.zeros_like(w.bias)).to(device, dtype)
    if x_scale is None:
        weight = weight.to(device, dtype)
        wide = weight.double()
        shift = wide.sum(1) * 0 if offset is None else wide @ offset.double()
        sums = torch.stack([wide.sum(1), shift]).float()
        return KernelLinear(w.block, w.name, weight, bias, sums, offset, after, attention)
    weight8, scale = (x.to(device) for x in in_e4m3(weight))
    none = torch.empty(0, device=device)
    return Fp8Linear(
        w.block, w.name, weight8, bias, none, offset, after, attention, scale,
        x_scale * scale[None], x_scale, behind if w.name == "fc1" else None,
    )  # fmt: skip


def in_e4m3(weight: Tensor) -> tuple[Tensor, Tensor]:
    """W [out, in] -> e4m3 [out, in] and fp32 scales [out], those that a graph in fp8 has."""
    found = quantise_weight(weight.detach().float().cpu().numpy(), "fp8")
    codes, scale = (torch.from_numpy(x).to(weight.device) for x in found)
    return codes.view(torch.float8_e4m3fn), scale
