"""The stack machine of the inert reader of pickles: its state, and limits on what it may cost."""

from __future__ import annotations

from collections.abc import Callable

from stan_infer.checkpoints.torch_zip import RESAVE
from stan_infer.errors import InputError

MAX_STEPS = 1_000_000  # opcodes, and values copied by one of them; real files need some 100,000
_TEXT_BUDGET = 24 << 20  # memory for all decoded text and names
Rule = Callable[[str, str], bool]


class Machine:
    """The bytes of a pickle, a stack, a memo, and the steps that may still be taken."""

    def __init__(self, data: bytes, may_name: Rule, may_call: Rule) -> None:
        """Start before the first byte; the rules are those of read_pickle."""
        self.data = data
        self.may_name, self.may_call = may_name, may_call
        self.at = 0  # of the next byte
        self.op = 0  # where the running opcode stands
        self.steps = 0
        self.text_bytes = 0
        self.stack: list[object] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, object] = {}
        self.push = self.stack.append

    def error(self, what: str) -> InputError:
        """Return the error for a pickle that does what it may not, with its place."""
        return InputError(
            f"its pickle {what} (byte {self.op} of {len(self.data)}): refused, because the file is "
            f"damaged or holds more than plain data; {RESAVE}"
        )

    def charge(self, steps: int) -> None:
        """Count steps; InputError beyond MAX_STEPS."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise self.error(f"needs more than {MAX_STEPS} steps")

    def charge_text(self, size: int) -> None:
        """Count the memory of a decoded text; InputError beyond what is allowed."""
        self.text_bytes += size + 64  # of an object's header
        if self.text_bytes > _TEXT_BUDGET:
            raise self.error(f"holds more than {_TEXT_BUDGET} bytes of names and short texts")

    def skip(self, size: int) -> int:
        """Pass over `size` bytes and return where they began."""
        start = self.at
        if size > len(self.data) - start:
            raise self.error(f"asks for {size} bytes where {len(self.data) - start} are left")
        self.at = start + size
        return start

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        start = self.skip(size)
        return self.data[start : self.at]

    def decode(self, raw: bytes) -> str:
        """Return bytes as text, whose memory is counted."""
        self.charge_text(len(raw) if raw.isascii() else 4 * len(raw))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as e:
            raise self.error("has text that is not UTF-8") from e

    def number(self, size: int) -> int:
        """Return the next bytes as a number without a sign."""
        return int.from_bytes(self.take(size), "little")

    def pop(self) -> object:
        """Take the value on top, which must belong to the group that is open."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.error("takes a value from an empty stack")
        return self.stack.pop()

    def top(self) -> object:
        """Return the value on top, and leave it there."""
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_mark(self) -> list[object]:
        """Close a group and take its values."""
        if not self.marks:
            raise self.error("closes a group that was not opened")
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items
