"""Protocol buffers' wire format, walked in place: fields and sizes bounded, damage an error.

Whole messages are never built, so that a file of gigabytes costs what its small fields cost.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection, Iterator

from stan_infer.errors import InputError

MAX_FIELDS = 2_000_000  # read one by one, 4 s at most; a large graph has 60,000
MAX_TEXT = 65536  # bytes of one name or value
MAX_NUMBERS = 4096  # of one repeated field of numbers


class Message:
    """The fields of one message: number -> (wire type, first byte, end), in the file's order."""

    def __init__(self, file: File, start: int, end: int) -> None:
        """Read the fields that lie at start..end; InputError where they are damaged."""
        self._file = file
        self._fields: dict[int, list[tuple[int, int, int]]] = {}
        for number, wire, first, stop in file.fields(start, end):
            self._fields.setdefault(number, []).append((wire, first, stop))

    @property
    def numbers(self) -> Collection[int]:
        """Numbers of the fields that are there."""
        return self._fields

    def of(self, number: int) -> bool:
        """Whether a field is there."""
        return number in self._fields

    def spans(self, number: int) -> list[tuple[int, int]]:
        """First byte and end of every value of a length-delimited field."""
        found = self._fields.get(number, ())
        for wire, start, _ in found:
            if wire != 2:
                raise self._file.malformed(start)
        return [(start, end) for _, start, end in found]

    def one(self, number: int) -> tuple[int, int, int] | None:
        """A field that may be there once: parsers merge two, each in its own way."""
        found = self._fields.get(number, ())
        if len(found) > 1:
            raise self._file.malformed(found[1][1])
        return found[0] if found else None

    def one_message(self, number: int) -> Message:
        """The message in a field, which must be there once."""
        self.one(number)
        ((start, end),) = self.spans(number) or [(0, 0)]
        return Message(self._file, start, end)

    def text(self, number: int) -> str:
        """A field of text, "" where it is absent."""
        self.one(number)
        return next(iter(self.texts(number)), "")

    def texts(self, number: int) -> list[str]:
        """Every value of one field of text."""
        found = []
        for start, end in self.spans(number):
            if end - start > MAX_TEXT:
                raise self._file.malformed(start)
            try:
                found.append(self._file.bytes(start, end).decode())
            except UnicodeDecodeError as e:
                raise self._file.malformed(start) from e
        return found

    def number(self, number: int) -> int | None:
        """A field of one integer."""
        self.one(number)
        return next(iter(self.integers(number)), None)

    def integers(self, number: int) -> list[int]:
        """A repeated field of signed integers, packed or not."""
        found: list[int] = []
        for wire, start, end in self._fields.get(number, ()):
            if wire not in (0, 2):
                raise self._file.malformed(start)
            while start < end:
                value, start = self._file.varint(start, end, 10)
                found.append(value - 2**64 if value >= 2**63 else value)
                if len(found) > MAX_NUMBERS:
                    raise self._file.malformed(start)
        return found

    def floats(self, number: int) -> list[float]:
        """A repeated field of float, packed or not."""
        return self._fixed(number, "f", 5)

    def doubles(self, number: int) -> list[float]:
        """A repeated field of double, packed or not."""
        return self._fixed(number, "d", 1)

    def _fixed(self, number: int, code: str, alone: int) -> list[float]:
        found: list[float] = []
        size = struct.calcsize(code)
        for wire, start, end in self._fields.get(number, ()):
            count = (end - start) // size
            if wire not in (alone, 2) or (end - start) % size or count + len(found) > MAX_NUMBERS:
                raise self._file.malformed(start)
            found += struct.unpack(f"<{count}{code}", self._file.bytes(start, end))
        return found


class File:
    """Bytes of one file; counts the fields that were read from it."""

    def __init__(self, data: bytes | mmap.mmap, name: str) -> None:
        """data: what the file holds; name: what errors call it."""
        self.name, self.size = name, len(data)
        self._data, self._left = data, MAX_FIELDS

    def message(self, start: int, end: int) -> Message:
        """Read the fields of the message that lies at start..end."""
        return Message(self, start, end)

    def bytes(self, start: int, end: int) -> bytes:
        """A part of the file."""
        return self._data[start:end]

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type, first byte and end of each field of the message at start..end."""
        while start < end:
            self._left -= 1
            if self._left < 0:
                raise InputError(f"{self.name} has more than {MAX_FIELDS} protobuf fields")
            tag, start = self.varint(start, end, longest=5)
            number, wire = tag >> 3, tag & 7
            if wire == 2:
                length, start = self.varint(start, end, longest=5)
                stop = start + length
            elif wire == 0:
                stop = self.varint(start, end, longest=10)[1]
            elif wire == 1:
                stop = start + 8
            elif wire == 5:
                stop = start + 4
            else:  # 3 and 4 are groups, which ONNX never had
                raise self.malformed(start)
            if stop > end or not 0 < number < 2**29:
                raise self.malformed(start)
            yield number, wire, start, stop
            start = stop

    def varint(self, start: int, end: int, longest: int) -> tuple[int, int]:
        """A number of at most `longest` bytes, and the byte behind it."""
        if start < end and self._data[start] < 128:  # nearly every tag and length
            return self._data[start], start + 1
        value = 0
        for i in range(min(longest, end - start)):
            byte = self._data[start + i]
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                return value & (2**64 - 1), start + i + 1
        raise self.malformed(start)

    def malformed(self, at: int) -> InputError:
        """The error for bytes that are not what the format has there."""
        return InputError(
            f"{self.name} is not well-formed (at byte {at} of {self.size}): "
            "incomplete copy? export the checkpoint again"
        )
