"""A single .onnx file as a source of a verification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stan_infer.artefacts.onnx_file import read_graph
from stan_infer.engines.bare_graph import open_bare
from stan_infer.engines.graph import OpenGraph
from stan_infer.errors import InputError, StanError
from stan_infer.verification.bisect import graph_precision
from stan_infer.verification.source import Arrays, Form, Source

ROLES = {"video": "video", "text": "input_ids"}  # role -> the graph's one input
OUTPUTS = {"video": ("video_embeds", "frame_embeds"), "text": ("text_embeds", "token_embeds")}


def input_names(path: Path) -> list[str]:
    """Inputs of a graph that a runtime refuses, or none where it cannot be read."""
    try:
        return list(read_graph(path).inputs)
    except InputError:
        return []


class GraphFile(Source):
    """One .onnx file: its tower and nothing else; a step that it lacks is never asked for."""

    kind = "graph"

    def __init__(self, path: Path, engine: str) -> None:
        """Open the file in `engine`; InputError for one that is no tower."""
        self.name, self.engine, self._path = str(path), engine, path
        self._opened: OpenGraph | InputError
        try:
            self._opened = open_bare(path, engine, [f"{path.name}.data"])
            inputs = list(self._opened.signature().inputs)
        except InputError as e:
            # A failed stage, if the file says which stage.
            self._opened, inputs = e, input_names(path)
        role = next((r for r, name in ROLES.items() if inputs == [name]), None)
        if role is None:
            word = f"has the inputs {inputs}" if inputs else f"cannot be read ({self._opened})"
            raise InputError(
                f"{path} {word[:300]}; a video tower has the input video, a text tower input_ids: "
                "give a tower, a folder or a checkpoint"
            )
        if role == "video" and isinstance(self._opened, OpenGraph):
            self.form = form(self._opened)
            self.side = self._opened.signature().inputs["video"][1][3] or self.side
        self.role, self.precision = role, graph_precision(path)

    def lacks(self, step: str) -> str | None:
        return None if step == self.role else f"nothing but a {self.role} graph"

    def _refusal(self, step: str) -> InputError:
        return InputError(f"{self.name} has {self.lacks(step)}: no step {step}")

    def limits(self, axis: str) -> tuple[int, int]:
        # A free axis does not say where it ends, so what a STAN can have is tried.
        high = {"frames": 64, "batch": 32, "length": 77}[axis]
        if not isinstance(self._opened, OpenGraph):
            return 1, high
        ((_, sizes),) = self._opened.signature().inputs.values()
        size = sizes[0 if axis == "batch" else 1]
        return (size, size) if size else (1, high)

    def sampled(self) -> int:
        raise self._refusal("decode")

    def indices(self, total: int, frames: int) -> np.ndarray:
        raise self._refusal("decode")

    def pixels(self, images: Sequence[np.ndarray]) -> np.ndarray:
        raise self._refusal("resize")

    def prepare(self, pixels: np.ndarray, form: Form | None = None) -> np.ndarray:
        raise self._refusal("input")

    def ids(self, texts: Sequence[str]) -> np.ndarray:
        raise self._refusal("ids")

    def score(self, text: Arrays, ids: np.ndarray, video: Arrays) -> np.ndarray:
        raise self._refusal("score")

    def video(self, tensor: np.ndarray) -> Arrays:
        return tower(self._opened, "video", tensor)

    def text(self, ids: np.ndarray) -> Arrays:
        return tower(self._opened, "text", np.asarray(ids, np.int32))

    def graph_path(self, role: str) -> Path | None:
        return self._path if role == self.role else None


def sound(opened: OpenGraph | InputError) -> OpenGraph:
    """The graph, or what was wrong when it was opened, raised."""
    if isinstance(opened, StanError):
        raise opened
    return opened


def tower(opened: OpenGraph | InputError, role: str, value: np.ndarray) -> Arrays:
    """Outputs of a tower, those of them that the graph has."""
    graph = sound(opened)
    made = graph.signature().outputs
    return graph.run({ROLES[role]: value}, [n for n in OUTPUTS[role] if n in made] or OUTPUTS[role])


def form(opened: OpenGraph) -> Form:
    """How a video graph wants its pixels, by its input."""
    dtype, sizes = opened.signature().inputs.get("video", ("uint8", ()))
    return Form(dtype, "BTCHW" if len(sizes) == 5 and sizes[2] == 3 != sizes[4] else "BTHWC")
