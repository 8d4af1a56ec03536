"""Session: the interface of every engine, and the checks that do not depend on the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.config import StanConfig
from stan_infer.errors import InputError, nearest
from stan_infer.scores import head_scores
from stan_infer.text.tokenizer import tokenize
from stan_infer.video.clip import read_clip_info
from stan_infer.video.spec import ClipSpec

TEXT_CHUNK = 256  # texts per call of a network: 100,000 labels at once would take 130 GB


class Session(ABC):
    """A model opened on a device.

    It takes tensors or numpy arrays. Engines of torch return tensors, TensorRT's return tensors for
    clips and numpy arrays for texts, the others numpy arrays; all are float32. B clips, T frames,
    Q texts, L tokens, E embedding width.
    """

    @property
    @abstractmethod
    def config(self) -> StanConfig:
        """The model's config."""

    @abstractmethod
    def embed_video(self, video: Any) -> Any:
        """Clips -> [B, E], or [B, T, E] with a Mug head; features are not normalised.

        video: uint8 [B, T, H, W, 3] RGB, or float32 [B, T, 3, H, W] normalised by the config's mean
        and std. The layout follows the dtype and is never guessed. Raises InputError.
        """

    @abstractmethod
    def embed_text(self, texts: Sequence[str] | Any) -> Any:
        """Texts or int ids [Q, L] -> [Q, E], or [Q, L, E] with a Mug head; not normalised."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts about the session, as JSON types.

        Keys: "engine", "device", "precision"; the version of each runtime, by its package
        ("torch", "onnxruntime", ...); "provider" if the runtime has several; all that was chosen
        for the user.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the memory; the session cannot be used afterwards."""

    @property
    def vocabulary(self) -> Path | None:
        """The tokenizer.json that strings are tokenised with; None: that of installed open_clip."""
        return None

    def score(self, texts: Sequence[str] | Any, video: Any) -> Any:
        """Texts x clips -> [Q, B]: cosine, or the Mug score."""
        ids = token_ids(self.config, as_numpy(texts), self.vocabulary)
        text, clips = as_numpy(self.embed_text(ids)), as_numpy(self.embed_video(video))
        return score_features(self.config, text, ids, clips)

    def read_clip(self, path: str | Path, decoder: str = "auto") -> np.ndarray:
        """Read one video as this model wants it: uint8 [T, H, W, 3]."""
        return read_config_clip(self.config, path, decoder)


def check_video(config: StanConfig, shape: tuple[int, ...], is_uint8: bool) -> None:
    """Raise InputError for clips of a wrong shape; the layout follows the dtype, not the sizes."""
    s, layout = config.image_size, "[B,T,H,W,3]" if is_uint8 else "[B,T,3,H,W]"
    kind = "uint8" if is_uint8 else "float"
    want = (s, s, 3) if is_uint8 else (3, s, s)
    if len(shape) != 5 or shape[2:] != want:
        full = ", ".join(map(str, ("B", "T", *want)))
        raise InputError(f"video has shape {list(shape)}; {kind} clips are {layout}: [{full}]")
    if shape[0] < 1:
        raise InputError("video holds no clips: B is 0")
    if not 1 <= shape[1] <= config.max_frames:
        raise InputError(
            f"video has {shape[1]} frames; this model's time table has {config.max_frames} rows: "
            f"give 1 to {config.max_frames} frames"
        )


def token_ids(config: StanConfig, texts: Any, vocabulary: Path | None = None) -> np.ndarray:
    """Strings or ids -> int64 [Q, L], checked against the text tower's tables.

    Raises InputError for a model without a text tower, wrong shapes, ids out of range.
    """
    if not config.has_text:
        raise InputError("this model has no text tower: its checkpoint holds the video side only")
    if isinstance(texts, str) or (
        not hasattr(texts, "shape") and all(isinstance(t, str) for t in texts)
    ):
        if config.vocab_size != 49408:
            raise InputError(
                f"the vocabulary has {config.vocab_size} entries, not CLIP's 49408: strings cannot "
                "be tokenised; give int ids [Q, L]"
            )
        return tokenize(texts, config.context_length, vocabulary=vocabulary)
    ids = np.asarray(texts)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or 0 in ids.shape:
        raise InputError(f"token ids have shape {list(ids.shape)}, {ids.dtype}; need int [Q, L]")
    if ids.shape[1] > config.context_positions:
        raise InputError(
            f"token ids are {ids.shape[1]} long; the text tower has {config.context_positions} rows"
        )
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise InputError(
            f"token ids span {ids.min()} to {ids.max()}; allowed are 0 to {config.vocab_size - 1}"
        )
    return ids.astype(np.int64)


def score_features(
    config: StanConfig, text: np.ndarray, ids: np.ndarray, video: np.ndarray
) -> np.ndarray:
    """Return the scores [Q, B] of features from embed_text, for `ids` [Q, L], and embed_video."""
    return head_scores(config.head, text, ids != 0, video, tau=config.mug_tau)


def as_numpy(values: Any) -> Any:
    """Return a tensor on any device as a numpy array; anything else as it is."""
    return values.cpu().numpy() if hasattr(values, "cpu") else values


def read_config_clip(config: StanConfig, path: str | Path, decoder: str = "auto") -> np.ndarray:
    """Read one video as `config` wants it: uint8 [T, H, W, 3]."""
    return read_clip_info(path, ClipSpec.of(config, decoder=decoder)).pixels


def split_device(device: str, kinds: Sequence[str]) -> tuple[str, str]:
    """ "cuda:1" -> ("cuda", "1"), "cpu" -> ("cpu", ""); InputError for a word not in `kinds`."""
    kind, colon, index = device.partition(":")
    if kind not in kinds or (colon and (kind == "cpu" or not index.isdigit())):
        raise InputError(
            f"device '{device}' is unknown{nearest(kind, list(kinds))} "
            f"({', '.join(kinds)}, {kinds[-1]}:1)"
        )
    return kind, index
