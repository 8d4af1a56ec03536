"""How far arrays are from the wanted ones. NaN and infinity always count as too far."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def relative_error(got: Array, wanted: Array, scale: float | None = None) -> float:
    """Largest absolute difference, divided by the largest absolute wanted value or by `scale`.

    The arrays have the same shape. NaN where either holds a NaN, or where all wanted values are 0;
    so test with `not error <= tolerance`, which is true for NaN.
    """
    with np.errstate(all="ignore"):
        largest = np.abs(wanted).max() if scale is None else scale
        return float(np.abs(got - wanted).max(initial=0) / largest)


class Difference:
    """The worst of several comparisons of a graph's outputs with the model's."""

    def __init__(self) -> None:
        """Start before the first comparison."""
        self.relative, self._absolute, self._cosine = 0.0, 0.0, 1.0

    def add(self, got: Array, wanted: Array) -> None:
        """Compare two arrays [..., E] of the same shape."""
        # numpy's maximum and minimum keep a NaN; Python's max and min would drop it.
        with np.errstate(all="ignore"):
            norms = np.linalg.norm(wanted, axis=-1) * np.linalg.norm(got, axis=-1)
            cosine = ((wanted * got).sum(-1) / norms).min()
            self._absolute = float(np.maximum(self._absolute, np.abs(wanted - got).max()))
        self.relative = float(np.maximum(self.relative, relative_error(got, wanted)))
        self._cosine = float(np.minimum(self._cosine, cosine))

    def record(self) -> dict[str, float]:
        """The three errors by the names that a manifest's parity record gives them."""
        return {"max_rel": self.relative, "max_abs": self._absolute, "min_cos": self._cosine}
