"""The video tower in two parts: together they must be the one that a folder has beside them."""

from __future__ import annotations

import numpy as np

from stan_infer.artefacts.parts import PARTS
from stan_infer.verification.folder_side import Folder
from stan_infer.verification.side import Side
from stan_infer.verification.stage import ARITHMETIC, Stage
from stan_infer.video.synthetic import moving_frames


def parts_stage(side: Side, tolerance: float) -> Stage | None:
    """Compare the parts of a folder, or their plans, with its whole network; None: it has none.

    tolerance: of the video tower; one ONNX file in fp32 and two differ by rounding alone.
    """
    if not isinstance(side, Folder) or all(side.graph_path(role) is None for role in PARTS):
        return None
    is_exact = side.precision == "fp32" and side.kind == "folder"
    stage = Stage("parts", ARITHMETIC if is_exact else tolerance)
    whole = "video.onnx" if side.kind == "folder" else "video plan"
    stage.reference = f"its own {whole}, on windows that overlap"
    if reason := side.lacks("video") or side.lacks("parts"):
        stage.absent = f"not compared: the folder has {reason}"
        return stage
    _compare(stage, side)
    return stage


def _compare(stage: Stage, side: Folder) -> None:
    """Slide windows of several lengths over moving frames, and embed the same as a whole.

    stage: fails where the outputs differ by more than its tolerance, or a graph is missing.
    """
    with stage.catch("trunk and branch"), side.opened_session() as session:
        low, high = side.part_windows()
        size, batch = session.config.image_size, side.limits("batch")[0]
        for t in sorted({min(max(n, low), high) for n in (1, 3, session.config.frames)}):
            frames = moving_frames(t + 3, size, size, seed=t)
            found = session.stream(t, 3).extend(frames)
            made = np.stack([window.embedding for window in found])
            clips = [np.repeat(frames[None, w.first : w.first + t], batch, 0) for w in found]
            whole = np.stack([session.embed_video(clip)[0] for clip in clips])
            stage.compare(f"windows of {t} frames", (whole, made))
