"""Make the demo's committed files from two finished runs of train.py.

python -m examples.motion.publish --run build/motion --trunk build/motion-trunk

Writes motion.safetensors, labels.txt, clips/*.mp4, training.png, results.json and the figures of
README.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.motion import clips, evaluate
from stan_infer.checkpoints.load import load_model
from stan_infer.engines.inputs import as_numpy
from stan_infer.engines.open import open_session
from stan_infer.system.machine import machine_record

# What of README.md is generated, between its markers.
FIGURES = """{table}

{clips} held-out clips (seed {seed}), written as H.264 (crf {crf}) and read back by
`stan_infer.video.clip`. Trained on {date} in {minutes:.0f} minutes on one thread of "{cpu}", a
machine shared with other work, with torch {torch}: {frame_steps} steps of {images} single frames,
then {clip_steps} steps of {drawn} clips and their reverses, on {words} rows of the word table. The
trunk alone: {trunk_minutes:.0f} minutes, {trunk_steps} steps of clips. Of the ten clips in `clips/`
{samples_right} are right.
"""


def run_record(run: Path) -> dict[str, Any]:
    """Return recipe and training minutes of a finished run."""
    from examples.motion.train import read_record

    state = read_record(run / "state.safetensors")
    return {"recipe": state["recipe"], "minutes": state["progress"]["seconds"] / 60}


def write_samples(folder: Path, seed: int) -> list[Path]:
    """Write the first held-out clip of each motion, named by its caption; return the paths."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.mp4"):
        old.unlink()
    bank = clips.texture_bank("held-out")
    paths = []
    for i in range(len(clips.MOTIONS)):
        clip = clips.held_out_clip(seed, i, bank)
        paths.append(folder / f"{clip.caption.removeprefix('a ').replace(' ', '_')}.mp4")
        clips.write_mp4(paths[-1], clip.frames)
    return paths


def samples_right(paths: list[Path], model: Path) -> int:
    """Return how many of the sample clips get their motion right (they are in motion order)."""
    session = open_session(str(model))
    video = np.stack([session.read_clip(p) for p in paths])
    scores = as_numpy(session.score(clips.prompts(), video))  # [texts, videos]
    return int((scores.argmax(0) == np.arange(len(paths))).sum())


def figures(results: dict[str, Any]) -> str:
    """Return the generated part of README.md."""
    from examples.motion.train import used_words

    recipe, trunk = results["training"]["recipe"], results["trunk_training"]
    return FIGURES.format(
        **{k: results[k] for k in ("clips", "seed", "cpu", "torch", "date", "samples_right")},
        **{k: recipe[k] for k in ("frame_steps", "images", "clip_steps")},
        table=evaluate.table(results),
        crf=clips.CRF,
        minutes=results["training"]["minutes"],
        trunk_minutes=trunk["minutes"],
        trunk_steps=trunk["recipe"]["clip_steps"],
        drawn=recipe["clips"],
        words=len(used_words()),
    )


def write_readme(path: Path, results: dict[str, Any]) -> None:
    """Put the figures between the markers of README.md."""
    before, _, rest = path.read_text().partition("<!-- figures -->\n")
    _, _, after = rest.partition("<!-- /figures -->\n")
    marked = f"<!-- figures -->\n{figures(results)}<!-- /figures -->\n"
    path.write_text(before + marked + after)


def publish(run: Path, trunk: Path, here: Path, seed: int, count: int) -> None:
    """Write every committed file of the demo into `here`, whose README.md has the text."""
    model = here / "motion.safetensors"
    shutil.copyfile(run / "model.safetensors", model)
    shutil.copyfile(run / "training.png", here / "training.png")
    (here / "labels.txt").write_text("\n".join(clips.prompts()) + "\n")
    right = samples_right(write_samples(here / "clips", seed), model)
    results: dict[str, Any] = {
        "schema": "stan-infer/motion/1",
        "licence": "Apache-2.0",
        "date": datetime.date.today().isoformat(),
        "cpu": machine_record()["cpu"],
        "torch": torch.__version__,
        "training": run_record(run),
        "trunk_training": run_record(trunk),
        "samples_right": right,
        **evaluate.evaluate(seed, count, load_model(trunk / "model.safetensors"), model),
    }
    (here / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    write_readme(here / "README.md", results)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, required=True, help="--out of train.py")
    parser.add_argument("--trunk", type=Path, required=True, help="--out of train.py --trunk-only")
    parser.add_argument("--seed", type=int, default=evaluate.SEED)
    parser.add_argument("--clips", type=int, default=evaluate.CLIPS)
    parser.add_argument("--to", type=Path, default=evaluate.HERE)
    options = parser.parse_args(arguments)
    publish(options.run, options.trunk, options.to, options.seed, options.clips)


if __name__ == "__main__":
    main()
