"""A graph file as it is stored: its nodes, and the elements of its weights, read without a runtime.

Names of operations and weights are part of the file format, so two graphs can be compared by them.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from stan_infer.artefacts.onnx_file import DTYPES, Node, Weight, check_external, read_graph
from stan_infer.errors import InputError
from stan_infer.system.outside_file import open_regular

# Outputs at which a block ends: what is added to the residual stream, start and merge of the
# branch, heads. Those between belong to the block that they lead to. A pattern, not the paths of
# the folded linears, because two graphs can be compared without a model and torch.
BLOCK = re.compile(
    r"video/patches|text/tokens|.*/(attention/out|mlp/fc2|start|merge|spatial/out)"
    r"|.*/temporal/(out|conv|single)|(video|text)/head/.*"
)
OURS = ("video/", "text/")  # how the names of our operations and their weights begin
_FLOATS = {1: "fp32", 10: "fp16", 16: "bf16"}  # TensorProto's numbers
_IN_8_BITS = {3: "int8", 17: "fp8"}


class StoredGraph:
    """A graph file. Raises InputError where it is damaged or has what no graph of ours has."""

    def __init__(self, path: Path) -> None:
        """Read the nodes, and the places of the weights."""
        self.path, self.form = path, read_graph(path)

    @cached_property
    def precision(self) -> str:
        """int8 or fp8 if a matrix is in it, else the type of most weights; fp32 without any."""
        sizes = dict.fromkeys(_FLOATS, 0)
        for weight in self.weights.values():
            if weight.dtype in _IN_8_BITS and len(weight.dims) == 2:
                return _IN_8_BITS[weight.dtype]
            if weight.dtype in sizes:
                sizes[weight.dtype] += prod(weight.dims)
        return _FLOATS[max(sizes, key=lambda n: sizes[n])]

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """The weights that have names of ours."""
        return {n: w for n, w in self.form.weights.items() if n.startswith(OURS)}

    @cached_property
    def makers(self) -> dict[str, Node]:
        """The nodes by their first output, in the graph's order."""
        return {n.outputs[0]: n for n in self.form.nodes if n.outputs}

    def array(self, name: str) -> np.ndarray:
        """The elements of a weight: bfloat16 as float32, 8-bit floats as float32, others as stored.

        Raises InputError where the file ends before them.
        """
        weight = self.form.weights[name]
        if weight.place is None:
            if weight.value is None:
                raise InputError(f"{self.path.name}: the elements of {name} cannot be read")
            return weight.value
        word = DTYPES[weight.dtype][0] or ("uint16" if weight.dtype == 16 else "uint8")
        raw = np.frombuffer(self.raw(name), np.dtype(word).newbyteorder("<"))
        raw = raw.reshape(weight.dims)
        if weight.dtype == 16:
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return E4M3[raw] if weight.dtype == 17 else raw

    def raw(self, name: str) -> bytes:
        """The bytes of a weight's elements; raises as `array` does."""
        weight = self.form.weights[name]
        assert weight.place is not None
        data, (start, end) = self._data(weight.external), weight.place
        if end > len(data):
            raise InputError(f"{self.path.name}: the elements of {name} lie behind a file's end")
        return data[start:end]

    def block_of(self, name: str) -> str | None:
        """The block to which a value or weight leads: its first output of BLOCK; None: none."""
        return self._first_behind(name, lambda out: bool(BLOCK.fullmatch(out)))

    def operation_of(self, name: str) -> str | None:
        """The operation to which a value or weight leads; its own name for an operation."""
        return self._first_behind(name, self.is_operation)

    def is_operation(self, output: str) -> bool:
        """Whether a value is the output of an operation of ours, and not of a node inside one."""
        node = self.makers.get(output)
        if node is None or len(node.outputs) != 1 or not output.startswith(OURS):
            return False
        return not re.fullmatch(rf".*/{re.escape(node.op)}(_\d+)?", output)

    def _first_behind(self, name: str, wanted: Callable[[str], bool]) -> str | None:
        reached = {name}
        if name in self.makers and wanted(name):
            return name
        for node in self.form.nodes:  # in the order of computation
            if reached.intersection(node.inputs):
                reached.update(node.outputs)
                if wanted(node.outputs[0]):
                    return node.outputs[0]
        return None

    def _data(self, external: str | None) -> mmap.mmap:
        if external not in self._opened:
            check_external(self.form, [f"{self.path.name}.data"])
            path = self.path if external is None else self.path.parent / external
            try:
                with open_regular(path)[0] as f:
                    self._opened[external] = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as e:
                raise InputError(f"{path} cannot be read: {str(e)[:200]}") from e
        return self._opened[external]

    def close(self) -> None:
        """Close the files; nodes and small weights stay."""
        for data in self._opened.values():
            data.close()
        self._opened.clear()

    @cached_property
    def _opened(self) -> dict[str | None, mmap.mmap]:
        return {}


def _e4m3() -> np.ndarray:
    """The values of the 256 codes of float8 e4m3fn: sign, 4 bits of exponent, 3 of mantissa."""
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


E4M3 = _e4m3()
