"""python -m benchmarks.motion: scores of the demo for the README's first table. Appends a row."""

from __future__ import annotations

import numpy as np

from benchmarks.record import ROOT, append_rows
from stan_infer.engines.open import open_session

MOTION = ROOT / "examples" / "motion"
TEXTS = ["a shape moves left", "a shape moves right", "a shape fades in"]


def main() -> None:
    """Score the sample clips whose names end like the texts, and record the scores."""
    session = open_session(MOTION / "motion.safetensors")
    ends = [t.removeprefix("a shape ").replace(" ", "_") for t in TEXTS]
    paths = [next((MOTION / "clips").glob(f"*_{end}.mp4")) for end in ends]
    clips = np.stack([np.asarray(session.read_clip(p)) for p in paths])
    scores = np.asarray(session.score(TEXTS, clips)).T.tolist()  # [videos, texts]
    row = {"texts": TEXTS, "scores": {p.name: s for p, s in zip(paths, scores, strict=True)}}
    append_rows("motion", [row])


if __name__ == "__main__":
    main()
