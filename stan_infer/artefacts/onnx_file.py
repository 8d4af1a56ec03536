"""The content of an .onnx file, read before a runtime opens it, without its large weights.

The file may come from a stranger: numbers of fields and lengths of texts are bounded, and anything
that no graph of ours has is an InputError. Its messages are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.artefacts.protobuf import MAX_NUMBERS, File, Message
from stan_infer.errors import InputError
from stan_infer.system.outside_file import open_regular, stays_inside

MAX_PROPERTIES = 1000  # pairs of key and value in one place
MAX_NODES = 10_000  # the largest graph of ours (L/14, 24 layers, reference) has 1,800
MAX_WEIGHTS = 20_000
MAX_PORTS = 64  # inputs or outputs of one node; ours have 5
MAX_RANK = 8

# TensorProto.DataType -> (numpy's name or None, bits of an element); no graph of ours has strings.
DTYPES: dict[int, tuple[str | None, int]] = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    16: (None, 16),  # bfloat16
    17: (None, 8),  # float8 e4m3fn
    18: (None, 8),
    19: (None, 8),
    20: (None, 8),
}
_NAMES = ("", "ai.onnx")  # of ONNX's own operator set


@dataclass(frozen=True)
class Weight:
    """A weight or other constant of a graph."""

    dtype: int  # TensorProto.DataType
    dims: tuple[int, ...]
    value: np.ndarray | None = None  # the elements, where they are few
    external: str | None = None  # name of the file that holds the elements
    place: tuple[int, int] | None = None  # first byte and end of the elements in their file

    @property
    def bytes(self) -> int:
        """Size of its elements in bytes."""
        return prod(self.dims) * DTYPES[self.dtype][1] // 8


@dataclass(frozen=True)
class Node:
    """One operation. An optional input that is not given is ""."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]  # int, float, str, list of int or float, Weight


@dataclass(frozen=True)
class GraphForm:
    """A graph without the elements of its large weights."""

    name: str  # of the file
    opset: int
    nodes: tuple[Node, ...]
    weights: dict[str, Weight]
    inputs: tuple[str, ...]  # without those that are weights
    outputs: tuple[str, ...]
    metadata: dict[str, str]

    @property
    def external(self) -> list[str]:
        """Names of the files that hold weights, sorted."""
        return sorted({w.external for w in self.weights.values() if w.external is not None})

    def external_bytes(self, name: str) -> int:
        """Bytes of all weights that one file holds; more than its size where weights overlap."""
        return sum(w.bytes for w in self.weights.values() if w.external == name)


def read_graph(source: Path | bytes, name: str = "") -> GraphForm:
    """Read a graph.

    source: the file, or its bytes. name: for error messages, instead of the file's. Raises
    InputError for a file that is not a well-formed ONNX model, and for one with subgraphs,
    functions, foreign operators or anything else that no graph of ours has.
    """
    with _open(source, name) as file:
        return _Reader(file).read()


def check_external(form: GraphForm, allowed: Collection[str]) -> None:
    """Refuse a graph that reads a file which is not in `allowed` (names relative to its folder).

    Raises InputError, also for an allowed name that is absolute or leaves the folder.
    """
    for name in form.external:
        if name not in allowed or not stays_inside(name):
            raise InputError(
                f"{form.name} reads weights from {name[:80]!r}, which manifest.json does not list "
                "as its external data: nothing was opened; export the checkpoint again"
            )


def count_ops(path: Path) -> Counter[str]:
    """How many nodes of each operation any ONNX graph has; InputError if it is malformed."""
    with _open(path, "") as file:
        graphs = file.message().messages(7)
        return Counter(op for graph in graphs for node in graph.messages(1) for op in node.texts(4))


@contextmanager
def _open(source: Path | bytes, name: str) -> Iterator[File]:
    if isinstance(source, bytes):
        yield File(source, name)
        return
    try:
        with open_regular(source)[0] as f:
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except (InputError, OSError, ValueError) as e:  # ValueError: an empty file cannot be mapped
        # The name is needed where the path is /proc/self/fd/N, see folder.Artefact.held.
        shown = name if str(source).startswith("/proc/") and name else source
        raise InputError(f"{shown} cannot be read as an ONNX model: {e}") from e
    with data:
        yield File(data, name or source.name)


class _Reader:
    """Reads the messages of one file. Numbers of fields are those of onnx.proto."""

    def __init__(self, file: File) -> None:
        self.file = file

    def read(self) -> GraphForm:
        top = self.file.message()
        if not top.of(7):
            raise InputError(f"{self.file.name} is not an ONNX model: it holds no graph")
        for number, what in ((20, "training information"), (25, "local functions")):
            if top.of(number):
                raise self.refuse(f"has {what}")
        opset = self.opset(top)
        graph = top.one_message(7)
        if graph.of(15):
            raise self.refuse("has sparse weights")
        for number, what, most in ((5, "weights", MAX_WEIGHTS), (1, "nodes", MAX_NODES)):
            if (count := len(graph.spans(number))) > most:
                raise self.refuse(f"has {count} {what}; at most {most} are read")
        weights: dict[str, Weight] = {}
        for tensor in graph.messages(5):
            name = tensor.text(8)
            if not name or name in weights:
                raise self.refuse(f"has two weights called {name[:80]!r}, or one without a name")
            weights[name] = self.weight(tensor)
        return GraphForm(
            name=self.file.name,
            opset=opset,
            nodes=tuple(self.node(message) for message in graph.messages(1)),
            weights=weights,
            inputs=tuple(n for p in graph.messages(11) if (n := p.text(1)) not in weights),
            outputs=tuple(port.text(1) for port in graph.messages(12)),
            metadata=self.entries(top, 14, "the metadata"),
        )

    def refuse(self, what: str) -> InputError:
        return InputError(
            f"{self.file.name} {what}, which no graph written by stan_infer has: it was not "
            "opened; export the checkpoint again"
        )

    def opset(self, top: Message) -> int:
        found = []
        for entry in top.messages(8):
            domain, version = entry.text(1), entry.number(2) or 0
            if domain not in _NAMES:
                raise self.refuse(f"uses the operator set {domain[:80]!r}")
            found.append(version)
        if len(found) != 1 or not 18 <= found[0] < 100:
            raise self.refuse(f"uses the operator sets {found[:5]} of ONNX")
        return found[0]

    def node(self, message: Message) -> Node:
        op, domain = message.text(4), message.text(7)
        if domain not in _NAMES or message.of(8):
            raise self.refuse(f"has the operation {op[:80]!r} of {(domain or 'a function')[:80]!r}")
        for number, what in ((1, "inputs"), (2, "outputs")):
            if (count := len(message.spans(number))) > MAX_PORTS:
                raise self.refuse(f"has a node {op[:80]} with {count} {what}")
        attributes: dict[str, Any] = {}
        for attribute in message.messages(5):
            name = attribute.text(1)
            if name in attributes:
                raise self.refuse(f"has the attribute {name[:80]!r} twice")
            attributes[name] = self.attribute(attribute, op)
        return Node(op, tuple(message.texts(1)), tuple(message.texts(2)), attributes)

    def attribute(self, message: Message, op: str) -> Any:
        # name, f, i, s, t, floats, ints, doc_string, type. The others (a reference to a function's
        # attribute, a graph, a type, a sparse tensor) are in no graph of ours.
        allowed = {1, 2, 3, 4, 5, 7, 8, 13, 20}
        if other := [n for n in message.numbers if n not in allowed]:
            raise self.refuse(f"has a subgraph or the like (field {other[0]}) in a node {op}")
        kind = message.number(20)
        if kind == 1:
            return message.floats(2)[-1] if message.of(2) else 0.0
        if kind == 2:
            return message.number(3) or 0
        if kind == 3:
            return message.text(4)
        if kind == 4:
            value = self.weight(message.one_message(5))
            if value.external is not None:
                raise self.refuse(f"reads a value of a node {op} from a file")
            return value
        if kind == 6:
            return message.floats(7)
        if kind == 7:
            return message.integers(8)
        raise self.refuse(f"has an attribute of type {kind} in a node {op}")

    def weight(self, message: Message) -> Weight:
        dims = tuple(message.integers(1))
        dtype = message.number(2) or 0
        if dtype not in DTYPES or len(dims) > MAX_RANK or any(not 0 <= n < 2**40 for n in dims):
            raise self.refuse(f"has a weight of type {dtype} and sizes {dims[:MAX_RANK]}")
        if message.of(3):
            raise self.refuse("has a weight in segments")
        found = Weight(dtype, dims)
        if message.of(13) or (message.number(14) or 0):
            if found.bytes >= 2**45:
                raise self.refuse(f"has a weight of sizes {dims}")
            told = self.entries(message, 13, "a weight's external data")
            offset = told.get("offset", "0")
            if not offset.isascii() or not offset.isdecimal() or len(offset) > 15:
                raise self.refuse(f"has a weight at the offset {offset[:40]!r} of a file")
            place = int(offset), int(offset) + found.bytes
            return Weight(dtype, dims, external=told.get("location", ""), place=place)
        raw = message.spans(9)
        if len(raw) > 1 or (raw and any(message.of(n) for n in (4, 5, 6, 7, 10, 11))):
            raise self.refuse("has a weight that is given twice")
        if not raw:
            return Weight(dtype, dims, self.listed(message, found))
        start, end = raw[0]
        if end - start != found.bytes:
            raise self.refuse(f"has a weight of sizes {dims} in {end - start} bytes")
        word = DTYPES[dtype][0]
        if word is None or prod(dims) > MAX_NUMBERS:
            return Weight(dtype, dims, place=(start, end))
        values = np.frombuffer(self.file.bytes(start, end), np.dtype(word).newbyteorder("<"))
        return Weight(dtype, dims, values.astype(word).reshape(dims), place=(start, end))

    def listed(self, message: Message, weight: Weight) -> np.ndarray | None:
        """The elements of a small weight that is stored as numbers instead of raw bytes."""
        count, word = prod(weight.dims), DTYPES[weight.dtype][0]
        if not count:
            return np.zeros(weight.dims, word or "uint8")
        if count > MAX_NUMBERS or word is None:
            raise self.refuse(f"has a weight of sizes {weight.dims} that is not in raw bytes")
        values: list[Any]
        if word == "float32":
            values = message.floats(4)
        elif word == "float64":
            values = message.doubles(10)
        else:
            values = message.integers({"int64": 7, "uint32": 11, "uint64": 11}.get(word, 5))
        if len(values) != count:
            raise self.refuse(f"has a weight of sizes {weight.dims} with {len(values)} elements")
        try:
            if word == "float16":
                return np.array(values, "uint16").view(word).reshape(weight.dims)
            return np.array(values, word).reshape(weight.dims)
        except (OverflowError, ValueError) as e:
            raise self.refuse("has a weight whose elements do not fit its type") from e

    def entries(self, message: Message, number: int, what: str) -> dict[str, str]:
        """The keys and values in a repeated field; what: the field, for messages."""
        found: dict[str, str] = {}
        for entry in message.messages(number):
            key = entry.text(1)
            if key in found:
                raise self.refuse(f"has the key {key[:80]!r} twice in {what}")
            if len(found) == MAX_PROPERTIES:
                raise self.refuse(f"has more than {MAX_PROPERTIES} keys in {what}")
            found[key] = entry.text(2)
        return found
