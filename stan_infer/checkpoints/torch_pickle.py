"""An inert reader of the pickle in a PyTorch checkpoint: nothing is imported, called or built.

A pickle is a program for a stack machine. This machine keeps plain values; the name of a class or
function is only a label, and what the program wants called becomes a record (pickle_calls).
Opcodes as in CPython's `pickletools`, protocols 2 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from stan_infer.checkpoints.pickle_calls import (
    give_state,
    is_key,
    name_of_line,
    push_call,
    push_global,
    push_new,
    push_storage,
)
from stan_infer.checkpoints.pickle_machine import MAX_STEPS, Machine, Rule
from stan_infer.checkpoints.pickle_values import LongText, Placeholder, describe
from stan_infer.checkpoints.torch_zip import RESAVE
from stan_infer.errors import InputError

MAX_PICKLE_BYTES = 128 << 20
MAX_MARKS = 1_000
MAX_TEXT_BYTES = 1 << 20  # longer text is skipped: curves of a training log
_LAZY_BYTES = 4096  # longer text is decoded only by text_of
_MAX_INT_BYTES = 64


def read_pickle(data: bytes, may_name: Rule, may_call: Rule) -> object:
    """Return what the pickle describes, as dicts, lists, tuples, plain values and records.

    Text beyond 4 KiB is LongText (see `text_of`), bytes and text beyond 1 MiB a Placeholder.
    may_name, may_call: of which classes and functions (module, name) it may hold the name or want
    a call; neither is looked up or made. Raises InputError, with the position, for any pickle that
    is malformed, names or calls others, or exceeds the limits above.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise InputError(f"its pickle has more than {MAX_PICKLE_BYTES} bytes: {RESAVE}")
    return _run(Machine(data, may_name, may_call))


def text_of(data: bytes, value: object) -> str | None:
    """Return a value of `read_pickle(data)` as text, or None if it is not text."""
    if isinstance(value, LongText):
        return data[value.start : value.start + value.size].decode("utf-8", errors="replace")
    return value if isinstance(value, str) else None


def _run(m: Machine) -> object:
    if m.data[:1] != b"\x80":
        raise m.error("does not begin with opcode PROTO; protocols 2 to 5 are read")
    while True:
        m.op = m.at
        m.charge(1)
        code = m.take(1)[0]
        if code == ord("."):
            break
        action = _ACTIONS.get(code)
        if action is None:
            name = _REFUSED.get(code, "unknown")
            raise m.error(f"has opcode {name} (0x{code:02x}), which no checkpoint needs")
        action(m)
    value = m.pop()
    if m.stack or m.marks or m.at != len(m.data):
        raise m.error("ends with values or bytes left over")
    return value


_Action = Callable[[Machine], object]
_SET = Placeholder("a set")


def _proto(m: Machine) -> None:
    version = m.number(1)
    if m.op or not 2 <= version <= 5:
        raise m.error(f"declares protocol {version}; read are 2 to 5, declared once")


def _mark(m: Machine) -> None:
    if len(m.marks) >= MAX_MARKS:
        raise m.error(f"opens more than {MAX_MARKS} groups within each other")
    m.marks.append(len(m.stack))


def _pop(m: Machine) -> None:
    if m.marks and m.marks[-1] == len(m.stack):
        m.marks.pop()
    else:
        m.pop()


def _long(width: int) -> _Action:
    def action(m: Machine) -> None:
        size = m.number(width)
        if size > _MAX_INT_BYTES:
            raise m.error(f"has an integer of {size} bytes; at most {_MAX_INT_BYTES} are read")
        m.push(int.from_bytes(m.take(size), "little", signed=True))

    return action


def _text(width: int) -> _Action:
    def action(m: Machine) -> None:
        size = m.number(width)
        start = m.skip(size)
        if size > MAX_TEXT_BYTES:
            m.push(Placeholder("long text"))
        elif size > _LAZY_BYTES:
            m.push(LongText(start, size))
        else:
            m.push(m.decode(m.data[start : m.at]))

    return action


def _bytes(width: int) -> _Action:
    def action(m: Machine) -> None:
        m.skip(m.number(width))
        m.push(Placeholder("bytes"))

    return action


def _put(width: int) -> _Action:
    def action(m: Machine) -> None:
        index = m.number(width) if width else len(m.memo)
        if index > MAX_STEPS:
            raise m.error(f"stores value number {index}; at most {MAX_STEPS} are kept")
        m.memo[index] = m.top()

    return action


def _get(width: int) -> _Action:
    def action(m: Machine) -> None:
        index = m.number(width)
        if index not in m.memo:
            raise m.error(f"recalls value number {index}, which was not stored")
        m.push(m.memo[index])

    return action


def _tuple(size: int) -> _Action:
    def action(m: Machine) -> None:
        height = len(m.stack) - size
        if height < (m.marks[-1] if m.marks else 0):
            raise m.error(f"makes a tuple of {size} values and has fewer")
        m.stack[height:] = [tuple(m.stack[height:])]

    return action


def _extend(m: Machine, values: Sequence[object]) -> None:
    target = m.top()
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Placeholder):
        raise m.error(f"appends to {describe(target)}")


def _update(m: Machine, flat: Sequence[object]) -> None:
    target = m.top()
    if len(flat) % 2:
        raise m.error("has a key without a value")
    if isinstance(target, Placeholder):
        return
    if not isinstance(target, dict):
        raise m.error(f"sets an item of {describe(target)}")
    target.update((k, v) for k, v in zip(flat[::2], flat[1::2], strict=True) if is_key(k))


def _of_width(make: Callable[[int], _Action], widths: dict[str, int]) -> dict[int, _Action]:
    return {ord(opcode): make(width) for opcode, width in widths.items()}


_ACTIONS: dict[int, _Action] = {
    **_of_width(_text, {"U": 1, "T": 4, "X": 4, "\x8c": 1, "\x8d": 8}),
    **_of_width(_bytes, {"C": 1, "B": 4, "\x8e": 8, "\x96": 8}),
    **_of_width(_long, {"\x8a": 1, "\x8b": 4}),
    **_of_width(_put, {"q": 1, "r": 4, "\x94": 0}),
    **_of_width(_get, {"h": 1, "j": 4}),
    **_of_width(_tuple, {")": 0, "\x85": 1, "\x86": 2, "\x87": 3}),
    0x80: _proto,
    0x95: lambda m: m.number(8),  # a frame of that size: only readers from pipes need it
    ord("("): _mark,
    ord("0"): _pop,
    ord("1"): lambda m: m.pop_mark(),
    ord("2"): lambda m: m.push(m.top()),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.number(1)),
    ord("M"): lambda m: m.push(m.number(2)),
    ord("J"): lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    ord("]"): lambda m: m.push([]),
    ord("}"): lambda m: m.push({}),
    0x8F: lambda m: m.push(_SET),
    0x91: lambda m: (m.pop_mark(), m.push(_SET)),
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    ord("a"): lambda m: _extend(m, [m.pop()]),
    ord("e"): lambda m: _extend(m, m.pop_mark()),
    0x90: lambda m: _extend(m, m.pop_mark()),
    ord("s"): lambda m: _update(m, [m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: _update(m, m.pop_mark()),
    ord("c"): lambda m: push_global(m, name_of_line(m), name_of_line(m)),
    0x93: lambda m: push_global(m, *[m.pop(), m.pop()][::-1]),
    ord("R"): push_call,
    0x81: push_new,
    ord("b"): give_state,
    ord("Q"): push_storage,
}
_REFUSED_NAMES = (
    "FLOAT INT LONG STRING UNICODE PERSID DICT GET INST LIST OBJ PUT "
    "EXT1 EXT2 EXT4 NEWOBJ_EX NEXT_BUFFER READONLY_BUFFER"
)
_REFUSED = dict(zip(b"FILSVPdgilop\x82\x83\x84\x92\x97\x98", _REFUSED_NAMES.split(), strict=True))
