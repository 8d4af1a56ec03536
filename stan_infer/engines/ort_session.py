"""Engine "ort": an exported folder in ONNX Runtime. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stan_infer.artefact import Artefact, Graph
from stan_infer.config import StanConfig
from stan_infer.engines.session import (
    TEXT_CHUNK,
    check_video,
    read_config_clip,
    score_features,
    token_ids,
)
from stan_infer.errors import InputError, MissingError, nearest, require

if TYPE_CHECKING:
    import onnxruntime

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_graph(
    graph: Path | bytes, *, device: str = "cpu", threads: int | None = None
) -> onnxruntime.InferenceSession:
    """Open one ONNX file (or its bytes) on the device asked for, and nowhere else.

    Raises InputError for an unknown device or a graph that ONNX Runtime refuses, MissingError when
    onnxruntime or the device's provider is not here: ONNX Runtime itself would go on on the CPU.
    """
    ort = require("onnxruntime", "engine ort", "stan-infer[runtime]")
    kind, _, index = device.partition(":")
    if kind not in _PROVIDERS or (index and not index.isdigit()):
        raise InputError(
            f"device '{device}' is unknown{nearest(kind, list(_PROVIDERS))} (cpu, cuda, cuda:1)"
        )
    wanted = _PROVIDERS[kind]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    provider: Any = (wanted, {"device_id": index}) if index and kind == "cuda" else wanted
    missing = (
        f"engine ort cannot use {wanted} on device '{device}' here: "
        'pip install "stan-infer[gpu]" on a machine with an NVIDIA driver, or --device cpu'
    )
    if wanted not in ort.get_available_providers():
        raise MissingError(missing)
    try:
        source = graph if isinstance(graph, bytes) else str(graph)
        session = ort.InferenceSession(source, options, providers=[provider])
    except Exception as e:
        # onnxruntime raises its own classes, which share no base but Exception.
        name = "the graph" if isinstance(graph, bytes) else graph.name
        raise InputError(f"ONNX Runtime refuses {name}: {str(e)[:200]}") from e
    if session.get_providers()[0] != wanted:
        raise MissingError(missing)
    return session


def run_graph(
    session: onnxruntime.InferenceSession, output: str, feeds: dict[str, np.ndarray]
) -> np.ndarray:
    """Run one graph for one output; whatever ONNX Runtime raises becomes an InputError."""
    try:
        return session.run([output], feeds)[0]
    except Exception as e:
        # Its own classes share no base but Exception; the inputs were checked, so the graph is bad.
        raise InputError(f"ONNX Runtime cannot run the graph: {str(e)[:200]}") from e


class OrtSession:
    """An artefact in ONNX Runtime; see engines.session.Session."""

    def __init__(
        self,
        artefact: Artefact,
        *,
        device: str = "cpu",
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Open the video graph, and the text graph where there is one.

        precision: must be the artefact's; None takes it. Raises InputError and MissingError.
        """
        video = artefact.graph("video")
        if video is None:
            raise InputError(f"artefact {artefact.path} holds no video graph")
        if precision is not None and precision != video.precision:
            raise InputError(
                f"artefact {artefact.path} is {video.precision}, not {precision}: export it again "
                f"with --precision {precision}"
            )
        self._artefact, self._device, self._video_graph = artefact, device, video
        self._video = _open(artefact, video, device, threads)
        text = artefact.graph("text")
        self._text = _open(artefact, text, device, threads) if text else None

    @property
    def config(self) -> StanConfig:
        """The model's config."""
        return self._artefact.config

    def embed_video(self, video: np.ndarray) -> np.ndarray:
        """See Session.embed_video; the input's dtype must be the one exported."""
        clips = np.ascontiguousarray(video)
        wanted = self._video_graph.inputs[0]["dtype"]
        if clips.dtype != wanted:
            word = "uint8" if clips.dtype == np.uint8 else "float"
            raise InputError(
                f"video is {clips.dtype}; this artefact takes {wanted}: "
                f"convert it, or export with --input {word}"
            )
        check_video(self.config, clips.shape, clips.dtype == np.uint8)
        low, high = self._video_graph.dims.get("batch", (1, len(clips)))
        if not low <= len(clips) <= high:
            raise InputError(f"video has {len(clips)} clips; the artefact takes {low} to {high}")
        name = "frame_embeds" if self.config.is_mug else "video_embeds"
        return run_graph(self._video, name, {"video": clips})

    def embed_text(self, texts: Sequence[str] | np.ndarray) -> np.ndarray:
        """See Session.embed_text; uses the vocabulary inside the artefact."""
        ids = token_ids(self.config, texts, self.vocabulary)
        if self._text is None:
            raise InputError(f"artefact {self._artefact.path} holds no text graph")
        name = "token_embeds" if self.config.is_mug else "text_embeds"
        feeds = ids.astype(np.int32)
        parts = [
            run_graph(self._text, name, {"input_ids": feeds[i : i + TEXT_CHUNK]})
            for i in range(0, len(feeds), TEXT_CHUNK)
        ]
        return np.concatenate(parts)

    def score(self, texts: Sequence[str] | np.ndarray, video: np.ndarray) -> np.ndarray:
        """See Session.score."""
        ids = token_ids(self.config, texts, self.vocabulary)
        return score_features(self.config, self.embed_text(ids), ids, self.embed_video(video))

    @property
    def vocabulary(self) -> Path | None:
        """See Session.vocabulary."""
        path = self._artefact.path / "tokenizer.json"
        return path if path.is_file() else None

    def read_clip(self, path: str | Path, decoder: str = "auto") -> np.ndarray:
        """Read one video as this model wants it: uint8 [T, H, W, 3]."""
        return read_config_clip(self.config, path, decoder)

    def describe(self) -> dict[str, Any]:
        """See Session.describe."""
        import onnxruntime as ort

        return {
            "engine": "ort",
            "device": self._device,
            "precision": self._video_graph.precision,
            "provider": self._video.get_providers()[0],
            "onnxruntime": ort.__version__,
            "threads": self._video.get_session_options().intra_op_num_threads or "all",
        }

    def close(self) -> None:
        """Free both graphs."""
        del self._video, self._text


def _open(
    artefact: Artefact, graph: Graph, device: str, threads: int | None
) -> onnxruntime.InferenceSession:
    session = open_graph(artefact.path / graph.file, device=device, threads=threads)
    wanted = _expected(artefact.config, graph)
    # Dimension names are free; numbers, types and names are not.
    got = {
        v.name: [v.type, *(n if isinstance(n, int) else "*" for n in v.shape)]
        for v in (*session.get_inputs(), *session.get_outputs())
    }
    if got != wanted:
        raise InputError(
            f"{graph.file} does not fit the config in manifest.json: it has {got}, which should be "
            f"{wanted}; export the checkpoint again"
        )
    return session


def _expected(config: StanConfig, graph: Graph) -> dict[str, list[int | str]]:
    """Inputs and outputs that a graph of this config has: name -> type and sizes, "*" if free."""
    floats, s, e = "tensor(float)", config.image_size, config.embed_dim
    if graph.role == "text":
        return {
            "input_ids": ["tensor(int32)", "*", "*"],
            "text_embeds": [floats, "*", e],
            "token_embeds": [floats, "*", "*", e],
        }
    frames: int | str = "*" if config.max_frames > 1 else 1
    is_uint8 = graph.inputs[0]["dtype"] == "uint8"
    video: list[int | str] = (
        ["tensor(uint8)", "*", frames, s, s, 3] if is_uint8 else [floats, "*", frames, 3, s, s]
    )
    return {
        "video": video,
        "video_embeds": [floats, "*", e],
        "frame_embeds": [floats, "*", frames, e],
    }
