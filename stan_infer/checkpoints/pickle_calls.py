"""What a pickle names and wants called, as records: the part of the inert reader about code.

The functions are opcodes of torch_pickle.
"""

from __future__ import annotations

from stan_infer.checkpoints.pickle_machine import Machine
from stan_infer.checkpoints.pickle_values import Call, Global, Placeholder, describe
from stan_infer.checkpoints.torch_names import is_maker

MAX_NAME_BYTES = 256


def name_of_line(m: Machine) -> str:
    """Return the text up to the end of the line, as opcode GLOBAL gives names."""
    end = m.data.find(b"\n", m.at, m.at + MAX_NAME_BYTES + 1)
    if end < 0:
        raise m.error(f"has a name that does not end within {MAX_NAME_BYTES} bytes")
    return m.decode(m.take(end + 1 - m.at)[:-1])


def push_global(m: Machine, module: object, name: object) -> None:
    """Push the name of a class or function, which stays a label."""
    if not isinstance(name, str) or not isinstance(module, str):
        raise m.error(f"names {describe(module)} and {describe(name)} instead of a class")
    m.charge_text(0)
    if max(len(module), len(name)) > MAX_NAME_BYTES or not m.may_name(module, name):
        raise m.error(f"names {ascii(f'{module[:80]}.{name[:80]}')}, which no state dict needs")
    m.push(Global(module, name))


def push_new(m: Machine) -> None:
    """Replace a class and arguments by a record of the object; only a class can stand there."""
    function, _ = _popped_call(m)
    m.push(Placeholder(function))


def push_call(m: Machine) -> None:
    """Replace a function and arguments by a record of what the call would give."""
    function, args = _popped_call(m)
    if not m.may_call(function.module, function.name):
        raise m.error(f"calls {function}, which no state dict needs")
    if is_maker(function.module, function.name):
        m.push(Call(function.name, args))
    elif str(function) == "collections.OrderedDict":
        m.push(_ordered_dict(m, args))
    elif str(function) == "collections.defaultdict":
        m.push({})
    else:
        if function.name == "getattr":
            _check_getattr(m, args)
        m.push(Placeholder(function))


def give_state(m: Machine) -> None:
    """Give an object its attributes; those of dicts, such as a state dict's versions, are dropped.

    An object gets them once: a second time is a program's work, and no file of torch has it.
    """
    state, target = m.pop(), m.top()
    if isinstance(target, Placeholder) and isinstance(target.maker, Global):
        if target.state is None and isinstance(state, dict):
            target.state = state


def push_storage(m: Machine) -> None:
    """Replace a persistent id, which must be a storage's, by a record of it."""
    value = m.pop()
    if not isinstance(value, tuple) or len(value) != 5 or value[0] != "storage":
        raise m.error(f"refers to {describe(value)} where it should refer to a storage")
    m.push(Call("storage", value[1:]))


def is_key(key: object) -> bool:
    """Whether to keep a dict's key: no tuples, whose hash may cost, no ints made to collide."""
    short = isinstance(key, int) and abs(key) < 1 << 63
    return short or key is None or isinstance(key, str | float)


def _popped_call(m: Machine) -> tuple[Global, tuple[object, ...]]:
    args, function = m.pop(), m.pop()
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise m.error(f"calls {describe(function)} with {describe(args)}")
    return function, args


def _ordered_dict(m: Machine, args: tuple[object, ...]) -> dict[object, object]:
    items = args[0] if len(args) == 1 else args
    items = items if isinstance(items, list | tuple) else [None]
    m.charge(len(items))  # the same list can be recalled again and again
    pairs = [item for item in items if isinstance(item, list | tuple) and len(item) == 2]
    if len(pairs) != len(items):
        raise m.error("makes an OrderedDict of something else than pairs")
    return {key: value for key, value in pairs if is_key(key)}


def _check_getattr(m: Machine, args: tuple[object, ...]) -> None:
    """Allow what a trainer's log writes, such as getattr(HistoryBuffer, "mean"), and no more."""
    owner, name = args if len(args) == 2 else (None, None)
    roots = ("mmengine", "mmcv", "numpy", "builtins", "__builtin__")
    known = isinstance(owner, Global) and owner.module.split(".")[0] in roots
    if not (known or isinstance(owner, Placeholder)) or not isinstance(name, str):
        raise m.error(f"calls getattr on {describe(owner)}")
    if name.startswith("_"):
        raise m.error(f"calls getattr for {ascii(name[:80])}")
