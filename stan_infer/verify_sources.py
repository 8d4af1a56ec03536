"""What `verify` compares: a checkpoint, an exported folder or one .onnx file, step by step.

Each step is what a deployed client would do: for a checkpoint the product's own code, for a folder
what its manifest and its files say, and nothing that the config would say instead. Steps raise
InputError; `verify` makes failed stages of them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stan_infer.config import StanConfig
from stan_infer.decoders import read_pyav, told
from stan_infer.engines import check_engine, open_session
from stan_infer.errors import InputError, MissingError, require
from stan_infer.retrieval import cosine_scores, mug_scores
from stan_infer.tokenizer import tokenize
from stan_infer.video import regular_file, resize_crop, sample_indices

if TYPE_CHECKING:
    from stan_infer.model import Stan

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


class Source:
    """One side of a comparison; `lacks` says why a step is not there, and the others run."""

    kind: str  # checkpoint, folder or graph
    name: str
    engine: str
    precision: str
    config: StanConfig | None = None
    form = UINT8  # of the video tower's input
    side = 224  # of its frames, pixels
    lacks: Callable[[str], str | None]  # decode, resize, input, ids, video, text or score
    limits: Callable[[str], tuple[int, int]]  # of "frames", "batch" or "length"
    sampled: Callable[[], int]  # frames that are taken from a video
    indices: Callable[[int, int], np.ndarray]  # count of frames, T -> their numbers
    pixels: Callable[[Sequence[np.ndarray]], np.ndarray]  # frames of one size -> [T, S, S, 3]
    ids: Callable[[Sequence[str]], np.ndarray]  # int64 [Q, L]
    video: Callable[[np.ndarray], Arrays]  # a prepared tensor -> video_embeds, frame_embeds
    text: Callable[[np.ndarray], Arrays]  # ids -> text_embeds, token_embeds
    score: Callable[[Arrays, np.ndarray, Arrays], np.ndarray]  # text, ids, video -> [Q, B]
    # Pixels [B, T, S, S, 3] -> a graph's input of a form; None is the form that it is told.
    prepare: Callable[..., np.ndarray]  # (pixels, form=None)

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
    with told(path):
        found = read_pyav(file, lambda total: source.indices(total, frames), lambda image: image)
    return found.indices, [found.images[i] for i in found.indices.tolist()]


class _Checkpoint(Source):
    """A Stan in engine eager: the product's own code from its config."""

    kind, engine, precision = "checkpoint", "eager", "fp32"

    def __init__(self, model: Stan, name: str) -> None:
        self.model, self.name, self.config = model.float().eval(), name, model.config
        self._c, self.side = model.config, model.config.image_size

    def lacks(self, step: str) -> str | None:
        if step in ("ids", "text", "score") and not self._c.has_text:
            return "no text tower"
        if step == "ids" and self._c.vocab_size != 49408:
            return f"a vocabulary of {self._c.vocab_size} entries, not CLIP's"
        return None

    def limits(self, axis: str) -> tuple[int, int]:
        high = {"frames": self._c.max_frames, "batch": 4096, "length": self._c.context_positions}
        return 1, high[axis]

    def sampled(self) -> int:
        return self._c.frames

    def indices(self, total: int, frames: int) -> np.ndarray:
        return sample_indices(total, frames)

    def pixels(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return resize_crop(images, self._c.short_side, self._c.image_size)

    def prepare(self, pixels: np.ndarray, form: Form | None = None) -> np.ndarray:
        import torch

        form = form or UINT8
        if form.dtype == "uint8":
            return to_input(pixels, form, (), ())
        x = self.model.normalize(torch.from_numpy(pixels)).numpy()
        return np.ascontiguousarray(x if form.layout == "BTCHW" else np.moveaxis(x, 2, -1))

    def ids(self, texts: Sequence[str]) -> np.ndarray:
        return tokenize(texts, self._c.context_length)

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
        return score_arrays(self._c, text, ids != 0, video)


def open_source(
    source: str | Path | Stan, engine: str | None = None, settings: Mapping[str, Any] | None = None
) -> Source:
    """Open one side of a comparison.

    source: a checkpoint (or an open_clip name and tag, or a loaded Stan), an exported folder, an
    .onnx file, or a .plan in a folder. engine: of a graph "ort" (default) or "openvino"; of a
    checkpoint "eager"; of a plan its own. settings: of a checkpoint. Raises InputError and
    MissingError.
    """
    if engine is not None:
        check_engine(engine)
    path = Path(source) if isinstance(source, (str, Path)) else Path()
    if path.suffix == ".plan":
        from stan_infer.plan_file import read_plan

        own = read_plan(path, check_hash=False).engine
        if engine not in (None, own):
            raise InputError(f"{path} is a plan of engine {own}, not {engine}")
        try:
            require("torch", f"engine {own}", "gpu")
        except MissingError:
            open_session(path)  # says what was changed before what is missing
            raise
        from stan_infer.verify_plan import PlanFile

        return PlanFile(path)
    is_folder = isinstance(source, (str, Path)) and os.path.isdir(path)
    is_graph = is_folder or path.suffix == ".onnx"
    if engine is not None and is_graph != (engine != "eager"):
        word = "an exported folder or an .onnx file" if engine != "eager" else "a checkpoint"
        raise InputError(f"engine {engine} takes {word}, not {source}")
    if is_graph and not os.path.exists(path):
        raise InputError(f"no such file: {path}; check the spelling")
    if is_graph:
        from stan_infer.verify_folder import Folder, GraphFile

        return (Folder if is_folder else GraphFile)(path, engine or "ort")
    if not isinstance(source, (str, Path)):
        return _Checkpoint(source, "a loaded model")
    from stan_infer.checkpoint import load_model, require_torch

    require_torch("verifying a checkpoint", "cpu", source, settings)
    return _Checkpoint(load_model(source, settings), str(source))


def score_arrays(config: StanConfig, text: Arrays, mask: np.ndarray, video: Arrays) -> np.ndarray:
    """Scores [Q, B] over the temperature, from what the towers gave."""
    if config.is_mug:
        tokens, frames = text["token_embeds"], video["frame_embeds"]
        scores = mug_scores(tokens, mask, frames, mode=config.head, tau=config.mug_tau)
    else:
        scores = cosine_scores(text["text_embeds"], video["video_embeds"])
    return scores / config.temperature
