"""Grids of parameters: `make test` runs a part of the points, `make test-all` the rest."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest


def pairwise(**axes: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrise a test over a grid; points that pairs of values do not need are slow."""
    return _grid(axes, together=2)


def once(**axes: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrise a test over a grid; all is slow but points in which every value stands once."""
    return _grid(axes, together=1)


def _grid(axes: dict[str, Sequence[Any]], together: int) -> pytest.MarkDecorator:
    fast = cover([len(values) for values in axes.values()], min(together, len(axes)))
    grid = []
    for point in itertools.product(*(range(len(values)) for values in axes.values())):
        chosen = [values[i] for i, values in zip(point, axes.values(), strict=True)]
        grid.append(pytest.param(*chosen, marks=() if point in fast else pytest.mark.slow))
    return pytest.mark.parametrize(list(axes), grid, ids=_name)


def cover(sizes: Sequence[int], together: int) -> set[tuple[int, ...]]:
    """Points in which any values of `together` axes meet; rare values first, then early points."""
    points = list(itertools.product(*map(range, sizes)))
    parts = {p: set(itertools.combinations(enumerate(p), together)) for p in points}
    missing, chosen, used = set().union(*parts.values()), set(), Counter()
    while missing:
        best = max(
            points, key=lambda p: (len(parts[p] & missing), -sum(used[v] for v in enumerate(p)))
        )
        chosen.add(best)
        missing -= parts[best]
        used.update(enumerate(best))
    return chosen


def _name(value: Any) -> str:
    """The same in every process, which xdist asks for: the order of a set is not."""
    return "+".join(sorted(value)) if isinstance(value, frozenset) else str(value)
