"""One side of a comparison: a model that `verify` runs step by step.

Each step is what a deployed client would do. A checkpoint is run by the product's own code; an
exported folder by what its manifest and its files say, and by nothing that the config would say
instead. A step raises InputError, which `verify` turns into a failed stage.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stan_infer.config import StanConfig
from stan_infer.errors import InputError
from stan_infer.scores import head_scores
from stan_infer.text.templates import Templates
from stan_infer.verification.stored import StoredGraph
from stan_infer.video.clip import regular_file
from stan_infer.video.pyav_reader import errors_named, read_pyav

if TYPE_CHECKING:
    from stan_infer.artefacts.calibration_record import Record

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Form:
    """How a video graph takes its pixels: uint8 as they are, or float32 normalised."""

    dtype: str  # uint8 or float32
    layout: str  # BTHWC or BTCHW


UINT8, FLOAT = Form("uint8", "BTHWC"), Form("float32", "BTCHW")


def to_input(
    pixels: np.ndarray, form: Form, mean: Sequence[float], std: Sequence[float], color: str = "RGB"
) -> np.ndarray:
    """Turn RGB pixels uint8 [B, T, S, S, 3] into the input of a video graph."""
    x = pixels[..., ::-1] if color == "BGR" else pixels
    if form.dtype != "uint8":
        x = (x.astype(np.float32) - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(x if form.layout == "BTHWC" else np.moveaxis(x, -1, 2))


@dataclasses.dataclass(frozen=True)
class Claims:
    """What is said of a tower's graph; sizes that are fixed, None for a dynamic axis."""

    precision: str | None = None
    writer: str | None = None  # the source that wrote it, see export.writer
    batch: int | None = None
    frames: int | None = None
    is_fused: bool = False  # it has our names


class Side(ABC):
    """A model of a comparison. `lacks` says why it has no such step; its other steps still run."""

    kind: str  # checkpoint, folder, graph or plan
    name: str
    engine: str
    precision: str
    config: StanConfig | None = None
    form = UINT8  # of the video tower's input
    image_size = 224  # pixels of a frame of the video tower's input

    @abstractmethod
    def lacks(self, step: str) -> str | None:
        """Why there is no step decode, resize, input, ids, video, text or score; None: there is."""

    @abstractmethod
    def limits(self, axis: str) -> tuple[int, int]:
        """Smallest and largest size of the axis "frames", "batch", "texts" or "length"."""

    @abstractmethod
    def sampled(self) -> int:
        """T, the number of frames that are taken from a video."""

    @abstractmethod
    def indices(self, total: int, frames: int) -> np.ndarray:
        """The numbers [T] of the frames that are taken from a video of `total` frames."""

    @abstractmethod
    def pixels(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Resize and crop T frames of one size, uint8 [H, W, 3] each, to uint8 [T, S, S, 3]."""

    @abstractmethod
    def prepare(self, pixels: np.ndarray, form: Form | None = None) -> np.ndarray:
        """Turn pixels uint8 [B, T, S, S, 3] into a graph's input; None: in the documented form."""

    @abstractmethod
    def ids(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids int64 [Q, L] of Q texts."""

    @abstractmethod
    def video(self, tensor: np.ndarray) -> Arrays:
        """A prepared tensor -> video_embeds [B, E], frame_embeds [B, T, E]."""

    @abstractmethod
    def text(self, ids: np.ndarray) -> Arrays:
        """Token ids -> text_embeds [Q, E], token_embeds [Q, L, E]."""

    @abstractmethod
    def score(self, text: Arrays, ids: np.ndarray, video: Arrays) -> np.ndarray:
        """Scores [Q, B], divided by the temperature."""

    def labels(self) -> tuple[list[str], Templates, Arrays] | None:
        """Names of the classes, their templates and stored features, if a folder has classes."""
        return None

    def class_outputs(self, tensor: np.ndarray) -> Arrays:
        """The video graph's own class scores, if it has that head."""
        return {}

    def patches(self) -> tuple[np.ndarray, np.ndarray] | None:
        """W [D, p p 3] and table [P, D]: a row before the first norm is W uint8 pixels + table."""
        try:
            path = self.graph_path("video") if self.form == UINT8 else None
            stored = StoredGraph(path) if path is not None else None
        except InputError:  # a fault that stages name
            return None
        names = [f"video/patches/{n}" for n in ("weight", "positions")]
        if stored is None or any(n not in stored.weights for n in names):
            return None
        weight, table = (stored.array(n) for n in names)
        return weight.T, table

    def graph_path(self, role: str) -> Path | None:
        """The ONNX file of a tower, if there is one."""
        return None

    def claims(self, role: str) -> Claims:
        """What the side says of the ONNX graph of a tower that it has."""
        return Claims()

    def calibration(self) -> Record | None:
        """The calibration of a folder in 8 bits, if it has one."""
        return None

    def exact_weights(self, role: str, input: str) -> tuple[Any, StanConfig] | None:
        """Folded weights in fp32 of a tower, and the config, if the side has them.

        input: "uint8" or "float", of the video tower. Raises MissingError without torch.
        """
        return None

    def known_faults(self) -> list[dict[str, str]]:
        """Faults reported for the runtime's version that may apply here."""
        return []

    def damage(self) -> list[str] | None:
        """Sentences about files that changed since the export; None if no manifest lists them."""
        return None


def tower_of(axis: str) -> str:
    """The tower that an axis of Side.limits belongs to: "video" or "text"."""
    return "text" if axis in ("length", "texts") else "video"


def decode(side: Side, path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Numbers [T] of the frames that this side samples, and these frames, uint8 [H, W, 3] each."""
    frames = side.sampled()
    file = regular_file(path)
    with errors_named(path):
        found = read_pyav(file, lambda total: side.indices(total, frames), lambda image: image)
    return found.indices, [found.images[i] for i in found.indices.tolist()]


def score_arrays(config: StanConfig, text: Arrays, mask: np.ndarray, video: Arrays) -> np.ndarray:
    """Scores [Q, B] of the towers' outputs, divided by the temperature.

    mask: bool [Q, L], false where a text is padded.
    """
    names = ("token_embeds", "frame_embeds") if config.is_mug else ("text_embeds", "video_embeds")
    features = text[names[0]], mask, video[names[1]]
    return head_scores(config.head, *features, tau=config.mug_tau) / config.temperature
