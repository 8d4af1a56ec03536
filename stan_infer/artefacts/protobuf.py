"""A reader of protocol buffers' wire format: bounded, and an InputError for damaged files.

It reads only the fields that are asked for and steps over the rest, so that a file with gigabytes
of weights takes no more memory than its small fields.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection, Iterator

from stan_infer.errors import InputError

MAX_FIELDS = 2_000_000  # of one file; reading them takes at most 4 s; a large graph has 60,000
MAX_TEXT = 65536  # bytes of one name or value
MAX_NUMBERS = 4096  # of one repeated field of numbers


class Message:
    """The fields of one message, by number."""

    def __init__(self, file: File, start: int, end: int) -> None:
        """Find the fields in bytes start to end of the file; InputError if they are damaged."""
        self._file = file
        # Number -> (wire type, first byte, end) of each value, in the file's order.
        self._fields: dict[int, list[tuple[int, int, int]]] = {}
        for number, wire, first, stop in file.fields(start, end):
            self._fields.setdefault(number, []).append((wire, first, stop))

    @property
    def numbers(self) -> Collection[int]:
        """Numbers of the fields that are present."""
        return self._fields

    def of(self, number: int) -> bool:
        """Whether a field is present."""
        return number in self._fields

    def spans(self, number: int) -> list[tuple[int, int]]:
        """First byte and end of every value of a length-delimited field."""
        found = self._fields.get(number, ())
        for wire, start, _ in found:
            if wire != 2:
                raise self._file.malformed(start)
        return [(start, end) for _, start, end in found]

    def one(self, number: int) -> tuple[int, int, int] | None:
        """A field that may be present once; None if absent. Parsers differ on a second value."""
        found = self._fields.get(number, ())
        if len(found) > 1:
            raise self._file.malformed(found[1][1])
        return found[0] if found else None

    def messages(self, number: int) -> Iterator[Message]:
        """Yield every value of a repeated field of messages."""
        return (Message(self._file, *span) for span in self.spans(number))

    def one_message(self, number: int) -> Message:
        """The message in a field that may be present once; an empty one if absent."""
        self.one(number)
        return next(self.messages(number), Message(self._file, 0, 0))

    def text(self, number: int) -> str:
        """The value of a field of text; "" if absent."""
        self.one(number)
        return next(iter(self.texts(number)), "")

    def texts(self, number: int) -> list[str]:
        """Every value of a repeated field of text."""
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
        """The value of an integer field; None if absent."""
        self.one(number)
        return next(iter(self.integers(number)), None)

    def integers(self, number: int) -> list[int]:
        """Every value of a repeated field of signed integers, packed or not."""
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
        """Every value of a repeated field of floats, packed or not."""
        return self._fixed(number, "f", 5)

    def doubles(self, number: int) -> list[float]:
        """Every value of a repeated field of doubles, packed or not."""
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
    """The bytes of one file. At most MAX_FIELDS fields are read from it."""

    def __init__(self, data: bytes | mmap.mmap, name: str) -> None:
        """data: the file's content; name: of the file, for error messages."""
        self.name, self.size = name, len(data)
        self._data, self._left = data, MAX_FIELDS

    def message(self) -> Message:
        """The message that the whole file is."""
        return Message(self, 0, self.size)

    def bytes(self, start: int, end: int) -> bytes:
        """Bytes start to end of the file."""
        return self._data[start:end]

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield number, wire type, first byte and end of each field in bytes start to end."""
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
            else:  # 3 and 4 are groups, which ONNX does not use
                raise self.malformed(start)
            if stop > end or not 0 < number < 2**29:
                raise self.malformed(start)
            yield number, wire, start, stop
            start = stop

    def varint(self, start: int, end: int, longest: int) -> tuple[int, int]:
        """Read a number of at most `longest` bytes; return it and the position behind it."""
        if start < end and self._data[start] < 128:  # true of nearly every tag and length
            return self._data[start], start + 1
        value = 0
        for i in range(min(longest, end - start)):
            byte = self._data[start + i]
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                return value & (2**64 - 1), start + i + 1
        raise self.malformed(start)

    def malformed(self, at: int) -> InputError:
        """The error for bytes that the format does not allow at this position."""
        return InputError(
            f"{self.name} is not well-formed (at byte {at} of {self.size}): "
            "incomplete copy? export the checkpoint again"
        )
