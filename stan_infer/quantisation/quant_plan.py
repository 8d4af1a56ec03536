"""Which linears are in 8 bits, by which scales of their inputs, smoothed by which factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from stan_infer.network.eight_bits import map_products, quantise_product
from stan_infer.network.fold import Product, VideoWeights


@dataclasses.dataclass(frozen=True)
class QuantPlan:
    """exact: weights with the factors through V; factors: of norms; scales: of linears' inputs.

    dead: linears that read nothing but zeros, so that they have no scale.
    """

    exact: VideoWeights
    factors: Mapping[str, Tensor]
    scales: Mapping[str, float]
    dead: Sequence[str]
    precision: str

    def kept(self, returned: Iterable[str]) -> list[str]:
        """Linears that are in fp32: those returned, and the dead ones."""
        return sorted({*returned, *self.dead})

    def weights(self, kept: frozenset[str]) -> VideoWeights:
        """In 8 bits but for the linears in `kept`."""

        def change(name: str, p: Product) -> Product:
            if name not in self.scales or name in kept:
                return p
            return quantise_product(p, self.scales[name], self.precision, self.factors.get(name))

        return map_products(self.exact, change)


def with_gains(weights: VideoWeights, factors: Mapping[str, Tensor]) -> VideoWeights:
    """Weights, still exact, whose norms take these factors and whose products give them back."""

    def change(name: str, p: Product) -> Product:
        gain = factors.get(name)
        return p if gain is None else dataclasses.replace(p, weight=p.weight / gain, gain=gain)

    return map_products(weights, change)
