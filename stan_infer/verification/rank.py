"""The stage "rank": both sides' scores of all texts with all clips, each by its own way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stan_infer.verification.stage import Stage


def compare_ranks(stage: Stage, made: Sequence[np.ndarray], tolerance: float) -> None:
    """Compare scores [Q, B]; a text fails if two clips change places that are further apart.

    tolerance: of scores, relative to the largest; clips nearer than twice that are ties.
    """
    a, b = made
    if a.shape != b.shape:
        return stage.fail("all texts", f"{b.shape} scores instead of {a.shape}")
    tie = 2 * tolerance * float(np.abs(a).max())
    lead, other = (x[:, :, None] - x[:, None, :] for x in (a, b))
    with np.errstate(invalid="ignore"):
        swapped = ~((lead <= tie) | (other >= 0) | (other >= -tie))
    wrong = swapped.any((1, 2)) | ~np.isfinite(a).all(1) | ~np.isfinite(b).all(1)
    stage.agreement, stage.tolerance = float(1 - wrong.mean()), tolerance
    stage.compare("all texts with all clips", (a, b))
    if wrong.any():
        stage.wrong(f"text {np.flatnonzero(wrong)[0]}", "videos change places")
