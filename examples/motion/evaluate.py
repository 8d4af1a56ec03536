"""Measure the motion demo on held-out clips: python -m examples.motion.evaluate [--clips 2000].

Every clip is written as H.264 and read back by stan_infer.video, with the product's own sampling,
resize and crop. Needs about 50 ms a clip on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from examples.motion import clips
from stan_infer.checkpoints.load import load_model
from stan_infer.config import StanConfig
from stan_infer.engines.session import read_config_clip
from stan_infer.network.model import Stan
from stan_infer.scores import cosine_scores
from stan_infer.text.tokenizer import tokenize

HERE = Path(__file__).resolve().parent
MODEL = HERE / "motion.safetensors"
SEED, CLIPS = 1, 2000
Answers = dict[str, NDArray[np.int64]]


def held_out_pixels(seed: int, count: int, config: StanConfig) -> tuple[NDArray[np.uint8], Answers]:
    """Return clips as the product reads them, uint8 [n, T, S, S, 3], and what each shows."""
    pixels, answers = [], []
    bank = clips.texture_bank("held-out")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for i in range(count):
            clip = clips.held_out_clip(seed, i, bank)
            clips.write_mp4(path, clip.frames)
            pixels.append(read_config_clip(config, path))
            answers.append((clip.motion, clip.caption_index, clip.shape, clip.colour))
    names = ("motion", "caption", "shape", "colour")
    columns = np.array(answers, np.int64).T
    return np.stack(pixels), dict(zip(names, columns, strict=True))


def shuffle_frames(pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Return the clips [n, T, ...] with the frames of each in an order of its own."""
    rng = np.random.default_rng([seed, 1])
    order = rng.permuted(np.tile(np.arange(pixels.shape[1]), (len(pixels), 1)), axis=1)
    return pixels[np.arange(len(pixels))[:, None], order]


def embed_clips(
    encode: Callable[[Tensor], Tensor], pixels: NDArray[np.uint8], batch: int = 50
) -> NDArray[np.float32]:
    """Return embeddings float32 [n, E]; encode takes uint8 [B, T, S, S, 3] and gives [B, E]."""
    with torch.inference_mode():
        parts = [
            encode(torch.from_numpy(pixels[i : i + batch])) for i in range(0, len(pixels), batch)
        ]
    return torch.cat(parts).numpy()


def embed_texts(model: Stan, texts: list[str]) -> NDArray[np.float32]:
    """Return embeddings float32 [Q, E]."""
    with torch.inference_mode():
        return model.encode_text(
            torch.from_numpy(tokenize(texts, model.config.context_length))
        ).numpy()


def measure(model: Stan, video: NDArray[np.float32], answers: Answers) -> dict[str, Any]:
    """Return counts of right answers.

    motion: of 10 prompts; caption: of 400; pair: between a motion and its reverse, on clips of the
    eight motions that differ only in order; text_to_video: of the captions that some clip has, how
    many rank a clip of their own first; motions: right answers of each motion.
    """
    scores = cosine_scores(embed_texts(model, clips.prompts()), video).T  # [n, 10]
    motion, rows = answers["motion"], np.arange(len(video))
    right = scores.argmax(1) == motion
    reverse = np.array(clips.REVERSED)[motion]
    paired = reverse != motion
    pair = scores[rows, motion] > scores[rows, reverse]
    ranked = cosine_scores(embed_texts(model, clips.captions()), video)  # [400, n]
    asked = np.unique(answers["caption"])
    found = answers["caption"][ranked[asked].argmax(1)] == asked
    return {
        "motion": _share(right),
        "caption": _share(ranked.argmax(0) == answers["caption"]),
        "pair": _share(pair[paired]),
        "text_to_video": _share(found),
        "motions": {name: _share(right[motion == i]) for i, name in enumerate(clips.MOTIONS)},
    }


def _share(right: NDArray[np.bool_]) -> dict[str, float | int]:
    return {"right": int(right.sum()), "of": len(right), "accuracy": float(right.mean())}


def evaluate(
    seed: int, count: int, trunk: Stan | None = None, path: Path = MODEL
) -> dict[str, Any]:
    """Measure the demo's model, the same on shuffled frames, and the trunk-only model if given."""
    from examples.motion.train import encode_trunk

    model = load_model(path)
    pixels, answers = held_out_pixels(seed, count, model.config)

    def encode(video: Tensor) -> Tensor:
        return model.encode_video(video).mean(1)

    results = {
        "seed": seed,
        "clips": count,
        "model": measure(model, embed_clips(encode, pixels), answers),
        "shuffled": measure(model, embed_clips(encode, shuffle_frames(pixels, seed)), answers),
    }
    if trunk is not None:
        video = embed_clips(lambda v: encode_trunk(trunk, v), pixels)
        results["trunk_only"] = measure(trunk, video, answers)
    return results


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    names = {
        "model": "STAN",
        "shuffled": "STAN, frames shuffled",
        "trunk_only": "trunk alone, mean-pooled",
    }
    lines = [
        "| model | motion, of 10 | between reverses | caption, of 400 | text to video |",
        "|---|---|---|---|---|",
    ]
    for key, name in names.items():
        if key in results:
            cells = [
                # A no-break space: a value stays in one line.
                "{accuracy:.1%}\N{NO-BREAK SPACE}({right}/{of})".format(**results[key][k])
                for k in ("motion", "pair", "caption", "text_to_video")
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, evaluate, print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--trunk", type=Path, help="model.safetensors of train.py --trunk-only")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    trunk = load_model(options.trunk) if options.trunk else None
    results = evaluate(options.seed, options.clips, trunk, options.model)
    print(f"evaluated in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if options.json:
        print(json.dumps({"schema": "stan-infer/motion/1"} | results))
    else:
        print(table(results))


if __name__ == "__main__":
    main()
