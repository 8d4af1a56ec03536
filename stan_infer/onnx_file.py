"""What an .onnx file names, read from its bytes without onnx or protobuf, and without its weights.

A runtime opens every file that a graph names as external data, wherever that lies; here those
names are seen first. The file is walked in place (protobuf wire format, ModelProto of onnx.proto);
weights are stepped over. It comes from strangers: fields, depth and text sizes are bounded, and
whatever is not plainly right is an InputError.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from stan_infer.errors import InputError

MAX_FIELDS = 2_000_000  # read one by one, 4 s at most; a large graph has 60,000
MAX_DEPTH = 100  # messages inside messages; protobuf's own limit
MAX_TEXT = 65536  # bytes of one name or value
MAX_PROPERTIES = 1000

# Message -> field number -> message there: every way from a model to a tensor's external_data.
MESSAGES = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "TensorProto": {13: "StringStringEntryProto"},
    "StringStringEntryProto": {},
}
_GRAPH, _PROPERTIES = 7, 14  # fields of ModelProto
_NODE, _OP_TYPE = 1, 4  # of GraphProto, of NodeProto
_KEY, _VALUE = 1, 2  # fields of StringStringEntryProto

Field = tuple[int, int, int, int]  # number, wire type, first byte, end


def external_locations(path: Path) -> list[str]:
    """Names of the files from which the graph's tensors are read, sorted.

    Raises InputError for a file that is not a well-formed ONNX model.
    """
    found: set[str] = set()
    with _File(path) as file:
        if not any(number == _GRAPH for number, *_ in file.fields(0, file.size)):
            raise InputError(f"{path.name} is not an ONNX model: it holds no graph")
        for start, end in file.entries():
            keys, values = file.entry(start, end)
            # Of a field given twice a parser takes the last: so none of them may be a location.
            if "location" in keys:
                found.update(values or [""])  # a missing value is an empty one
    return sorted(found)


def check_external(path: Path, allowed: Collection[str]) -> None:
    """Refuse a graph that reads a file which is not in `allowed` (names relative to its folder).

    Raises InputError, also for an allowed name that is absolute or leaves the folder.
    """
    for name in external_locations(path):
        plain = re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*", name)
        if name not in allowed or not plain or ".." in name.split("/"):
            raise InputError(
                f"{path.name} reads weights from {name[:80]!r}, which manifest.json does not list "
                "as its external data: nothing was opened; export the checkpoint again"
            )


def metadata_props(path: Path) -> dict[str, str]:
    """The model's own key-value notes (ModelProto.metadata_props).

    Raises InputError for a malformed file, a key that appears twice, or more than MAX_PROPERTIES.
    """
    found: dict[str, str] = {}
    with _File(path) as file:
        for number, _, start, end in file.fields(0, file.size):
            if number != _PROPERTIES:
                continue
            keys, values = file.entry(start, end)
            if len(keys) > 1 or len(values) > 1 or (keys or [""])[0] in found:
                raise InputError(f"{path.name} is malformed: a metadata key appears twice")
            if len(found) == MAX_PROPERTIES:
                raise InputError(f"{path.name} has more than {MAX_PROPERTIES} metadata entries")
            found["".join(keys)] = "".join(values)
    return found


def count_ops(path: Path) -> Counter[str]:
    """How many nodes of each operation the main graph has; InputError for a malformed file."""
    found: Counter[str] = Counter()
    with _File(path) as file:
        for number, _, start, end in file.fields(0, file.size):
            if number != _GRAPH:
                continue
            for part, _, first, stop in file.fields(start, end):
                if part == _NODE:
                    found.update(file.texts(first, stop, _OP_TYPE))
    return found


class _File:
    """One file, mapped into memory; counts the fields that were read from it."""

    def __init__(self, path: Path) -> None:
        self.name, self._left = path.name, MAX_FIELDS
        try:
            with path.open("rb") as f:
                self._data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:  # ValueError: an empty file cannot be mapped
            raise InputError(f"{path} cannot be read as an ONNX model: {e}") from e
        self.size = len(self._data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *args: object) -> None:
        self._data.close()

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Read the fields of the message that lies at start..end."""
        while start < end:
            self._left -= 1
            if self._left < 0:
                raise InputError(f"{self.name} has more than {MAX_FIELDS} protobuf fields")
            tag, start = self._varint(start, end, longest=5)
            number, wire = tag >> 3, tag & 7
            if wire == 2:
                length, start = self._varint(start, end, longest=5)
                stop = start + length
            elif wire == 0:
                stop = self._varint(start, end, longest=10)[1]
            elif wire == 1:
                stop = start + 8
            elif wire == 5:
                stop = start + 4
            else:  # 3 and 4 are groups, which ONNX never had
                raise self._malformed(start)
            if stop > end or not 0 < number < 2**29:
                raise self._malformed(start)
            yield number, wire, start, stop
            start = stop

    def entries(self) -> Iterator[tuple[int, int]]:
        """Find every external_data entry of every tensor; an own stack, so depth costs nothing."""
        stack = [("ModelProto", self.fields(0, self.size))]
        while stack:
            message, fields = stack[-1]
            field = next(fields, None)
            if field is None:
                stack.pop()
                continue
            number, wire, start, end = field
            below = MESSAGES[message].get(number)
            if below is None:
                continue
            if wire != 2 or len(stack) == MAX_DEPTH:
                raise self._malformed(start)
            if below == "StringStringEntryProto":
                yield start, end
            else:
                stack.append((below, self.fields(start, end)))

    def entry(self, start: int, end: int) -> tuple[list[str], list[str]]:
        """Every key and every value of one StringStringEntryProto: one each, if it is honest."""
        return self.texts(start, end, _KEY), self.texts(start, end, _VALUE)

    def texts(self, start: int, end: int, wanted: int) -> list[str]:
        """Every value of one field of text."""
        found: list[str] = []
        for number, wire, first, stop in self.fields(start, end):
            if number != wanted:
                continue
            if wire != 2 or stop - first > MAX_TEXT:
                raise self._malformed(first)
            try:
                found.append(self._data[first:stop].decode())
            except UnicodeDecodeError as e:
                raise self._malformed(first) from e
        return found

    def _varint(self, start: int, end: int, longest: int) -> tuple[int, int]:
        if start < end and self._data[start] < 128:  # nearly every tag and length
            return self._data[start], start + 1
        value = 0
        for i in range(min(longest, end - start)):
            byte = self._data[start + i]
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                return value, start + i + 1
        raise self._malformed(start)

    def _malformed(self, at: int) -> InputError:
        return InputError(
            f"{self.name} is not a well-formed ONNX model (at byte {at} of {self.size}): "
            "incomplete copy? export the checkpoint again"
        )
