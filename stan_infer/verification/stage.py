"""One stage of a verification: its comparisons, of which the worst is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from stan_infer.artefacts.difference import relative_error
from stan_infer.errors import CheckError, InputError

Pair = Sequence[Any]  # something of A and the same of B

ARITHMETIC = 1e-5  # of normalised pixels, and of fp32 scores of the same features: rounding alone


class Stage:
    """Collects the comparisons of one stage and keeps the worst."""

    def __init__(self, name: str, tolerance: float = 0.0) -> None:
        """Start a stage without a case; tolerance: of its comparisons, where none is given.

        reference: what B was compared with, for the row.
        """
        self.name, self.tolerance = name, tolerance
        self.limit, self.reference = tolerance, "A"  # limit: the tolerance of the worst case
        self.count, self.equal, self.error, self.cosine = 0, 0, 0.0, math.inf
        self.agreement: float | None = None
        self.worst, self.note, self.absent = "", "", ""
        self.failed, self.has_errors = False, True  # has_errors: False for cosines alone

    def compare(self, where: str, pair: Pair, scale: float | None = None) -> None:
        """Compare B's array with A's: the largest difference relative to A's largest value.

        where: names the case. scale: is taken instead of A's largest value.
        """
        want, got = (np.asarray(x) for x in pair)
        if want.shape != got.shape:
            return self.fail(where, f"shape {list(got.shape)} instead of {list(want.shape)}")
        with np.errstate(all="ignore"):
            want, got = want.astype(np.float64), got.astype(np.float64)
            largest = max(np.abs(want).max(initial=0), 1e-30)
            error = relative_error(got, want, float(scale or largest))
            if scale is None and want.ndim > 1:
                lengths = np.linalg.norm(want, axis=-1) * np.linalg.norm(got, axis=-1)
                cosine = np.where(lengths == 0, 1.0, (want * got).sum(-1) / lengths).min()
                self.cosine = float(np.minimum(self.cosine, cosine))  # keeps a NaN
        self.equal += bool(np.array_equal(want, got))
        self.add(where, error, self.tolerance)

    def add(self, where: str, error: float, tolerance: float, reason: str = "") -> None:
        """Add a comparison: its error, what is allowed, and what is wrong if that says it.

        The one that is furthest above what is allowed, or nearest to it, becomes the row's.
        """
        self.count += 1
        error = error if math.isfinite(error) else math.inf  # a NaN counts as the worst, too
        if _times(error, tolerance) > _times(self.error, self.limit) or self.count == 1:
            self.error, self.limit, self.worst = error, tolerance, where if error else ""
            self.note = reason if not error <= tolerance else self.note
        self.failed = self.failed or not error <= tolerance

    def fail(self, where: str, reason: str) -> None:
        """Note that a case could not be computed or compared."""
        self.count += 1
        self.error = math.inf
        self.wrong(where, reason)

    def wrong(self, where: str, reason: str) -> None:
        """Note what is wrong with a case that is counted already; the first is kept."""
        self.failed = True
        self.note, self.worst = self.note or reason, self.worst or where

    @contextmanager
    def catch(self, where: str) -> Iterator[None]:
        """Turn an error of a side into a failed case; MissingError is raised as it is."""
        try:
            yield
        except (InputError, CheckError, ValueError, TypeError, KeyError, IndexError) as e:
            text = f"there is no {e}" if isinstance(e, KeyError) else str(e)
            self.fail(where, text[:300])

    def lacks(self, pair: Pair, *steps: str) -> bool:
        """Whether a side lacks one of these steps; the stage is then not compared."""
        for letter, side in zip("AB", pair, strict=True):
            for step in steps:
                reason = side.lacks(step)
                if reason:
                    self.absent = f"not compared: {letter} has {reason}"
        return bool(self.absent)

    def row(self) -> dict[str, Any]:
        """The stage as a row of the result of `verify`."""
        if not self.count and not self.absent:
            self.absent = "not compared: no case"
        done = not self.absent
        return {
            "stage": self.name,
            "max_rel": self.error if done and self.has_errors else None,
            "min_cos": self.cosine if done and math.isfinite(self.cosine) else None,
            "agreement": self.agreement,
            "tolerance": self.limit if done and self.has_errors else None,
            "pass": not self.failed if done else None,
            "worst": self.worst or None,
            "cases": self.count,
            "reference": self.reference if done else None,
            "note": self.note or self.absent or None,
        }


def _times(error: float, tolerance: float) -> float:
    """How many times what is allowed an error is."""
    return error / tolerance if tolerance else math.inf if error else 0.0
