"""How far arrays are from those that were wanted; NaN and infinity always count as too far."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def relative_error(got: Array, wanted: Array, scale: float | None = None) -> float:
    """Largest difference as a part of the largest wanted value, or of `scale`.

    NaN where either array holds one, or where all that was wanted is 0: test with
    `not error <= tolerance`, which NaN fails. The arrays have the same shape.
    """
    with np.errstate(all="ignore"):
        largest = np.abs(wanted).max() if scale is None else scale
        return float(np.abs(got - wanted).max(initial=0) / largest)


class Difference:
    """The worst of several comparisons of a graph's outputs with the model's."""

    def __init__(self) -> None:
        """Start without any."""
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
        """As a manifest's parity records have it."""
        return {"max_rel": self.relative, "max_abs": self._absolute, "min_cos": self._cosine}
