"""python -m benchmarks.canaries: how far other stacks are from the one that made a library.

A library of clips of the demo is made by engine eager in fp32, by the demo's model or by a B/32
with random weights. Then the same clips and the canary clips of its passport are embedded by other
engines, numbers of threads and precisions. A row for each: the smallest cosine of a canary, the
smallest of a clip, and the share of a clip's ten nearest rows that stay, which is what a search
with that stack would see of it. `--int8 motion` says of which models folders in 8 bits are
calibrated. Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import stan_infer as si
from benchmarks.embed_rate import DEMO
from benchmarks.record import ROOT, append_rows
from benchmarks.script import options, random_model, stan_infer, write_clips
from stan_infer.checkpoints.load import save_model
from stan_infer.library.library import Library

NEAR = 10
FRAMES = {DEMO: "8", "stan-b32": "12"}  # which alone are checked, for a short export
FOLDERS = ("fp32", "fp16", "bf16", "int8")


def checkpoint(name: str, folder: Path) -> Path:
    """The demo's checkpoint, or one of a preset with random weights."""
    if name == DEMO:
        return ROOT / "examples" / "motion" / "motion.safetensors"
    save_model(random_model(name), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def stacks(model: Path, folders: dict[str, Path]) -> list[tuple[str, Path, dict[str, Any]]]:
    """Name, source and words for open_session; the first made the library."""
    found: list[tuple[str, Path, dict[str, Any]]] = [
        ("eager fp32", model, {}),
        ("eager fp32, 1 thread", model, {"threads": 1}),
        ("eager fp32, fused", model, {"graph": "fused"}),
        ("eager bf16", model, {"precision": "bf16"}),
    ]
    for precision, folder in folders.items():
        for engine in ("ort", "openvino"):
            if (engine, precision) != ("ort", "bf16"):
                found.append((f"{engine} {precision}", folder, {"engine": engine}))
    found.append(("ort fp32, 1 thread", folders["fp32"], {"engine": "ort", "threads": 1}))
    found.append(
        ("openvino bf16 of fp32", folders["fp32"], {"engine": "openvino", "precision": "bf16"})
    )
    return found


def measure(
    library: Library, source: Path, words: dict[str, Any], clips: list[Path]
) -> dict[str, Any]:
    """How a stack embeds the canary clips and the clips of the library."""
    with si.open_session(source, **words) as session:
        compared = library.compare(session)
        now = si.embed_videos(session, clips, level="video", normalise=True, workers=1).embeddings
    own = library.vectors
    near = [np.argsort(-(own @ x.T), axis=0)[:NEAR].T for x in (own, now)]
    kept = [len({*a} & {*b}) / NEAR for a, b in zip(*(n.tolist() for n in near), strict=True)]
    return {
        "canaries": compared.cosine,
        "clips": float((own * now).sum(1).min()),
        "near_stay": float(np.mean(kept)),
        "near_stay_least": min(kept),
    }


def main() -> None:
    """Measure and record."""
    args = options(__doc__, models=(DEMO, "stan-b32"), clips=200, dear_clips=40, int8=DEMO)
    for name in args.models:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            count = args.clips if name == DEMO else args.dear_clips
            write_clips(folder / "clips", count, "held-out")
            clips = sorted((folder / "clips").iterdir())
            model = checkpoint(name, folder)
            folders = {}
            for precision in FOLDERS:
                if precision == "int8" and name not in args.int8.split(","):
                    continue
                words = ["export", model, "-o", folder / precision, "--precision", precision]
                words += ["--tower", "video", "--frames", FRAMES[name], "--batch", "1"]
                if precision == "int8":
                    words = ["calibrate", *words[1:6], "--videos", folder / "clips", "--force"]
                stan_infer(*words, codes=(0, 4))
                if (folder / precision).exists():
                    folders[precision] = folder / precision
            si.embed_library(model, clips, folder / "library", workers=1)
            library = si.open_library(folder / "library")
            rows = []
            for stack, source, words_ in stacks(model, folders):
                try:
                    found = measure(library, source, words_, clips)
                except (si.InputError, si.MissingError) as e:
                    print(f"{stack}: {e}")
                    continue
                row = {"what": "canaries", "model": name, "stack": stack, "count": len(clips)}
                rows.append(row | found)
                print(json.dumps(rows[-1]), flush=True)
            append_rows("canaries", rows)


if __name__ == "__main__":
    main()
