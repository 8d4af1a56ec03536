"""What `verify` compares: a checkpoint, an exported folder or one .onnx file, step by step.

Each step is what a deployed client would do: for a checkpoint the product's own code, for a folder
what its manifest and its files say, and nothing that the config would say instead. Steps raise
InputError; `verify` makes failed stages of them.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stan_infer.config import StanConfig
from stan_infer.scores import head_scores
from stan_infer.video.clip import regular_file
from stan_infer.video.pyav_reader import errors_named, read_pyav

if TYPE_CHECKING:
    pass

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Form:
    """How a video graph wants its pixels: uint8 as they are, or float32 normalised."""

    dtype: str  # uint8 or float32
    layout: str  # BTHWC or BTCHW


UINT8, FLOAT = Form("uint8", "BTHWC"), Form("float32", "BTCHW")


def to_input(
    pixels: np.ndarray, form: Form, mean: Sequence[float], std: Sequence[float], color: str = "RGB"
) -> np.ndarray:
    """RGB pixels uint8 [B, T, S, S, 3] -> the tensor of a graph's input."""
    x = pixels[..., ::-1] if color == "BGR" else pixels
    if form.dtype != "uint8":
        x = (x.astype(np.float32) - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(x if form.layout == "BTHWC" else np.moveaxis(x, -1, 2))


class Source(ABC):
    """One side of a comparison; `lacks` says why a step is not there, and the others run."""

    kind: str  # checkpoint, folder or graph
    name: str
    engine: str
    precision: str
    config: StanConfig | None = None
    form = UINT8  # of the video tower's input
    side = 224  # of its frames, pixels

    @abstractmethod
    def lacks(self, step: str) -> str | None:
        """Why there is no step decode, resize, input, ids, video, text or score; None: there is."""

    @abstractmethod
    def limits(self, axis: str) -> tuple[int, int]:
        """Smallest and largest size of "frames", "batch" or "length"."""

    @abstractmethod
    def sampled(self) -> int:
        """T, the frames that are taken from a video."""

    @abstractmethod
    def indices(self, total: int, frames: int) -> np.ndarray:
        """The numbers [T] of the frames that are taken of `total`."""

    @abstractmethod
    def pixels(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Frames of one size, uint8 [H, W, 3] each -> uint8 [T, S, S, 3]."""

    @abstractmethod
    def prepare(self, pixels: np.ndarray, form: Form | None = None) -> np.ndarray:
        """Pixels uint8 [B, T, S, S, 3] -> a graph's input; None: of the form that it is told."""

    @abstractmethod
    def ids(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids int64 [Q, L]."""

    @abstractmethod
    def video(self, tensor: np.ndarray) -> Arrays:
        """A prepared tensor -> video_embeds [B, E], frame_embeds [B, T, E]."""

    @abstractmethod
    def text(self, ids: np.ndarray) -> Arrays:
        """Ids -> text_embeds [Q, E], token_embeds [Q, L, E]."""

    @abstractmethod
    def score(self, text: Arrays, ids: np.ndarray, video: Arrays) -> np.ndarray:
        """Scores [Q, B] over the temperature."""

    def labels(self) -> tuple[list[str], Arrays] | None:
        """Texts of the classes and what was baked of them, where a folder has classes."""
        return None

    def class_outputs(self, tensor: np.ndarray) -> Arrays:
        """The graph's own class scores, where it has that head."""
        return {}

    def graph_path(self, role: str) -> Path | None:
        """The graph of a tower, where there is one."""
        return None

    def known_faults(self) -> list[dict[str, str]]:
        """What was reported of the runtime's version, where it may apply."""
        return []

    def damage(self) -> list[str] | None:
        """Files that are not the ones exported; None where nothing says what they should be."""
        return None


def decode(source: Source, path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Frame numbers [T] as the source samples them, and the frames, uint8 [H, W, 3] each."""
    frames = source.sampled()
    file = regular_file(path)
    with errors_named(path):
        found = read_pyav(file, lambda total: source.indices(total, frames), lambda image: image)
    return found.indices, [found.images[i] for i in found.indices.tolist()]


def score_arrays(config: StanConfig, text: Arrays, mask: np.ndarray, video: Arrays) -> np.ndarray:
    """Scores [Q, B] over the temperature, from what the towers gave."""
    names = ("token_embeds", "frame_embeds") if config.is_mug else ("text_embeds", "video_embeds")
    features = text[names[0]], mask, video[names[1]]
    return head_scores(config.head, *features, tau=config.mug_tau) / config.temperature
