"""Grids of parameters: `make test` runs what pairs of values need, `make test-all` the rest."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def pairwise(**axes: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrise a test over the whole grid; combinations that pairs do not need are slow."""
    fast = pairs_of([len(values) for values in axes.values()])
    grid = []
    for point in itertools.product(*(range(len(values)) for values in axes.values())):
        chosen = [values[i] for i, values in zip(point, axes.values(), strict=True)]
        grid.append(pytest.param(*chosen, marks=() if point in fast else pytest.mark.slow))
    return pytest.mark.parametrize(list(axes), grid, ids=name)


def name(value: Any) -> str:
    """The same in every process, which xdist asks for: the order of a set is not."""
    return "+".join(sorted(value)) if isinstance(value, frozenset) else str(value)


def pairs_of(sizes: Sequence[int]) -> set[tuple[int, ...]]:
    """Points of a grid in which every two values of two axes meet; early points are preferred."""
    points = list(itertools.product(*map(range, sizes)))
    pairs = {p: set(itertools.combinations(enumerate(p), min(2, len(p)))) for p in points}
    missing, chosen = set().union(*pairs.values()), set()
    while missing:
        best = max(points, key=lambda p: len(pairs[p] & missing))
        chosen.add(best)
        missing -= pairs[best]
    return chosen
