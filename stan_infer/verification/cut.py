"""A graph of which any part can be run alone, in fp32 arithmetic on a CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.artefacts.checked_graph import checked_bare_graph
from stan_infer.engines.open import open_graph
from stan_infer.errors import InputError
from stan_infer.system.packages import require
from stan_infer.verification.stored import StoredGraph

Values = Mapping[str, np.ndarray]
_HALVES = (10, 16)  # TensorProto's float16 and bfloat16
_COMPUTED = "computed/"  # put before a name that is also an input of the part


class Cut:
    """A graph whose parts run on given values. A graph of 16 bits runs in fp32 on its weights.

    So rounding of activations does not hide a fault, and bf16 needs no engine that has it.
    """

    def __init__(self, path: Path) -> None:
        """Read the file. Raises InputError if it is damaged, MissingError without onnx."""
        self._onnx = require("onnx", "running a graph's operations one by one", "cpu")
        checked_bare_graph(path, [f"{path.name}.data"])
        self.stored = StoredGraph(path)
        try:
            self._model = self._onnx.load(str(path), load_external_data=False)
        except Exception as e:  # protobuf's own classes
            raise InputError(f"{path} cannot be read as an ONNX model: {str(e)[:200]}") from e
        graph = self._model.graph
        self._weights = {t.name: t for t in graph.initializer}
        self._made = {name: i for i, n in enumerate(graph.node) for name in n.output}
        self._inputs = {i.name: i for i in graph.input}
        self.named = [n for n in self.stored.makers if self.stored.is_operation(n)]

    def run(self, names: Sequence[str], known: Values, given: np.ndarray) -> list[np.ndarray]:
        """Compute the named values, each from known values before it and the graph's input."""
        data, needed = self._part(names, known)
        session = open_graph(data, name="this part")
        feeds = {
            n: given if n in self._inputs else np.asarray(known[n], np.float32) for n in needed
        }
        wanted = [f"{_COMPUTED}{n}" for n in names]
        found = session.run(feeds, wanted)
        return [found[name] for name in wanted]

    def _walk(self, names: Sequence[str], known: Iterable[str]) -> tuple[list[int], list[str]]:
        """Walk back from `names` to known values: indices of nodes, in order, and these values."""
        nodes = {self._made[n] for n in names}
        starts: dict[str, None] = {}
        todo = [v for i in nodes for v in self._model.graph.node[i].input]
        while todo:
            value = todo.pop()
            if value in known or value in self._inputs:
                starts[value] = None
            elif value in self._made and self._made[value] not in nodes:
                nodes.add(self._made[value])
                todo += [v for v in self._model.graph.node[self._made[value]].input if v]
        return sorted(nodes), list(starts)

    def _part(self, names: Sequence[str], known: Values) -> tuple[bytes, list[str]]:
        """A model that computes `names`, and the names of its inputs."""
        helper = self._onnx.helper
        indices, starts = self._walk(names, known)
        nodes = []
        for i in indices:
            node = self._model.graph.node[i]
            nodes.append(type(node)())
            nodes[-1].CopyFrom(node)
            for attribute in nodes[-1].attribute:
                if attribute.name == "to" and attribute.i in _HALVES:
                    attribute.i = 1
            for k, out in enumerate(node.output):
                if out in names:
                    nodes[-1].output[k] = f"{_COMPUTED}{out}"
        # A named value that is not known flows on inside the part under its new name.
        inner = {n: f"{_COMPUTED}{n}" for n in names if n not in starts}
        for node in nodes:
            node.input[:] = [inner.get(v, v) for v in node.input]
        inputs = [
            self._inputs[n] if n in self._inputs else helper.make_tensor_value_info(n, 1, None)
            for n in starts
        ]
        outputs = [helper.make_tensor_value_info(f"{_COMPUTED}{n}", 1, None) for n in names]
        graph = helper.make_graph(nodes, "part", inputs, outputs)
        for value in dict.fromkeys(v for n in nodes for v in n.input):
            if value in self._weights:
                graph.initializer.append(self._weight(value))
        model = helper.make_model(graph, opset_imports=self._model.opset_import)
        model.ir_version = self._model.ir_version
        return model.SerializeToString(), starts

    def _weight(self, name: str) -> Any:
        """A weight as it is stored, in fp32 instead of 16 bits."""
        tensor, proto = self._weights[name], self._onnx.TensorProto
        if tensor.data_type in _HALVES:
            values = self.stored.array(name).astype(np.float32)
            return self._onnx.numpy_helper.from_array(values, name)
        copied = proto(name=name, data_type=tensor.data_type, dims=tensor.dims)
        if tensor.data_location == proto.EXTERNAL:
            copied.raw_data = self.stored.raw(name)
        else:
            copied.CopyFrom(tensor)
        return copied
