"""The stage "bound": 8 bits held to the cosine to fp32 that calibration.json records as its bound.

The bound was checked on the user's videos. A clip on which a linear's input is larger than on any
of those says nothing about it, so such clips count only if they keep the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stan_infer.verification.side import Arrays
from stan_infer.verification.stage import Stage
from stan_infer.verification.suspect import Suspect

# How far beyond the largest input of the calibration one may be. The methods that clip ranges cut
# off more than this.
BEYOND = 1.1


def recorded_bound(record: Mapping[str, Any]) -> float | str:
    """The smallest cosine that a calibration promises, or why there is none."""
    verdict = record.get("verdict")
    told = verdict if isinstance(verdict, dict) else {}
    bound = record.get("bound") or told.get("bound")
    least = bound.get("min_cosine") if isinstance(bound, dict) else None
    if told.get("is_met") is False:
        return "calibration.json says itself that its bound was not met"
    if told.get("drop") is not None or (isinstance(bound, dict) and "max_drop" in bound):
        return "the bound is on labels: compare with stan-infer eval"
    if isinstance(least, (int, float)) and 0 < least <= 1:
        return float(least)
    return "calibration.json records no bound: calibrate again"


def check_bound(
    stage: Stage,
    suspect: Suspect,
    made: Mapping[str, tuple[Arrays, Arrays]],
    given: Callable[[str], np.ndarray],
) -> None:
    """Compare the embeddings of whole clips.

    made: the exact side's features and the 8-bit graph's, by the clip's name. given: the input of
    the graph for a clip's name.
    """
    record = suspect.calibration
    least = recorded_bound(record) if record is not None else "there is no calibration.json"  # type: ignore[arg-type]
    if isinstance(least, str):
        stage.absent = f"not compared: {least}"
        return
    beyond = []
    for name, (exact, coarse) in made.items():
        a, b = (x["video_embeds"].astype(np.float64).ravel() for x in (exact, coarse))
        with np.errstate(all="ignore"):
            cosine = float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
        if not cosine >= least and _largest(suspect, given(name)) > BEYOND:
            beyond.append(name)
            continue
        stage.count += 1
        if not cosine >= stage.cosine:
            stage.cosine, stage.worst = cosine, name
        if not cosine >= least:
            stage.wrong(name, f"a cosine of {cosine:.5f}; calibration.json's bound is {least:g}")
    stage.has_errors = False
    stage.reference = (
        f"{suspect.letter} in fp32, by a cosine of at least {least:g} (calibration.json)"
    )
    if beyond:
        stage.reference += f"; {len(beyond)} clips left out, beyond the calibrated ranges"
    if not stage.count:
        stage.absent = (
            "not compared: all clips go beyond the calibrated ranges; give --videos like those of "
            "the calibration"
        )


def _largest(suspect: Suspect, given: np.ndarray) -> float:
    """The largest input of a linear on a clip, relative to the largest of the calibration."""
    assert suspect.calibration is not None
    readers: dict[str, list[float]] = {}  # largest of the calibration, by the value that is read
    for path, told in suspect.calibration["tensors"].items():
        entry: Mapping[str, Any] = told  # type: ignore[assignment]
        node, most = suspect.wanted.makers.get(f"{path}/QuantizeLinear"), entry.get("absmax")
        if node is not None and isinstance(most, (int, float)) and most > 0:
            readers.setdefault(node.inputs[0], []).append(float(most))
    found = [0.0]

    def note(name: str, value: np.ndarray) -> None:
        for most in readers.get(name, ()):
            found.append(float(np.abs(value).max()) / most)

    assert suspect.smoothed is not None
    suspect.smoothed()(given, note)
    return max(found)
