"""Scale moved from activations with outlier channels into weights, exact in fp32.

SmoothQuant (Xiao et al., ICML 2023, eq. 4): s_j = max|X_j|^a / max|W_j|^(1-a) for channel j; X / s
and s W have the same product, and X / s is easier to put into 8 bits. Before qkv and fc1 the norm
takes 1 / s as its gain; before the out-projection 1 / s goes into the rows that make V, since
attention mixes tokens and never channels. fc2 stands behind an activation: nothing is exact there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from stan_infer.network.eight_bits import LARGEST, map_products, products, quantise_product
from stan_infer.network.fold import Product
from stan_infer.quantisation.observe import Sample

W = TypeVar("W")
STRENGTHS = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9)  # a of the formula, besides none at all


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """By product: strength (0: none) and the factor 1 / s [in] of its input."""

    strengths: dict[str, float]
    factors: dict[str, Tensor]


@torch.inference_mode()
def choose(weights: object, samples: Mapping[str, Sample], format: str) -> Smoothing:
    """For each layer the strength whose 8-bit product is nearest to the exact one on its rows.

    fp8 stays as it is: a float's relative precision is the same at any scale.
    """
    found = Smoothing({}, {})
    linears = products(weights)
    for name, seen in samples.items():
        p = linears[name]
        found.strengths[name] = 0.0
        if format == "fp8" or not _can_move(name, linears) or not bool(seen.channels.any()):
            continue
        exact = seen.rows @ p.weight.T
        best = _error(p, seen, exact, format, None)
        for strength in STRENGTHS:
            factor = _factor(seen.channels, p.weight, strength)
            error = _error(p, seen, exact, format, factor)
            if error < best:
                best = error
                found.strengths[name], found.factors[name] = strength, factor
    return found


def through_values(weights: W, smoothing: Smoothing) -> W:
    """Weights with the factors of out-projections moved into the rows that make V."""

    def move(name: str, p: Product) -> Product:
        layer, _, last = name.rpartition("/")
        if last == "out" and name in smoothing.factors:
            return dataclasses.replace(p, weight=p.weight / smoothing.factors[name])
        factor = smoothing.factors.get(f"{layer}/out")
        if last == "qkv" and factor is not None:
            weight = p.weight.clone()
            weight[-len(factor) :] *= factor[:, None]
            bias = p.bias.clone()
            bias[-len(factor) :] *= factor
            return dataclasses.replace(p, weight=weight, bias=bias)
        return p

    return map_products(weights, move)


def gains(smoothing: Smoothing) -> dict[str, Tensor]:
    """The factors that norms take, by the product behind the norm."""
    return {n: f for n, f in smoothing.factors.items() if not n.endswith("/out")}


def _can_move(name: str, linears: Mapping[str, Product]) -> bool:
    """Whether something before the product takes the factor: a norm of its own, or V's rows."""
    layer, _, last = name.rpartition("/")
    # The last layer's norm is read by its class attention too, and its V is never multiplied out.
    return last in ("qkv", "single", "fc1") or (last == "out" and f"{layer}/qkv" in linears)


def _factor(channels: Tensor, weight: Tensor, strength: float) -> Tensor:
    """1 / s [in]; channels that are dead on either side keep 1."""
    rows = weight.abs().amax(0)
    s = channels.pow(strength) / rows.pow(1 - strength)
    alive = (channels > 0) & (rows > 0)
    s = torch.where(alive, s, torch.ones_like(s))
    middle = s[alive].log().mean().exp() if bool(alive.any()) else s.new_tensor(1.0)
    return torch.where(alive, (s / middle).clamp(1e-4, 1e4).reciprocal(), torch.ones_like(s))


def _error(p: Product, seen: Sample, exact: Tensor, format: str, factor: Tensor | None) -> float:
    channels, rows = seen.channels, seen.rows
    if factor is not None:
        channels, rows = channels * factor, rows * factor
    bare = dataclasses.replace(p, bias=torch.zeros_like(p.bias), gain=None)
    scale = float(channels.max()) / LARGEST[format]
    q = quantise_product(bare, scale, format, factor)
    return float((q.apply(rows) - exact).square().sum())
