"""A checkpoint as a side of a comparison, run in eager mode by the product's own code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stan_infer.config import StanConfig
from stan_infer.text.tokenizer import tokenize
from stan_infer.verification.side import UINT8, Arrays, Form, Side, score_arrays, to_input
from stan_infer.video.clip import resize_crop, sample_indices

if TYPE_CHECKING:
    from stan_infer.network.model import Stan


class Checkpoint(Side):
    """A Stan in engine eager, in fp32."""

    kind, engine, precision = "checkpoint", "eager", "fp32"
    config: StanConfig

    def __init__(self, model: Stan, name: str) -> None:
        """Take a model, which is brought to fp32."""
        self.model, self.name = model.float().eval(), name
        self.config, self.image_size = model.config, model.config.image_size

    def lacks(self, step: str) -> str | None:
        if step in ("ids", "text", "score") and not self.config.has_text:
            return "no text tower"
        if step == "ids" and self.config.vocab_size != 49408:
            return f"a vocabulary of {self.config.vocab_size} entries, not CLIP's"
        return None

    def limits(self, axis: str) -> tuple[int, int]:
        c = self.config
        known = {
            "frames": c.max_frames,
            "batch": 4096,
            "texts": 4096,
            "length": c.context_positions,
        }
        return 1, known[axis]

    def sampled(self) -> int:
        return self.config.frames

    def indices(self, total: int, frames: int) -> np.ndarray:
        return sample_indices(total, frames)

    def pixels(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return resize_crop(images, self.config.short_side, self.config.image_size)

    def prepare(self, pixels: np.ndarray, form: Form | None = None) -> np.ndarray:
        import torch

        form = form or UINT8
        if form.dtype == "uint8":
            return to_input(pixels, form, (), ())
        x = self.model.normalize(torch.from_numpy(pixels)).numpy()
        return np.ascontiguousarray(x if form.layout == "BTCHW" else np.moveaxis(x, 2, -1))

    def ids(self, texts: Sequence[str]) -> np.ndarray:
        return tokenize(texts, self.config.context_length)

    def video(self, tensor: np.ndarray) -> Arrays:
        import torch

        with torch.inference_mode():
            frames = self.model.encode_video(torch.from_numpy(tensor)).float()
            return {"video_embeds": frames.mean(1).numpy(), "frame_embeds": frames.numpy()}

    def text(self, ids: np.ndarray) -> Arrays:
        import torch

        with torch.inference_mode():
            given = torch.from_numpy(np.asarray(ids, np.int64))
            end = self.model.encode_text(given).float().numpy()
            tokens = self.model.encode_text_tokens(given).float().numpy()
        return {"text_embeds": end, "token_embeds": tokens}

    def score(self, text: Arrays, ids: np.ndarray, video: Arrays) -> np.ndarray:
        return score_arrays(self.config, text, ids != 0, video)

    def patches(self) -> tuple[np.ndarray, np.ndarray]:
        from stan_infer.network.fold import fold_video

        made = fold_video(self.model, on_demand=True).patches
        return made.weight.detach().numpy(), made.table.detach().numpy()

    def exact_weights(self, role: str, input: str) -> tuple[Any, StanConfig]:
        import torch

        from stan_infer.network.fold import fold_text, fold_video

        with torch.inference_mode():
            if role == "text":
                return fold_text(self.model), self.config
            return fold_video(self.model, input=input), self.config
