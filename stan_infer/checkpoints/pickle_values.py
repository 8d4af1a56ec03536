"""What the inert reader of pickles gives beside plain values: names and calls as records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """The name of a class or function: a label, never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        """Return the dotted name."""
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Placeholder:
    """Stands for a value that is not made: what would have made it, and its attributes if known."""

    maker: Global | str
    state: dict[object, object] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LongText:
    """Text that lies in the pickle at `start`, `size` bytes long, not yet decoded."""

    start: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A function of torch that makes a tensor, or "storage", and the arguments of the pickle."""

    function: str
    args: tuple[object, ...]


def describe(value: object) -> str:
    """Say in a word or two what a value of `read_pickle` is, for messages."""
    if isinstance(value, Global | Placeholder):
        return str(value if isinstance(value, Global) else value.maker)
    if isinstance(value, Call):
        return "a storage" if value.function == "storage" else "a tensor"
    if isinstance(value, str | LongText):
        return "text"
    return "None" if value is None else f"a value of type {type(value).__name__}"
