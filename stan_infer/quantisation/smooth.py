"""Scale moved from outlier channels of activations into weights, exactly in fp32; then 8 bits.

SmoothQuant (Xiao et al., ICML 2023, eq. 4): s_j = max|X_j|^a / max|W_j|^(1-a) for channel j; X / s
and s W give the same result, and X / s loses less in 8 bits. Before qkv and fc1, 1 / s becomes the
gain of the norm. Before the output linear, 1 / s is multiplied into the rows that make V, since
attention mixes tokens and never channels. The input of fc2 comes out of an activation, through
which no factor can be moved exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial

import numpy as np

from stan_infer.export.product import product
from stan_infer.network.cpu_threads import side_by_side
from stan_infer.network.eight_bits import (
    NUMBER_FORMATS,
    largest,
    quantise_linear,
    through_v,
    weight_scale,
)
from stan_infer.network.folded import FoldedLinear, VideoWeights, linears, map_linears
from stan_infer.quantisation.watched import Sample

SMOOTHED_ON = 16  # clips on which strengths are chosen
STRENGTHS = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9)  # a of the formula, besides none at all
OUTPUTS = 384  # of a linear, evenly spaced, in which the error of a strength is measured, at least
_AFTER_NORM = ("qkv", "single", "fc1")  # linears whose norm nothing else reads


@dataclasses.dataclass
class Smoothing:
    """Strengths by the linear's path (0: none), and the factors 1 / s [in] of its input.

    gains: factors that become the gain of a norm, by the path of the linear behind it. values:
    factors for the rows that make V, by the block of the output linear.
    """

    strengths: dict[str, float]
    gains: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    values: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def choose(weights: VideoWeights, samples: Mapping[str, Sample], format: str) -> Smoothing:
    """For each linear, choose the strength whose 8-bit result on its rows is nearest to the exact.

    Nothing is smoothed for 8-bit floats: their relative precision is the same at any scale.
    """
    found = Smoothing(dict.fromkeys(samples, 0.0))
    if NUMBER_FORMATS[format].is_float:
        return found
    by_path = linears(weights)
    # The last layer applies V after its attention, so that no rows can take a factor.
    with_values = {w.block for w in by_path.values() if w.name == "qkv"}

    def can_move(w: FoldedLinear) -> bool:
        # The norm before the last layer's q is read by its class attention too.
        return w.block in with_values if w.name == "out" else w.name in _AFTER_NORM

    tried = [p for p, seen in samples.items() if can_move(by_path[p]) and seen.channels.any()]
    run = partial(_strength, format=format)
    with closing(side_by_side(lambda p: run(by_path[p], samples[p]), tried)) as chosen:
        for path, (strength, factor) in chosen:
            if factor is None:
                continue
            w, found.strengths[path] = by_path[path], strength
            if w.name == "out":
                found.values[w.block] = factor
            else:
                found.gains[path] = factor
    return found


def _strength(w: FoldedLinear, seen: Sample, format: str) -> tuple[float, np.ndarray | None]:
    """The best strength for a linear and its factors 1 / s [in]; 0 and None where none helps."""
    of_weight = largest(w.weight, 0)
    part = w.weight[:: max(len(w.weight) // OUTPUTS, 1)].copy(order="K")
    exact = product(seen.rows, part.T)
    found: tuple[float, np.ndarray | None] = 0.0, None
    best = _error(part, seen, exact, format, None)
    for strength in STRENGTHS:
        factor = _factor(seen.channels, of_weight, strength)
        error = _error(part, seen, exact, format, factor)
        if error < best:
            best, found = error, (strength, factor)
    return found


def largest_inputs(
    weights: VideoWeights, samples: Mapping[str, Sample], smoothing: Smoothing
) -> dict[str, float]:
    """The largest |x| that the smoothed linears read on the clips of `samples`, by path.

    A factor of a channel is moved exactly, so its largest value needs no second run.
    """
    found, by_path = {}, linears(weights)
    for path, seen in samples.items():
        w = by_path[path]
        factor = smoothing.values.get(w.block) if w.name == "out" else smoothing.gains.get(path)
        x = seen.channels if factor is None else seen.channels * factor
        found[path] = float(x.max())
    return found


def through_values(weights: VideoWeights, smoothing: Smoothing) -> VideoWeights:
    """Weights with the factors of output linears moved into the rows that make V."""

    def move(w: FoldedLinear) -> FoldedLinear:
        return through_v(w, smoothing.values.get(w.block))

    return map_linears(weights, move)


def with_gains(weights: VideoWeights, gains: Mapping[str, np.ndarray]) -> VideoWeights:
    """Weights, still exact: norms multiply by these factors, the linears behind divide by them."""

    def change(w: FoldedLinear) -> FoldedLinear:
        gain = gains.get(w.path)
        return w if gain is None else dataclasses.replace(w, weight=w.weight / gain, gain=gain)

    return map_linears(weights, change)


@dataclasses.dataclass(frozen=True)
class Quantiser:
    """Makes 8-bit weights: by the linear's path, scales of its input and the gain of its norm.

    exact: weights in fp32 with the factors through V. dead: linears whose input was always zero, so
    that they have no scale.
    """

    exact: VideoWeights
    gains: Mapping[str, np.ndarray]
    scales: Mapping[str, float]
    dead: Sequence[str]
    precision: str

    def kept(self, returned: Iterable[str]) -> list[str]:
        """Linears that stay in fp32: those returned to it, and the dead ones."""
        return sorted({*returned, *self.dead})

    def weights(self, kept: frozenset[str]) -> VideoWeights:
        """The weights, in 8 bits except for the linears in `kept`."""

        def change(w: FoldedLinear) -> FoldedLinear:
            if w.path not in self.scales or w.path in kept:
                return w
            return quantise_linear(w, self.scales[w.path], self.precision, self.gains.get(w.path))

        return map_linears(self.exact, change)


def _factor(channels: np.ndarray, of_weight: np.ndarray, strength: float) -> np.ndarray:
    """1 / s [in], from the largest |x| and the largest |W| of each channel; 1 where one is zero.

    Computed in fp64, so that every machine rounds to the same values.
    """
    alive = (channels > 0) & (of_weight > 0)
    if not alive.any():
        return np.ones_like(channels)
    x, w = (np.log(v[alive].astype(np.float64)) for v in (channels, of_weight))
    log_s = strength * x - (1 - strength) * w
    factor = np.ones_like(channels)
    factor[alive] = np.exp(np.clip(log_s.mean() - log_s, np.log(1e-4), np.log(1e4)))
    return factor


def _error(
    weight: np.ndarray, seen: Sample, exact: np.ndarray, format: str, factor: np.ndarray | None
) -> float:
    """Squared error on the rows of the linear in int8.

    weight: [out, in], of the linear or of some of its outputs. exact: rows W^T. Most of the time of
    `choose` goes here, and most of that to memory. So there is one copy of the weight, whose values
    are those of 8 bits, but in fp32, as products take them.
    """
    most = np.float32(NUMBER_FORMATS[format].largest)
    channels, rows = seen.channels, seen.rows
    if factor is None:
        weight = weight.copy(order="K")
    else:
        weight = weight / factor
        channels, rows = channels * factor, rows * factor
    x_scale = channels.max() / most
    scale = weight_scale(largest(weight, 1), format)
    weight /= scale[:, None]
    np.rint(weight, out=weight)  # no row exceeds its scale times the largest value
    z = np.rint(rows / x_scale)
    np.clip(z, -most - 1, most, out=z)
    y = product(z, weight.T)
    y *= scale * x_scale
    y -= exact
    return float(np.square(y, out=y).sum())
