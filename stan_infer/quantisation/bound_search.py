"""The fewest linears whose return to fp32 makes a bound hold, in the order of return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from stan_infer.quantisation.verdict import Measured


@dataclasses.dataclass(frozen=True)
class Search:
    """What was tried: measurements by the number of linears in fp32; `kept` are those chosen."""

    tried: dict[int, Measured]
    kept: list[str]

    @property
    def best(self) -> Measured:
        """The measurement of `kept`."""
        return self.tried[len(self.kept)]

    def rows(self) -> list[dict[str, Any]]:
        """One row of the record per try."""
        return [
            {"in_fp32": n, "is_met": m.is_met, **m.figures()} for n, m in sorted(self.tried.items())
        ]


def fewest_returned(order: Sequence[str], measure: Callable[[Sequence[str]], Measured]) -> Search:
    """Try the first n of `order` in fp32: n is doubled until the bound holds, then bisected.

    Where nothing helps: the best that was tried. At least one linear stays in 8 bits.
    """
    tried: dict[int, Measured] = {}

    def holds(n: int) -> bool:
        if n not in tried:
            tried[n] = measure(order[:n])
        return tried[n].is_met

    low, high, most = 0, 1, len(order) - 1
    if holds(0) or most < 1:
        return Search(tried, [])
    while high < most and not holds(high):
        low, high = high, min(2 * high, most)
    if not holds(high):
        best = max(tried, key=lambda n: tried[n].score)
        return Search(tried, list(order[:best]))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return Search(tried, list(order[:high]))
