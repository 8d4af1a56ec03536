"""Engines "eager" and "compile": the reference or the fused network in PyTorch, maybe compiled."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stan_infer.artefacts.parts import CHUNK
from stan_infer.artefacts.precision import check_precision
from stan_infer.config import StanConfig
from stan_infer.engines.inputs import (
    Check,
    any_clips,
    check_finite,
    check_video,
    clip_array,
    token_ids,
    until_end,
    wrong_dtype,
)
from stan_infer.engines.session import TEXT_CHUNK, Session, split_device
from stan_infer.engines.stream import Parts
from stan_infer.errors import InputError, MissingError, check_word
from stan_infer.network.fold import fold_video
from stan_infer.network.folded import VideoWeights
from stan_infer.network.model import Stan
from stan_infer.network.torch_ops import encode_branch, encode_trunk, encode_video

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GRAPHS = ("reference", "fused")


class TorchSession(Session):
    """A Stan on a device; see engines.session.Session."""

    def __init__(
        self,
        model: Stan,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        compiled: bool = False,
        graph: str = "reference",
    ) -> None:
        """Put the weights on `device` in `precision`; the caller's model is not changed.

        compiled: run encode_video under torch.compile; each new shape is compiled first. graph:
        "reference", or "fused" for the network rewritten for inference, uint8 clips only.
        Raises InputError for an unknown precision or device, MissingError for an absent device.
        """
        check_precision("engine compile" if compiled else "engine eager", precision, PRECISIONS)
        self._device = self._tensors_on = torch_device(device)
        self._precision = precision
        now, wanted = model.visual.proj, PRECISIONS[precision]
        if now.dtype != wanted or now.device != self._device:
            model = copy.deepcopy(model).to(self._device, wanted)
        self._model = model.eval()
        check_word("graph", graph, GRAPHS)
        self._compiled, self._graph = compiled, graph
        encode: Callable[[Tensor], Tensor] = model.encode_video
        if graph == "fused":
            folded = self._folded

            def encode(clips: Tensor) -> Tensor:
                return encode_video(folded, clips)[1]

        self._encode = torch.compile(encode) if compiled else encode

    @functools.cached_property
    def _folded(self) -> VideoWeights:
        return fold_video(self._model, dtype=PRECISIONS[self._precision])

    @property
    def config(self) -> StanConfig:
        """The model's config."""
        return self._model.config

    @torch.inference_mode()
    def _video(self, video: Any) -> Tensor:
        check = only_uint8("the fused graph") if self._graph == "fused" else any_clips
        clips = clip_tensor(self.config, video, check)
        features = self._encoded(clips.to(self._device)).float()  # [B, T, E]
        return features if self.keeps_rows else features.mean(1)

    def _encoded(self, clips: Tensor) -> Tensor:
        try:
            return self._encode(clips)
        except torch._dynamo.exc.BackendCompilerFailed as e:
            raise MissingError(
                f"engine compile cannot compile here ({str(e).splitlines()[0][:200]}): it needs a "
                "C++ compiler, as in: apt install g++; or use --engine eager"
            ) from e

    @torch.inference_mode()
    def _text(self, texts: Any) -> Tensor:
        ids = token_ids(self.config, texts)
        parts = [ids[i : i + TEXT_CHUNK] for i in range(0, len(ids), TEXT_CHUNK)]
        encode = self._model.encode_text_tokens
        if not self.keeps_rows:
            encode, parts = self._model.encode_text, [until_end(part) for part in parts]
        return torch.cat([encode(torch.from_numpy(p).to(self._device)).float() for p in parts])

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "compile" if self._compiled else "eager",
            "device": str(self._device),
            "precision": self._precision,
            "graph": self._graph,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    def _parts(self) -> Parts:
        """See Session.stream; the parts are of the fused network, whatever the session's graph."""
        return _TorchParts(self)

    def _free(self) -> None:
        del self._model, self._encode
        self.__dict__.pop("_folded", None)


class _TorchParts(Parts):
    """Parts of folded weights; rows have the weights' dtype, on their device."""

    def __init__(self, session: TorchSession) -> None:
        self._session, self._weights = session, session._folded
        self.windows, self.at_once = (1, session.config.max_frames), CHUNK
        self._trunk: Callable[[VideoWeights, Tensor], list[Tensor]] = encode_trunk
        self._branch: Callable[..., tuple[Tensor, Tensor]] = encode_branch
        if session._compiled:
            self._trunk, self._branch = torch.compile(encode_trunk), torch.compile(encode_branch)

    def check_open(self) -> None:
        self._session._check_open()

    @torch.inference_mode()
    def trunk(self, frames: np.ndarray) -> list[Tensor]:
        device = self._weights.head.weight.device
        return self._trunk(self._weights, torch.from_numpy(frames).to(device))

    @torch.inference_mode()
    def branch(self, rows: Sequence[Tensor]) -> Tensor:
        mean, frames = self._branch(self._weights, rows)
        return (frames if self._session.keeps_rows else mean).float()

    def room(self, frames: int) -> list[Tensor]:
        w = self._weights
        tokens, width = w.patches.table.shape
        return [w.head.weight.new_empty((frames, tokens + 1, width)) for _ in w.branch]


def only_uint8(what: str) -> Check:
    """Return a check for clip_tensor: clips are uint8, because `what` takes no others."""

    def check(shape: tuple[int, ...], dtype: str) -> None:
        if dtype != "uint8":
            raise InputError(f"video is {dtype}; {what} takes uint8 [B, T, S, S, 3]")

    return check


def clip_tensor(config: StanConfig, video: Any, check: Check = any_clips) -> Tensor:
    """As session.clip_array, as a tensor; one that is given stays on its device."""
    if not isinstance(video, Tensor):
        clips = clip_array(config, video, check)
        return torch.from_numpy(clips if clips.flags.writeable else clips.copy())
    is_uint8 = video.dtype == torch.uint8
    if not is_uint8 and not video.is_floating_point():
        raise wrong_dtype(str(video.dtype).removeprefix("torch."))
    check_video(config, tuple(video.shape), is_uint8)
    check(tuple(video.shape), "uint8" if is_uint8 else "float32")
    if is_uint8:
        return video
    video = video.detach().float()
    finite = torch.isfinite(video).flatten(1).all(1)
    check_finite(i for i, is_finite in enumerate(finite.tolist()) if not is_finite)
    return video


def torch_device(device: str) -> torch.device:
    """Return the device asked for; InputError for an unknown word, MissingError if absent."""
    kind, index = split_device(device, ["cpu", "cuda"])
    if kind == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or "none"
        raise MissingError(
            f"device '{device}' is not here: torch {torch.__version__} (built for CUDA {built}) "
            "finds no GPU; use --device cpu, or see: stan-infer doctor"
        )
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise MissingError(f"device '{device}' is not here: {torch.cuda.device_count()} GPUs found")
    return torch.device(device)


def open_torch(
    source: str | Path | Stan,
    *,
    settings: Mapping[str, Any] | None = None,
    threads: int | None = None,
    **options: Any,
) -> TorchSession:
    """Load a checkpoint, unless it is a Stan already.

    threads: CPU threads of torch, which are those of the whole process. options: see TorchSession.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    # Not for a Stan that is given: weight formats need packages of their own.
    from stan_infer.checkpoints.load import load_model

    model = load_model(source, settings) if isinstance(source, (str, Path)) else source
    return TorchSession(model, **options)
