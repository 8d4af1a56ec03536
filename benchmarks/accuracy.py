"""python -m benchmarks.accuracy: the motion demo through `stan-infer eval`, per engine, precision.

The held-out clips are written as H.264 once; every engine reads and classifies the same files with
the product's own command. Each is compared with eager fp32 clip by clip. 8 bits come from
`stan-infer calibrate` on clips of training's textures. Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import append_rows
from examples.motion import clips
from examples.motion.evaluate import MODEL, SEED
from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.checkpoints.load import load_model
from stan_infer.evaluation.metrics import bootstrap_interval
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
CALIBRATION_CLIPS = 256


def main() -> None:
    """Write the clips, evaluate, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--precisions", help="Beside eager fp32 only these, comma separated.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_clips(folder, args.seed, args.clips)
        _write_calibration_clips(folder / "calibration")
        calibrations: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        first: dict[str, np.ndarray] = {}
        wanted = args.precisions.split(",") if args.precisions else None
        for engine, precision, exported in RUNS:
            if wanted and precision not in wanted and (engine, precision) != ("eager", "fp32"):
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
                row |= {f"{task}_loss_interval": [100 * x for x in bootstrap_interval(base - hits)]}
                row |= {"session": record["session"], "protocol": record["protocol"]}
            rows.append({**row, "clips": args.clips, "seed": args.seed})
            print(json.dumps({k: v for k, v in row.items() if k not in ("session", "protocol")}))
    append_rows("accuracy", rows)
    append_rows("calibration", calibrations)


def _write_calibration_clips(folder: Path) -> None:
    folder.mkdir()
    bank = clips.texture_bank("train")
    for i in range(CALIBRATION_CLIPS):
        clips.write_mp4(folder / f"{i:03}.mp4", clips.held_out_clip(SEED + 1, i, bank).frames)


def _calibrate(folder: Path, out: Path, precision: str) -> dict[str, Any]:
    """Write the folder though it may be no faster on this machine; return what is said of it."""
    command = [sys.executable, "-m", "stan_infer", "calibrate", str(MODEL)]
    command += ["--videos", str(folder / "calibration"), "-o", str(out), "--force", "--json"]
    command += ["--precision", precision, "--samples", str(CALIBRATION_CLIPS), "--workers", "2"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    record = json.loads(done.stdout)
    told = ("precision", "method", "clips", "kept", "sensitivity", "verdict")
    return {k: record[k] for k in told}


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
    command = [sys.executable, "-m", "stan_infer", "eval", str(model), "--engine", engine]
    command += ["--dataset", "recognition", "--annotations", str(folder / f"{task}.csv")]
    command += ["--labels", str(folder / f"{task}.txt"), "--videos", str(folder / "videos")]
    command += ["--cache", str(folder / "cache"), "--batch", "8", "--workers", "2", "--json"]
    command += ["--precision", precision] if precision else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    record: dict[str, Any] = json.loads(done.stdout)
    return record


if __name__ == "__main__":
    main()
