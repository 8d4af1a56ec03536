"""Find the first block of an ONNX graph that differs from a reference.

The outputs of operations have the same names on both sides (video/trunk/layer3/mlp/fc2). The graph
is cut at those names: each block, from its output back to the outputs before it, is run alone on
the reference's values, so that a fault in one block does not reach the next.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stan_infer.artefacts.checked_graph import checked_bare_graph
from stan_infer.artefacts.difference import relative_error
from stan_infer.engines.open import open_graph
from stan_infer.errors import InputError, MissingError
from stan_infer.system.packages import require

if TYPE_CHECKING:
    from stan_infer.network.model import Stan

Arrays = dict[str, np.ndarray]
Values = Mapping[str, np.ndarray]

# Outputs at which a block ends: what is added to the residual stream, start and merge of the
# branch, heads. Those between are compared only inside the block that differs. A pattern, not the
# paths of the folded linears, because two graphs can be compared without a model and torch.
_BLOCK = re.compile(
    r"video/patches|text/tokens|.*/(attention/out|mlp/fc2|start|merge|spatial/out)"
    r"|.*/temporal/(out|conv|single)|(video|text)/head/.*"
)
_FLOATS = {1: "fp32", 10: "fp16", 16: "bf16"}  # TensorProto's numbers


def graph_precision(path: Path) -> str:
    """The type of most weights of a graph; fp32, the strictest, if the file cannot be read."""
    try:
        onnx = require("onnx", "reading a graph", "cpu")
        return _precision(onnx.load(str(path), load_external_data=False).graph.initializer)
    except Exception:  # protobuf's own classes; a damaged graph fails in its own stage
        return "fp32"


def torch_values(model: Stan, role: str, dtype: str) -> Callable[[np.ndarray], Arrays]:
    """Return a function from a tower's input to the outputs of all operations, by name.

    It runs the model in torch in fp32. dtype: of the video tower's input, uint8 or float32.
    """
    import torch

    from stan_infer.network.fold import fold_text, fold_video
    from stan_infer.network.torch_ops import encode_text, encode_video

    with torch.inference_mode():
        video = fold_video(model, input="uint8" if dtype == "uint8" else "float")
        text = fold_text(model) if role == "text" else None

    def values(given: np.ndarray) -> Arrays:
        found: Arrays = {}

        def record(name: str, value: torch.Tensor) -> None:
            found[name] = value.numpy()

        with torch.inference_mode():
            if text is None:
                encode_video(video, torch.from_numpy(given), record)
            else:
                encode_text(text, torch.from_numpy(np.asarray(given, np.int64)), record)
        return found

    return values


def graph_values(path: Path) -> Callable[[np.ndarray], Arrays]:
    """As `torch_values`, for an ONNX graph, which is run block by block."""
    cut = _Cut(path)

    def values(given: np.ndarray) -> Arrays:
        found: Arrays = {}
        blocks = [n for n in cut.named if _BLOCK.fullmatch(n)]
        for name in blocks:
            inner = cut.between(name, set(blocks)) & set(cut.named) - set(found)
            names = [*sorted(inner), name]
            known = {n: v for n, v in found.items() if n in blocks}
            found |= dict(zip(names, cut.run(names, known, given), strict=True))
        return found

    return values


def first_departure(
    path: Path,
    given: np.ndarray,
    wanted: Values,
    tolerance: float,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Run each block of a graph on the reference's values; name the first that differs.

    given: the graph's input. wanted: outputs of all operations of the reference on the same input.
    Returns block (None if none differs), operation (None if none differs alone), error (largest
    difference relative to the largest wanted value), reason (why the block cannot run, or why none
    is named) and blocks (how many there are). Raises InputError for a graph without our names,
    MissingError without onnx.
    """
    cut = _Cut(path)
    named = [n for n in cut.named if n in wanted]
    blocks = [n for n in named if _BLOCK.fullmatch(n)]
    if not blocks:
        raise InputError(
            f"{path} has none of the names of our blocks: bisect needs a fused graph "
            "(stan-infer export --graph fused)"
        )
    found: dict[str, Any] = {
        "block": None,
        "operation": None,
        "error": 0.0,
        "reason": None,
        "blocks": len(blocks),
    }
    # A fault that is large at the end may be small beside the residual stream of its own block.
    errors: dict[str, tuple[float, str]] = {}
    for limit in (tolerance, tolerance / 10):
        for name in blocks:
            if name not in errors:
                progress(f"bisect: {name}")
                errors[name] = _error(cut, name, {n: wanted[n] for n in blocks}, given, wanted)
            error, reason = errors[name]
            if error <= limit:
                continue
            found |= {"block": name, "error": error, "reason": reason or None}
            inside = cut.between(name, set(blocks)) | {name}
            known = {n: wanted[n] for n in named}
            for inner in (n for n in named if n in inside):
                if not _error(cut, inner, known, given, wanted)[0] <= limit:
                    return {**found, "operation": inner}
            return found
    reason = "each block agrees on the reference's inputs: rounding adds up, or fold is at fault"
    return {**found, "error": max(e for e, _ in errors.values()), "reason": reason}


class _Cut:
    """A graph of which any part can be run alone."""

    def __init__(self, path: Path) -> None:
        self._onnx = require("onnx", "bisect", "cpu")
        checked_bare_graph(path, [f"{path.name}.data"])
        try:
            self._model = self._onnx.load(str(path), load_external_data=False)
        except Exception as e:  # protobuf's own classes
            raise InputError(f"{path} cannot be read as an ONNX model: {str(e)[:200]}") from e
        graph, self._folder = self._model.graph, str(path.parent)
        self._weights = {t.name: t for t in graph.initializer}
        self._made = {name: i for i, n in enumerate(graph.node) for name in n.output}
        self._inputs = {i.name: i for i in graph.input}
        kind = _precision(graph.initializer)
        self._type = next(n for n, word in _FLOATS.items() if word == kind)
        if kind == "bf16":
            raise MissingError("bisect runs blocks in ONNX Runtime, which has no bf16 on a CPU")
        # Outputs of operations; the outputs of other nodes have the names of their nodes.
        self.named = [
            name
            for n in graph.node
            for name in n.output
            if name != n.name and name.startswith(("video/", "text/")) and len(n.output) == 1
        ]
        self._sessions: dict[Any, tuple[Any, list[str]]] = {}

    def between(self, name: str, known: set[str]) -> set[str]:
        """Names of the values that are computed from `known` on the way to `name`."""
        nodes, _ = self._walk([name], known - {name})
        return {o for i in nodes for o in self._model.graph.node[i].output} - {name}

    def run(self, names: Sequence[str], known: Values, given: np.ndarray) -> list[np.ndarray]:
        """Compute the named values from known values before them and the graph's input."""
        key = (tuple(names), frozenset(known) - {*names})
        if key not in self._sessions:
            data, needed = self._part(names, set(key[1]))
            self._sessions[key] = (open_graph(data, name="this part"), needed)
        session, needed = self._sessions[key]
        dtype = np.float16 if self._type == 10 else np.float32
        feeds = {}
        with np.errstate(over="ignore"):
            for n in needed:
                feeds[n] = given if n in self._inputs else known[n].astype(dtype)
        found = session.run(feeds, names)
        return [found[name] for name in names]

    def _walk(self, names: Sequence[str], known: Iterable[str]) -> tuple[list[int], list[str]]:
        """Walk back from `names`: indices of nodes, in order, and the values they start from."""
        nodes: set[int] = set()
        starts: dict[str, None] = {}
        todo = list(names)
        while todo:
            value = todo.pop()
            if value in known or value in self._inputs:
                starts[value] = None
            elif value in self._made and self._made[value] not in nodes:
                nodes.add(self._made[value])
                todo += [v for v in self._model.graph.node[self._made[value]].input if v]
        return sorted(nodes), list(starts)

    def _part(self, names: Sequence[str], known: set[str]) -> tuple[bytes, list[str]]:
        """A model that computes `names` from known values, and the names of its inputs."""
        onnx, helper = self._onnx, self._onnx.helper
        indices, starts = self._walk(names, known)
        nodes = [self._model.graph.node[i] for i in indices]
        inputs = [
            self._inputs[n]
            if n in self._inputs
            else helper.make_tensor_value_info(n, self._type, None)
            for n in starts
        ]
        outputs = [helper.make_tensor_value_info(name, self._type, None) for name in names]
        graph = helper.make_graph(nodes, "part", inputs, outputs)
        for value in dict.fromkeys(v for n in nodes for v in n.input):
            if value in self._weights:
                tensor = graph.initializer.add()
                tensor.CopyFrom(self._weights[value])
                if onnx.external_data_helper.uses_external_data(tensor):
                    onnx.external_data_helper.load_external_data_for_tensor(tensor, self._folder)
                    tensor.ClearField("external_data")
                    tensor.data_location = onnx.TensorProto.DEFAULT
        model = helper.make_model(graph, opset_imports=self._model.opset_import)
        model.ir_version = self._model.ir_version
        return model.SerializeToString(), starts


def _error(
    cut: _Cut, name: str, known: Values, given: np.ndarray, wanted: Values
) -> tuple[float, str]:
    """Largest difference of one output relative to its largest wanted value.

    It is inf, with the reason, if the output cannot be computed or compared.
    """
    try:
        (got,) = cut.run([name], {k: v for k, v in known.items() if k != name}, given)
    except InputError as e:
        return math.inf, str(e)
    want = wanted[name].astype(np.float64)
    if got.shape != want.shape:
        return math.inf, f"its shape is {list(got.shape)} instead of {list(want.shape)}"
    error = relative_error(got, want, max(float(np.abs(want).max()), 1e-30))
    return (error, "") if math.isfinite(error) else (math.inf, "values that are not finite")


def _precision(weights: Any) -> str:
    sizes = dict.fromkeys(_FLOATS, 0)
    for tensor in weights:
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += math.prod(tensor.dims)
    return _FLOATS[max(sizes, key=lambda n: sizes[n])]


def bisect(
    role: str,
    stage: Any,
    pair: tuple[Any, Any],
    tensor: Callable[[np.ndarray, Any], np.ndarray],
    tolerance: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Name the block where a tower differs, or say why none is named; {} if its stage passed.

    stage: a stage.Stage. pair: the sides A and B; A is the reference where both are graphs.
    tensor: a function from pixels and a side to the input of that side's graph.
    """
    a, b = pair
    suspect, reference = (b, a) if b.graph_path(role) else (a, b)
    path = suspect.graph_path(role)
    if not stage.bad:
        return {}
    if path is None:
        return {"block": None, "reason": "neither side is an ONNX graph"}
    # Small cases first, as they are quick; those of one frame last, where temporal attention has
    # another form.
    cases = sorted(stage.bad, key=lambda c: (c[2].shape[1] == 1, c[2].size, -c[0]))
    result: dict[str, Any] = {}
    with stage.catch("bisect"):
        model, other = getattr(reference, "model", None), reference.graph_path(role)
        if model is not None:
            values = torch_values(model, role, suspect.form.dtype)
        else:
            values = graph_values(other)
        for _, _, case in list({id(c[2]): c for c in cases}.values())[:4]:
            given = wanted = case.astype(np.int32) if role == "text" else case
            if role == "video":
                given = tensor(case, suspect)
                wanted = given if model is not None else tensor(case, reference)
            result = first_departure(path, given, values(wanted), tolerance, say)
            if result["block"]:
                break
        return {"graph": path.name, **result}
    return {"block": None, "reason": stage.note}
