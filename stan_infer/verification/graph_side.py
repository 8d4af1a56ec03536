"""A single .onnx file as a side of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from stan_infer.artefacts.onnx_file import read_graph
from stan_infer.engines.bare_graph import open_bare
from stan_infer.engines.graph import OpenGraph
from stan_infer.errors import InputError
from stan_infer.verification.side import Arrays, Claims, Form, Side
from stan_infer.verification.stored import StoredGraph

ROLES = {"video": "video", "text": "input_ids"}  # role -> the graph's one input
OUTPUTS = {"video": ("video_embeds", "frame_embeds"), "text": ("text_embeds", "token_embeds")}


def input_names(path: Path) -> list[str]:
    """Names of a graph's inputs, read from the file itself; none if it cannot be read."""
    try:
        return list(read_graph(path).inputs)
    except InputError:
        return []


def graph_precision(path: Path) -> str:
    """The precision of a graph; fp32, the strictest, if the file cannot be read."""
    try:
        return StoredGraph(path).precision
    except InputError:  # it fails in its own stage
        return "fp32"


class GraphFile(Side):
    """One .onnx file, which is one tower; `verify` asks for no step that it lacks."""

    kind = "graph"

    def __init__(self, path: Path, engine: str) -> None:
        """Open the file in `engine`. Raises InputError if it is not a tower."""
        self.name, self.engine, self._path = str(path), engine, path
        self._opened: OpenGraph | InputError
        try:
            self._opened = open_bare(path, engine, [f"{path.name}.data"])
            inputs = list(self._opened.signature().inputs)
        except InputError as e:
            # If the file says which tower it is, the error becomes that tower's failed stage.
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
            size = self._opened.signature().inputs["video"][1][3]
            self.image_size = size or self.image_size
        self.role, self.precision = role, graph_precision(path)

    def claims(self, role: str) -> Claims:
        (least, most), (first, last) = (self.limits(axis) for axis in ("batch", "frames"))
        batch, frames = least if least == most else None, first if first == last else None
        return Claims(batch=batch, frames=frames)

    def lacks(self, step: str) -> str | None:
        return None if step == self.role else f"nothing but a {self.role} graph"

    def limits(self, axis: str) -> tuple[int, int]:
        # A dynamic axis does not say how far it goes: every size that a STAN can have is tried.
        high = {"frames": 64, "batch": 32, "texts": 32, "length": 77}[axis]
        if not isinstance(self._opened, OpenGraph):
            return 1, high
        ((_, sizes),) = self._opened.signature().inputs.values()
        size = sizes[0 if axis in ("batch", "texts") else 1]
        return (size, size) if size else (1, high)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise InputError(f"{self.name} is nothing but a {self.role} graph")

    sampled = indices = pixels = prepare = ids = score = _refuse

    def video(self, tensor: np.ndarray) -> Arrays:
        return tower(self._opened, "video", tensor)

    def text(self, ids: np.ndarray) -> Arrays:
        return tower(self._opened, "text", np.asarray(ids, np.int32))

    def graph_path(self, role: str) -> Path | None:
        return self._path if role == self.role else None


def usable(opened: OpenGraph | InputError) -> OpenGraph:
    """Return the graph, or raise the error with which it could not be opened."""
    if isinstance(opened, InputError):
        raise opened
    return opened


def tower(opened: OpenGraph | InputError, role: str, value: np.ndarray) -> Arrays:
    """Run a tower on its one input; return those of OUTPUTS that the graph has."""
    graph = usable(opened)
    made = graph.signature().outputs
    return graph.run({ROLES[role]: value}, [n for n in OUTPUTS[role] if n in made] or OUTPUTS[role])


def form(opened: OpenGraph) -> Form:
    """How a video graph takes its pixels, by the type and shape of its input."""
    dtype, sizes = opened.signature().inputs.get("video", ("uint8", ()))
    return Form(dtype, "BTCHW" if len(sizes) == 5 and sizes[2] == 3 != sizes[4] else "BTHWC")
