"""Make the demo's committed files from two finished runs of train.py.

python -m examples.motion.publish --run build/motion --trunk build/motion-trunk

Writes motion.safetensors, labels.txt, clips/*.mp4, training.png, results.json and README.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.motion import clips, evaluate
from stan_infer.checkpoints.load import load_model

README = """# Motion demo

A tiny STAN (width 128, 4 trunk layers, 3 branch layers, 8 frames of 64 x 64, its own text
tower) that tells ten motions of a coloured shape: left, right, up, down, grows, shrinks, fades
in, fades out, blinks, stays still. Four pairs of them differ only in the order of the frames,
so a model that ignores order reaches 60 % at most. It is trained on generated clips only and is
good for nothing else: it shows that the product runs a *trained* STAN right, and is the
yardstick of every lower precision.

## Figures

{clips} held-out clips (seed {seed}), written as H.264 (crf {crf}) and read back by
`stan_infer.video.clip`; their background textures are not among the training ones.

{table}

"Between reverses" asks only for the motion or its reverse, on the eight motions that have one:
chance is 50 %. "Text to video": of the captions that some clip has, how many rank such a clip
first. The trunk alone was trained with the same recipe, losses and clips for {trunk_steps}
steps of stage 2. The shuffled row is the trained model on the same clips, the frames of each in
a random order.

The trunk alone is a little above 50 % between reverses because the product takes frames 0 to 13
of 16: a clip that fades in is then dimmer on average than its reverse. Given all 16 frames, the
same weights are at chance.

![training accuracy](training.png)

Trained in {minutes:.0f} minutes on one thread of "{cpu}", a machine shared with other work
(trunk alone: {trunk_minutes:.0f}), torch {torch}, {date}. Training accuracy is measured on raw
frames at the difficulty of that step.

## How it was trained

1. {frame_steps} steps of {images} single frames: trunk and text learn shape, colour, place and
   size.
2. The branch's spatial layers are copied from the trunk. {clip_steps} steps of {drawn} clips,
   each also reversed in time with its label reversed. The clips go from easy (plain background,
   large motions) to full difficulty as fast as the model keeps up. Losses: caption of 400,
   motion of 10, half of shape and colour.
3. Position and time tables start as smooth functions. Only the {words} rows of the word table
   that the sentences use are trained; the others keep small random values, so other words mean
   nothing.

The generator and its difficulties are in `clips.py`. Held-out clips leave out the smallest
motions of the training clips (4 px and more there, {move} px and more here; likewise growth and
fading).

## Licence

`motion.safetensors` was trained from random weights on generated clips, and is under the
[licence of this repository](../../LICENSE), Apache-2.0, like `labels.txt` and `clips/`.

## Again

```
python -m examples.motion.evaluate --clips 2000
python -m examples.motion.train --out build/motion
python -m examples.motion.train --out build/motion-trunk --trunk-only
python -m examples.motion.publish --run build/motion --trunk build/motion-trunk
```

A run that is cut off goes on with the same command. `clips/` holds the first held-out clip of
each motion, chosen by order and not by whether the model gets it right; {sample_right} of the
ten are right.
"""


def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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


def samples_right(paths: list[Path], model_path: Path) -> int:
    """Return how many of the sample clips get their motion right (they are in motion order)."""
    model = load_model(model_path)
    config = model.config
    pixels = np.stack(
        [
            evaluate.read_clip(
                p, frames=config.frames, short_side=config.short_side, crop=config.image_size
            )
            for p in paths
        ]
    )
    video = evaluate.embed_clips(lambda v: model.encode_video(v).mean(1), pixels)
    scores = evaluate.cosine_scores(evaluate.embed_texts(model, clips.prompts()), video)
    return int((scores.argmax(0) == np.arange(len(paths))).sum())


def publish(run: Path, trunk: Path, here: Path, seed: int, count: int) -> None:
    """Write every committed file of the demo into `here`."""
    from examples.motion.train import used_words

    shutil.copyfile(run / "model.safetensors", here / "motion.safetensors")
    shutil.copyfile(run / "training.png", here / "training.png")
    (here / "labels.txt").write_text("\n".join(clips.prompts()) + "\n")
    right = samples_right(write_samples(here / "clips", seed), here / "motion.safetensors")
    measured = evaluate.evaluate(
        seed, count, load_model(trunk / "model.safetensors"), here / "motion.safetensors"
    )
    results: dict[str, Any] = {
        "schema": "stan-infer/motion/1",
        "licence": "Apache-2.0",
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "training": run_record(run),
        "trunk_training": run_record(trunk),
        "samples_right": right,
    } | measured
    (here / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    recipe = results["training"]["recipe"]
    text = README.format(
        **{k: results[k] for k in ("clips", "seed", "cpu", "torch", "date")},
        table=evaluate.table(results),
        crf=clips.CRF,
        minutes=results["training"]["minutes"],
        trunk_minutes=results["trunk_training"]["minutes"],
        trunk_steps=results["trunk_training"]["recipe"]["clip_steps"],
        **{k: recipe[k] for k in ("frame_steps", "images", "clip_steps")},
        drawn=recipe["clips"],
        words=len(used_words()),
        move=clips.HELD_OUT.move[0],
        sample_right=right,
    )
    (here / "README.md").write_text(text)


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
