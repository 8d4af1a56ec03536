"""python -m tests.golden.make: write this project's own golden set.

Run it only when the reference has just passed on the authors' golden data: what it writes is what
a plain clone is held against. Random weights, seeds fixed; numbers say nothing about quality.
"""

from pathlib import Path

import numpy as np
import torch

from benchmarks.load import write_authors_checkpoint
from stan_infer.checkpoints.load import load_model
from stan_infer.scores import cosine_scores, mug_scores
from stan_infer.text.tokenizer import tokenize
from stan_infer.video.clip import sample_indices
from tests.conftest import clips, tiny_config

HERE = Path(__file__).parent
SETTINGS = {"heads": 2, "text_heads": 2}
TEXTS = [
    "A dog runs",
    "caf\u00e9 &amp;amp; cr\u00e8me, 2 for $3.50!",
    "",
    "\u4f60\u597d \U0001f600 don't",
    "very " * 40 + "long",
]
COUNTS = [1, 2, 7, 12, 13, 40, 90, 1000, 54321]


def token_ids(config) -> np.ndarray:
    """Five texts of the tiny vocabulary, padded, the last one without an end token."""
    ids = np.random.default_rng(1).integers(1, config.vocab_size - 2, (5, 12))
    ids[:, 0] = config.vocab_size - 2
    for i, row in enumerate(ids[:-1]):
        row[3 + 2 * i :] = 0
        row[3 + 2 * i] = config.vocab_size - 1
    return ids


def main() -> None:
    """Write tiny.pth, conv.pth and golden.npz."""
    arrays: dict[str, np.ndarray] = {}
    for name, branch in (("tiny", "selfattn"), ("conv", "conv")):
        config = tiny_config(branch=branch, width=16 if branch == "conv" else 32)
        write_authors_checkpoint(HERE / f"{name}.pth", config)
        model = load_model(HERE / f"{name}.pth", SETTINGS).double()
        video = clips(2, 5, 16, seed=9)
        frames = model.encode_video(torch.from_numpy(video)).numpy()
        arrays[f"{name}_frames"] = frames
        ids = token_ids(config)
        text = model.encode_text(torch.from_numpy(ids)).numpy()
        tokens = model.encode_text_tokens(torch.from_numpy(ids)).numpy()
        arrays |= {f"{name}_text": text, f"{name}_tokens": tokens}
        arrays[f"{name}_cosine"] = cosine_scores(text, frames.mean(1))
        arrays[f"{name}_mug"] = mug_scores(tokens, ids != 0, frames, mode="mug")
    arrays["ids_32"] = tokenize(TEXTS, 32, truncation="authors").astype(np.int32)
    arrays["ids_32_keep"] = tokenize(TEXTS, 32).astype(np.int32)
    arrays["indices"] = np.stack([sample_indices(n, 12) for n in COUNTS])
    np.savez_compressed(HERE / "golden.npz", **arrays)


if __name__ == "__main__":
    main()
