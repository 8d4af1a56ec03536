"""Inputs to check graphs with: random ones of any shape, and a folder's golden set."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stan_infer.artefacts.parts import row_names
from stan_infer.artefacts.precision import TOLERANCES
from stan_infer.config import StanConfig
from stan_infer.errors import CheckError
from stan_infer.export import golden_clip
from stan_infer.export.options import ExportOptions, Range
from stan_infer.export.parity import Case
from stan_infer.network.folded import VideoWeights
from stan_infer.network.model import Stan
from stan_infer.network.torch_ops import encode_trunk
from stan_infer.scores import cosine_scores, head_scores
from stan_infer.text.tokenizer import tokenize
from stan_infer.video.clip import resize_crop, sample_indices
from stan_infer.video.synthetic import moving_frames

TEXTS = (
    "a dog runs across a field",
    "Two people don't talk; they dance!",
    "a red cross moves left",
    "caf\u00e9 &amp; na\u00efve \u2013 100% \u65e5\u672c\u8a9e",
    "someone is playing the guitar on a stage in front of a very large and very loud crowd",
)
_CLIPS, _RAW_FRAMES = 2, 3


def random_clips(config: StanConfig, b: int, t: int, input: str, seed: int) -> np.ndarray:
    """Noise in the layout of `input`: uint8 [B, T, S, S, 3] or float32 [B, T, 3, S, S]."""
    s, rng = config.image_size, np.random.default_rng(seed)
    if input == "uint8":
        return rng.integers(0, 256, (b, t, s, s, 3), dtype=np.uint8)
    return rng.standard_normal((b, t, 3, s, s), dtype=np.float32)


def random_ids(config: StanConfig, q: int, length: int, seed: int) -> np.ndarray:
    """Ids int32 [Q, L]: start token, random ids, end token, zeros; rows differ in length."""
    ids = np.random.default_rng(seed).integers(1, config.vocab_size - 2, (q, length))
    ids[:, 0] = config.vocab_size - 2
    for i, row in enumerate(ids):
        end = 1 + i % (length - 1)
        row[end:] = 0
        row[end] = config.vocab_size - 1
    return ids.astype(np.int32)


def video_case(
    config: StanConfig,
    size: tuple[int, int],
    input: str,
    run: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Case:
    """Random clips of size (B, T), and the two embeddings, mean and frames', that `run` gives."""
    clips = random_clips(config, *size, input, seed=100 * size[0] + size[1])
    mean, frames = (x.numpy() for x in run(torch.from_numpy(clips)))
    return Case(size, {"video": clips}, {"video_embeds": mean, "frame_embeds": frames})


def split_cases(
    config: StanConfig,
    weights: VideoWeights,
    limits: Mapping[str, Range],
    input: str,
    run: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> dict[str, list[Case]]:
    """Cases of the two parts of the video tower, by role.

    The rows are those of `weights`, folded for `input`, in torch; the embeddings what `run` gives,
    as in video_case.
    """
    names = row_names(config)
    found: dict[str, list[Case]] = {"trunk": [], "branch": []}
    for size in ((1, 1), (2, 3), (1, 64)):
        b, t = (min(max(n, limits[k][0]), limits[k][1])
                for n, k in zip(size, ("batch", "frames"), strict=True))  # fmt: skip
        clips = torch.from_numpy(random_clips(config, b, t, input, seed=100 * b + t))
        frames = clips.flatten(0, 1)
        rows = [x.numpy() for x in encode_trunk(weights, frames)]
        if size[1] < 64:
            taps = dict(zip(names, rows, strict=True))
            found["trunk"].append(Case((len(frames),), {"frames": frames.numpy()}, taps))
        feeds = {k: x.reshape(b, t, *x.shape[1:]) for k, x in zip(names, rows, strict=True)}
        mean, each = (x.numpy() for x in run(clips))
        wanted = {"video_embeds": mean, "frame_embeds": each}
        found["branch"].append(Case((b, t), feeds, wanted))
    return found


def write_golden(
    path: Path, model: Stan, options: ExportOptions, classes: np.ndarray | None
) -> dict[str, Any]:
    """Write golden.npz from the model in fp32, and golden.clip; return their entry in the manifest.

    classes: embeddings [n, E] of the labels, if the graph has a class head over them. Raises
    CheckError if an output of the model is not finite.
    """
    config = model.config
    arrays: dict[str, np.ndarray] = {}
    # Decoded frames of a size that needs the resize, and what our own resize makes of them.
    side = config.short_side
    arrays["frames"] = moving_frames(_RAW_FRAMES, side + side // 3 + 1, 2 * side - 3)
    arrays["pixels"] = resize_crop(arrays["frames"], short_side=side, crop=config.image_size)
    low, high = options.frame_range(config)
    t = min(max(config.frames, low), high)
    # An encoded clip, under a name that no search for videos finds, and the frames taken from it.
    clip = path.with_suffix(".clip")
    shutil.copyfile(golden_clip.CLIP, clip)
    arrays["clip"] = golden_clip.frames(sample_indices(golden_clip.FRAMES, t).tolist())
    b = min(max(_CLIPS, options.batch_range()[0]), options.batch_range()[1])
    clips = np.stack([moving_frames(t, config.image_size, config.image_size, i) for i in range(b)])
    pixels = torch.from_numpy(clips)
    with torch.inference_mode():
        floats = model.normalize(pixels)
        frames = model.encode_video(floats).float()
        arrays["video"] = clips if options.input == "uint8" else floats.contiguous().numpy()
        arrays["frame_embeds"], arrays["video_embeds"] = frames.numpy(), frames.mean(1).numpy()
        texts = list(TEXTS) if config.vocab_size == 49408 else []
        if config.has_text and options.tower != "video":
            ids = (
                tokenize(texts, config.context_length).astype(np.int32)
                if texts
                else random_ids(config, 3, config.context_length, seed=0)
            )
            tokens = model.encode_text_tokens(torch.from_numpy(ids)).float().numpy()
            end = tokens[np.arange(len(ids)), ids.argmax(-1)]
            arrays |= {"input_ids": ids, "text_embeds": end, "token_embeds": tokens}
            one, other = (tokens, "frame_embeds") if config.is_mug else (end, "video_embeds")
            arrays["scores"] = head_scores(
                config.head, one, ids != 0, arrays[other], tau=config.mug_tau
            )
        else:
            texts = []
    if classes is not None:
        arrays["class_scores"] = cosine_scores(classes, arrays["video_embeds"]).T
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise CheckError(f"the model's own {name} are not finite on the golden clips")
    # numpy's stub takes any keyword for its own allow_pickle.
    np.savez(path, **arrays)  # type: ignore[arg-type]
    tolerance = TOLERANCES[options.precision]
    return {
        "file": path.name,
        "clip": clip.name,
        "texts": texts,
        "video_tolerance": tolerance,
        "text_tolerance": tolerance,
        "score_tolerance": tolerance,
    }
