"""python -m benchmarks.accuracy: accuracy of the motion demo for each engine and precision.

The held-out clips are written as H.264 once; `stan-infer eval` then classifies the same files with
every engine, and each is compared with eager fp32 clip by clip. Models in 8 bits come from
`stan-infer calibrate` on clips with the textures of training. Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import append_rows
from benchmarks.script import options, stan_infer, write_clips
from examples.motion import clips
from examples.motion.evaluate import MODEL, SEED
from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.checkpoints.load import load_model
from stan_infer.export.export_model import export_model

TASKS = {"motion": clips.prompts, "caption": clips.captions}
RUNS = (  # engine, precision of the folder or the session, folder?
    ("eager", "fp32", False),
    ("eager", "bf16", False),
    ("ort", "fp32", True),
    ("ort", "fp16", True),
    ("openvino", "fp32", True),
    ("openvino", "bf16", True),
    ("ort", "int8", True),
    ("openvino", "int8", True),
    ("ort", "fp8", True),  # the values of 8-bit floats, multiplied in fp32
)
CALIBRATION_CLIPS, CHECKED_CLIPS = 256, 85  # a quarter of all is held out


def main() -> None:
    """Write the clips, evaluate, record."""
    every = tuple(dict.fromkeys(precision for _, precision, _ in RUNS))
    args = options(__doc__, clips=2000, seed=SEED, precisions=every)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_clips(folder, args.seed, args.clips)
        write_clips(folder / "calibration", CALIBRATION_CLIPS + CHECKED_CLIPS, "train")
        calibrations: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        first: dict[str, np.ndarray] = {}
        for engine, precision, exported in RUNS:
            # Eager fp32 is what the others are compared with.
            if precision not in args.precisions and (engine, precision) != ("eager", "fp32"):
                continue
            model = MODEL
            if exported:
                model = folder / precision
                if not model.exists() and precision in EIGHT_BITS:
                    calibrations.append(_calibrate(folder, model, precision))
                elif not model.exists():
                    export_model(lambda: load_model(MODEL), model, precision=precision)
            row: dict[str, Any] = {"engine": engine, "precision": precision}
            for task in TASKS:
                record = _eval(folder, model, engine, None if exported else precision, task)
                hits = np.array(record["outcomes"]["videos"])
                base = first.setdefault(task, hits)
                row |= {f"{task}_top1": record["figures"]["videos"]["top-1"]}
                row |= {f"{task}_interval": record["intervals"]["videos"]["top-1"]}
                row |= {f"{task}_agreement": 100 * float((hits == base).mean())}
                row |= {f"{task}_loss": 100 * float((base - hits).mean())}
                row |= {"session": record["session"], "protocol": record["protocol"]}
            rows.append({**row, "clips": args.clips, "seed": args.seed})
            print(json.dumps({k: v for k, v in row.items() if k not in ("session", "protocol")}))
    append_rows("accuracy", rows)
    append_rows("calibration", calibrations)


def _calibrate(folder: Path, out: Path, precision: str) -> dict[str, Any]:
    """Write the folder even if it is not faster on this machine; return a part of its record."""
    (record,) = stan_infer(
        *("calibrate", MODEL, "--videos", folder / "calibration", "-o", out, "--force"),
        *("--precision", precision, "--samples", str(CALIBRATION_CLIPS), "--workers", "2"),
    )
    kept = ("precision", "method", "clips", "checked", "kept", "sensitivity", "verdict")
    return {k: record[k] for k in kept}


def _write_clips(folder: Path, seed: int, count: int) -> None:
    bank = clips.texture_bank("held-out")
    (folder / "videos").mkdir()
    answers: dict[str, list[str]] = {task: [] for task in TASKS}
    prompts, captions = clips.prompts(), clips.captions()
    for i in range(count):
        clip = clips.held_out_clip(seed, i, bank)
        clips.write_mp4(folder / "videos" / f"{i:05}.mp4", clip.frames)
        answers["motion"].append(prompts[clip.motion])
        answers["caption"].append(captions[clip.caption_index])
    for task, labels in answers.items():
        (folder / f"{task}.txt").write_text("\n".join(TASKS[task]()))
        with open(folder / f"{task}.csv", "w", newline="") as f:
            table = csv.writer(f)
            table.writerow(["video", "label"])
            table.writerows((f"{i:05}.mp4", label) for i, label in enumerate(labels))


def _eval(
    folder: Path, model: Path, engine: str, precision: str | None, task: str
) -> dict[str, Any]:
    (record,) = stan_infer(
        *("eval", model, "--engine", engine, "--dataset", "recognition"),
        *("--annotations", folder / f"{task}.csv", "--labels", folder / f"{task}.txt"),
        *("--videos", folder / "videos", "--cache", folder / "cache"),
        *("--batch", "8", "--workers", "2"),
        *(("--precision", precision) if precision else ()),
    )
    return record


if __name__ == "__main__":
    main()
