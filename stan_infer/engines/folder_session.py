"""An exported folder as a session: all of it that does not depend on the runtime."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stan_infer.artefacts.checked_graph import CheckedGraph, checked_graph
from stan_infer.artefacts.folder import CONFIG_KEY, Artefact, Graph, config_sha256
from stan_infer.artefacts.onnx_file import GraphForm
from stan_infer.artefacts.onnx_sizes import Inputs
from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.config import StanConfig
from stan_infer.engines.graph import OpenGraph, Signature
from stan_infer.engines.session import (
    TEXT_CHUNK,
    Session,
    check_video,
    token_ids,
)
from stan_infer.errors import CheckError, InputError


class FolderSession(Session):
    """An artefact in a runtime; see engines.session.Session. An engine supplies `open`."""

    engine: ClassVar[str]
    reduced: ClassVar[tuple[str, ...]] = ()  # precisions in which it can run an fp32 graph

    def __init__(
        self,
        artefact: Artefact,
        *,
        device: str = "cpu",
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Open the folder's video and text graphs, of which one may be absent.

        precision: the artefact's, or one in `reduced` for an fp32 artefact; None takes the
        artefact's. threads: CPU threads; None leaves it to the runtime. Raises InputError and
        MissingError.
        """
        self._artefact, self._device, self._precision = artefact, device, precision
        graphs = {role: artefact.graph(role) for role in ("video", "text")}
        self._graphs = {
            role: graph for role, graph in graphs.items() if graph is not None and self.has(graph)
        }
        if not self._graphs:
            raise InputError(f"artefact {artefact.path} holds neither a video nor a text graph")
        self._opened: dict[str, OpenGraph] = {}
        self._sources: dict[str, CheckedGraph] = {}
        self._in_8_bits: tuple[int | None] | None = None  # counted when it is first asked for
        own = next(iter(self._graphs.values()))
        check_precision(artefact.path, own, precision, self.reduced)
        for role, graph in self._graphs.items():
            expected = expected_signature(artefact.config, graph)
            # Of a folder in 8 bits the text tower is fp32.
            wanted = graph.precision if precision in (None, own.precision) else precision
            with checked_graph(artefact, graph) as source:
                _check_config(artefact, graph, source.form)
                source.check_sizes(_smallest(graph, expected))
                opened = self.open(graph, source, wanted, threads)
            _check_signature(expected, graph, opened.signature())
            self._opened[role], self._sources[role] = opened, source

    @abstractmethod
    def open(
        self, graph: Graph, source: CheckedGraph, precision: str, threads: int | None
    ) -> OpenGraph:
        """Open one graph of the folder on this device; source: its bytes, which were checked."""

    def has(self, graph: Graph) -> bool:
        """Whether this engine can open that graph of the folder; what it cannot is absent."""
        return True

    @property
    def config(self) -> StanConfig:
        """The model's config."""
        return self._artefact.config

    def embed_video(self, video: Any) -> Any:
        """See Session.embed_video; the input's dtype must be the one exported."""
        graph, _ = self._role("video")
        clips = np.ascontiguousarray(video)
        wanted = graph.inputs[0]["dtype"]
        if clips.dtype != wanted:
            word = "uint8" if clips.dtype == np.uint8 else "float"
            raise InputError(
                f"video is {clips.dtype}; this artefact takes {wanted}: "
                f"convert it, or export with --input {word}"
            )
        check_video(self.config, clips.shape, clips.dtype == np.uint8)
        check_size(graph, "batch", clips.shape[0], "video has {} clips")
        check_size(graph, "frames", clips.shape[1], "video has {} frames")
        b, t, e = *clips.shape[:2], self.config.embed_dim
        if self.config.is_mug:
            return self._run("video", "frame_embeds", {"video": clips}, (b, t, e))
        return self._run("video", "video_embeds", {"video": clips}, (b, e))

    def embed_text(self, texts: Sequence[str] | np.ndarray) -> np.ndarray:
        """See Session.embed_text; uses the vocabulary inside the artefact."""
        ids = token_ids(self.config, texts, self.vocabulary)
        graph, _ = self._role("text")
        check_size(graph, "length", ids.shape[1], "token ids are {} long")
        name = "token_embeds" if self.config.is_mug else "text_embeds"
        row = (ids.shape[1],) if self.config.is_mug else ()
        feeds = ids.astype(np.int32)
        chunk = min(TEXT_CHUNK, graph.dims.get("batch", (1, TEXT_CHUNK))[1])
        parts = []
        for i in range(0, len(feeds), chunk):
            part = feeds[i : i + chunk]
            wanted = (len(part), *row, self.config.embed_dim)
            parts.append(self._run("text", name, {"input_ids": part}, wanted))
        return np.concatenate(parts)

    @property
    def vocabulary(self) -> Path | None:
        name = "tokenizer.json"
        return self._artefact.file(name) if self._artefact.has(name) else None

    def describe(self) -> dict[str, Any]:
        role = next(iter(self._graphs))
        record = {
            "engine": self.engine,
            "device": self._device,
            "precision": self._precision or self._graphs[role].precision,
        }
        return record | self._opened[role].describe() | self._quantised(role)

    def _quantised(self, role: str) -> dict[str, Any]:
        """Of a graph in 8 bits: linears that are so in the file, and that really run so here."""
        if self._graphs[role].precision not in EIGHT_BITS:
            return {}
        if self._in_8_bits is None:
            self._in_8_bits = (self._opened[role].count_8_bits(),)
        entry = next(g for g in self._artefact.manifest["graphs"] if g["role"] == role)
        quant = entry.get("quant")
        in_file = quant.get("linears") if quant else None
        return {"linears_in_8_bits": self._in_8_bits[0], "linears_in_8_bits_in_file": in_file}

    def close(self) -> None:
        """Free the graphs."""
        for opened in self._opened.values():
            opened.close()
        self._opened.clear()
        self._sources.clear()

    def _run(
        self, role: str, output: str, feeds: Mapping[str, np.ndarray], wanted: tuple[int, ...]
    ) -> np.ndarray:
        """Run a graph for sizes that it may take; refuse an output of other sizes than `wanted`."""
        graph, opened = self._role(role)
        inputs = {name: (value.dtype.name, value.shape) for name, value in feeds.items()}
        self._sources[role].check_sizes(inputs)
        values = opened.run(feeds, [output])[output]
        check_output(graph, output, values, wanted)
        return values

    def _role(self, role: str) -> tuple[Graph, OpenGraph]:
        if role not in self._graphs:
            raise InputError(f"artefact {self._artefact.path} holds no {role} graph")
        return self._graphs[role], self._opened[role]


def check_precision(
    path: Path, graph: Graph, precision: str | None, reduced: Sequence[str]
) -> None:
    """Refuse a precision that is not the graph's, nor one in which an fp32 graph can be run."""
    if precision in (None, graph.precision):
        return
    if graph.precision == "fp32" and precision in reduced:
        return
    how = f"export it again with --precision {precision}"
    if precision in EIGHT_BITS:
        how = f"stan-infer calibrate {path} --precision {precision} --videos DIR -o OUT, give OUT"
    raise InputError(f"artefact {path} is {graph.precision}, not {precision}: {how}")


def check_output(graph: Graph, output: str, values: Any, wanted: tuple[int, ...]) -> None:
    """Refuse what a graph returned in other sizes than [B, E], [B, T, E] or [Q, L, E]."""
    if tuple(values.shape) != wanted:
        raise InputError(
            f"{graph.file} returned {output} of sizes {list(values.shape)} for {wanted[0]} rows; "
            f"the model gives {list(wanted)}: export the checkpoint again"
        )


def _smallest(graph: Graph, expected: Signature) -> Inputs:
    """The smallest inputs that a graph takes, by name."""
    axes = {"batch": 0, ("length" if graph.role == "text" else "frames"): 1}
    low = {i: graph.dims.get(name, (1, 1))[0] for name, i in axes.items()}
    return {
        name: (dtype, [low.get(i, 1) if n is None else n for i, n in enumerate(sizes)])
        for name, (dtype, sizes) in expected.inputs.items()
    }


def _check_config(artefact: Artefact, graph: Graph, form: GraphForm) -> None:
    """Refuse a manifest whose config is not the one that the graph carries."""
    # A reference graph has no note of it. Head, temperature, sampling: none of them is a shape.
    noted = form.metadata.get(CONFIG_KEY)
    if noted is not None and noted != config_sha256(artefact.config):
        raise CheckError(
            f"artefact {artefact.path}: 'model' in manifest.json is not what {graph.file} was "
            "exported with: it was changed since; export the checkpoint again"
        )


def check_size(graph: Graph, name: str, size: int, sentence: str) -> None:
    """Refuse a size that the manifest does not allow; sentence: names it, with {} for the size."""
    low, high = graph.dims.get(name, (size, size))
    if not low <= size <= high:
        allowed = f"{low}" if low == high else f"{low} to {high}"
        raise InputError(f"{sentence.format(size)}; this artefact takes {allowed}")


def _check_signature(wanted: Signature, graph: Graph, got: Signature) -> None:
    """Compare a graph with the config: names, types and sizes; further outputs are free."""
    outputs = {name: v for name, v in got.outputs.items() if name in wanted.outputs}
    if (got.inputs, outputs) != (wanted.inputs, wanted.outputs):
        raise InputError(
            f"{graph.file} does not fit the config in manifest.json: it has "
            f"{got.inputs} -> {outputs}, which should be {wanted.inputs} -> {wanted.outputs}; "
            "export the checkpoint again"
        )


def expected_signature(config: StanConfig, graph: Graph) -> Signature:
    """Inputs and outputs that a graph of this config has; an axis of one allowed size is fixed."""

    def axis(name: str, high: int | None = None) -> int | None:
        low, top = graph.dims.get(name, (1, high))
        if high is not None and not 1 <= low <= (top or 0) <= high:
            raise InputError(
                f"{graph.file}: manifest.json gives {name} {low} to {top}; the model has 1 to "
                f"{high}: export the checkpoint again"
            )
        return low if low == top else None

    s, e, batch = config.image_size, config.embed_dim, axis("batch")
    if graph.role == "text":
        length = axis("length", config.context_positions)
        return Signature(
            {"input_ids": ("int32", (batch, length))},
            {
                "text_embeds": ("float32", (batch, e)),
                "token_embeds": ("float32", (batch, length, e)),
            },
        )
    frames = axis("frames", config.max_frames)
    is_uint8 = graph.inputs[0]["dtype"] == "uint8"
    return Signature(
        {
            "video": ("uint8", (batch, frames, s, s, 3))
            if is_uint8
            else ("float32", (batch, frames, 3, s, s))
        },
        {
            "video_embeds": ("float32", (batch, e)),
            "frame_embeds": ("float32", (batch, frames, e)),
        },
    )
