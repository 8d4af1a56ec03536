"""The stage "bound": 8 bits held to the cosine to fp32 that calibration.json records as its bound.

Without one they are held to the coarse tolerance of their precision.

The bound was checked on the user's videos. A clip on which a linear's input is larger than on any
of those says nothing about it, so such clips count only if they keep the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard, cast

import numpy as np

from stan_infer.artefacts.calibration_record import Told
from stan_infer.artefacts.precision import TOLERANCES
from stan_infer.verification.side import Arrays
from stan_infer.verification.stage import Stage
from stan_infer.verification.suspect import Suspect

# How far beyond the largest input of the calibration one may be: rounding.
BEYOND = 1.001
# How many times the loss of cosine that calibrate measured a clip may lose. On clean folders clips
# that calibrate had not seen lost up to ten times as much; an input's scale / 4 costs fifty times.
MARGIN = 30
LEAST_LOSS = 1e-3  # always allowed


def recorded_bound(record: Told, engine: str) -> tuple[float, str] | str:
    """The smallest cosine that a calibration promises, and why; a sentence if there is none.

    engine: the one that runs the 8 bits; `calibrate` measures each that it can open. It is the
    bound that was asked for or, if that is higher, what the measured cosine leads one to expect: a
    bound of 0.5 does not excuse a fault in a folder that measured 0.999.
    """
    verdict = record.get("verdict")
    told = verdict if isinstance(verdict, dict) else {}
    bound = record.get("bound") or told.get("bound")
    asked = bound.get("min_cosine") if isinstance(bound, dict) else None
    rows = [r for r in told.get("rows") or [] if isinstance(r, dict) and r.get("engine") == engine]
    row = next((r for r in rows if r.get("precision") == record["precision"]), {})
    measured = row.get("cosine", told.get("cosine") if engine == "ort" else None)
    found: list[tuple[float, str]] = []
    if _is_cosine(asked) and row.get("is_met", told.get("is_met")) is not False:
        found.append((float(asked), "calibration.json's bound"))
    if _is_cosine(measured):
        words = f"{MARGIN} times the loss that calibration.json records"
        found.append((1 - max(MARGIN * (1 - float(measured)), LEAST_LOSS), words))
    if found:
        return max(found)
    if told.get("drop") is not None:
        return "calibration.json's bound is on labels, for which there is stan-infer eval"
    return f"calibration.json records no cosine in {engine}"


def _is_cosine(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1


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
    bound: tuple[float, str] | str = "there is no calibration.json"
    if record is not None:
        bound = recorded_bound(cast(Told, record), suspect.side.engine)
    if isinstance(bound, str):
        stage.tolerance = TOLERANCES[suspect.precision]
        stage.reference = f"{suspect.letter} in fp32, only coarsely: {bound}"
        for name, (exact, coarse) in made.items():
            stage.compare(name, [x["video_embeds"] for x in (exact, coarse)])
        return
    (least, words), beyond = bound, []
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
    stage.has_errors = False
    stage.reference = f"{suspect.letter} in fp32: a cosine of at least {least:.5g} ({words})"
    if stage.count and not stage.cosine >= least:
        reason = f"a cosine of {stage.cosine:.6f}; at least {least:.5g} is wanted ({words})"
        stage.wrong(stage.worst, reason)
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
        entry = cast(Told, told)
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
