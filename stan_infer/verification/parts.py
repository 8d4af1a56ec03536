"""The video tower in two graphs: together they must be the one that a folder has beside them."""

from __future__ import annotations

import numpy as np

from stan_infer.artefacts.folder import read_artefact
from stan_infer.artefacts.parts import PARTS
from stan_infer.engines.open import open_session
from stan_infer.verification.folder_side import Folder
from stan_infer.verification.stage import Stage
from stan_infer.video.synthetic import moving_frames


def has_parts(side: Folder) -> bool:
    """Whether the folder was exported with --split, whole or not."""
    return any(side.graph_path(role) is not None for role in PARTS)


def compare_parts(stage: Stage, side: Folder) -> None:
    """Slide windows of several lengths over moving frames, and embed the same with video.onnx.

    stage: fails where the outputs differ by more than its tolerance, or a graph is missing.
    """
    stage.reference = "its own video.onnx, on windows that overlap"
    with stage.catch("trunk.onnx and branch.onnx"):
        limits = read_artefact(side.name, check_hashes=False).graph("branch")
        low, high = limits.dims["frames"] if limits else (1, 1)
        with open_session(side.name, side.engine) as session:
            size = session.config.image_size
            for t in sorted({min(max(n, low), high) for n in (1, 3, session.config.frames)}):
                frames = moving_frames(t + 3, size, size, seed=t)
                found = session.stream(t, 3).extend(frames)
                made = np.stack([window.embedding for window in found])
                clips = [frames[w.first : w.first + t] for w in found]
                whole = np.concatenate([session.embed_video(clip[None]) for clip in clips])
                stage.compare(f"windows of {t} frames", (whole, made))
