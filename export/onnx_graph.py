"""A writer of ONNX graphs: it adds nodes one by one and writes weights to disk at once.

Names follow the blocks of the network (video/trunk/layer3/attention/qkv/MatMul), so that viewers,
profiles and logs of builders can be read. The weights are never all in memory: they are copied from
a temporary file into the graph's file, or, above the size limit of protocol buffers, into one file
beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from stan_infer.artefacts.opsets import OPSETS
from stan_infer.system.temporary import temporary_file

MAX_INLINE = 1_900_000_000  # bytes of weights; a protocol buffer ends at 2 GiB
_ALIGN = 4096  # so that a runtime can map each weight
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # field numbers of ModelProto, GraphProto, TensorProto


class GraphWriter:
    """Collects nodes; `scope` prefixes their names, and `save` writes the file."""

    def __init__(self, name: str, folder: Path, opset: int) -> None:
        """Start an empty graph; its weights are in a temporary file in `folder` until `save`."""
        self.opset = opset
        self._name, self._path = name, ""
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._used: set[str] = set()
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], str] = {}
        self._small: list[TensorProto] = []  # constants, which shape inference must read
        # Name -> dtype, dims, and position and bytes in the temporary file.
        self._weights: dict[str, tuple[int, tuple[int, ...], int, int]] = {}
        self._shared: dict[str, str] = {}
        self._metadata: dict[str, str] = {}
        self._spool = temporary_file(folder)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix `name` to the names of what is added inside the block."""
        outer, self._path = self._path, f"{self._path}{name}/"
        try:
            yield
        finally:
            self._path = outer

    def full_name(self, name: str) -> str:
        """`name` with the prefixes of the scopes around it."""
        return self._path + name

    def node(
        self, op: str, inputs: Sequence[str], *, out: str | Sequence[str] = "", **attributes: Any
    ) -> str:
        """Add one node; return the name of its (first) output: `out`, or that of the node."""
        name = self._unique(f"{self._path}{op}")
        outputs = [out or name] if isinstance(out, str) else list(out)
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs[0]

    def shared(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """As `node`, but outside all scopes, and added only once for the same arguments."""
        key = f"{op} {inputs} {sorted(attributes.items())}"
        if key not in self._shared:
            inner, self._path = self._path, "sizes/"
            self._shared[key] = self.node(op, inputs, **attributes)
            self._path = inner
        return self._shared[key]

    def rename_last(self, name: str) -> None:
        """Rename the output of the last node; no node may read it yet."""
        self._nodes[-1].output[0] = name

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """Add a small constant, once for equal values; return its name."""
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self._constants:
            name = f"constant/{len(self._constants)}"
            self._constants[key] = name
            self._small.append(onnx.numpy_helper.from_array(array, name))
        return self._constants[key]

    def weight(self, name: str, values: np.ndarray, dtype: int | None = None) -> str:
        """Add a weight, if there is none of its full name yet; return the full name.

        dtype: ONNX's type, where numpy lacks it and `values` are its bits (bfloat16).
        """
        full = self.full_name(name)
        if full not in self._weights:
            kind = helper.np_dtype_to_tensor_dtype(values.dtype) if dtype is None else dtype
            self._write(full, kind, values.shape, np.ascontiguousarray(values).data)
        return full

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Declare an input of the graph."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str], dtype: int = 1) -> None:
        """Declare an output of the graph: `value` under a public name; by default float32."""
        if value != name:
            node = helper.make_node("Identity", [value], [name], name=f"outputs/{name}")
            self._nodes.append(node)
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def metadata(self, key: str, value: str) -> None:
        """Set one metadata property of the model."""
        self._metadata[key] = value

    def save(self, path: Path) -> list[str]:
        """Write the file; return the names of external data files beside it (at most one)."""
        self._spool.seek(0, 2)
        external = self._spool.tell() > MAX_INLINE
        data = path.with_name(f"{path.name}.data")
        model = self._model()
        if external:
            for name in self._weights:
                model.graph.initializer.append(self._tensor(name, data.name))
            path.write_bytes(model.SerializeToString())
            with data.open("wb") as f:
                self._spool.seek(0)
                shutil.copyfileobj(self._spool, f, 2**24)
            self._spool.close()
            return [data.name]
        graph = model.graph.SerializeToString()
        model.ClearField("graph")
        heads = {name: self._tensor(name, None).SerializeToString() for name in self._weights}
        sizes = {n: len(h) + _field_size(self._weights[n][3]) for n, h in heads.items()}
        total = len(graph) + sum(_field_size(s) for s in sizes.values())
        with path.open("wb") as f:
            f.write(model.SerializeToString() + _field(_GRAPH, total) + graph)
            for name, (_, _, start, length) in self._weights.items():
                f.write(_field(_INITIALIZER, sizes[name]) + heads[name] + _field(_RAW_DATA, length))
                self._spool.seek(start)
                f.write(self._spool.read(length))
        self._spool.close()
        return []

    def _model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, self._small)
        opset = helper.make_opsetid("", self.opset)
        model = helper.make_model(graph, opset_imports=[opset], producer_name="stan_infer")
        model.ir_version = OPSETS[self.opset].ir
        helper.set_model_props(model, self._metadata)
        return model

    def _unique(self, name: str) -> str:
        found, i = name, 2
        while found in self._used:
            found, i = f"{name}_{i}", i + 1
        self._used.add(found)
        return found

    def _write(self, name: str, dtype: int, dims: tuple[int, ...], data: Any) -> None:
        start = self._spool.seek(0, 2)
        if start % _ALIGN:
            start = self._spool.seek(_ALIGN - start % _ALIGN, 1)
        self._spool.write(data)
        self._weights[name] = (dtype, dims, start, memoryview(data).nbytes)

    def _tensor(self, name: str, location: str | None) -> TensorProto:
        dtype, dims, start, length = self._weights[name]
        tensor = TensorProto(name=name, data_type=dtype, dims=dims)
        if location:
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", start), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
        return tensor


def _field(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited protocol buffer field."""
    return _varint(number << 3 | 2) + _varint(length)


def _field_size(length: int) -> int:
    """Bytes of a length-delimited field whose content has `length` bytes (numbers below 16)."""
    return 1 + len(_varint(length)) + length


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
