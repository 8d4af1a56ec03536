"""Where weights lie in what a checkpoint's pickle describes, and what else the file says of itself.

A state dict is a dict with tensors, or a module, whose attributes are followed: a torch.nn.Module
that was pickled whole, or one of a TorchScript archive. Nothing of either is built or run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from stan_infer.checkpoints.pickle_values import Call, Placeholder, describe
from stan_infer.checkpoints.torch_pickle import text_of
from stan_infer.checkpoints.torch_zip import RESAVE
from stan_infer.errors import InputError

MAX_TENSORS = 20_000
MAX_NAME = 512
_MAX_HELD = 10 * MAX_TENSORS  # of all modules together
_MAX_NODES = 200_000  # dicts and modules that are looked at; a large trainer's file has 20,000
_ENTRIES = 20  # of a module that are looked at as fast as another module
_DEPTH = 4  # keys above a state dict, as in callbacks.EMA.state.weights
_MAX_KEY = 80
_SHOWN = 20  # names in hints
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "params")
_SCRIPTED = "__torch__"  # the module of all classes of a TorchScript archive
StateDict = Mapping[Any, object]


def is_tensor(value: object) -> bool:
    """Whether a value of the pickle is a tensor."""
    return isinstance(value, Call) and value.function != "storage"


def is_weight(name: object, value: object) -> TypeGuard[str]:
    """Whether an entry of a state dict is a tensor with a name that a weight may have."""
    is_name = isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_NAME
    return is_name and is_tensor(value)


def find_state_dicts(top: object) -> tuple[dict[str, StateDict], str | None]:
    """Return all state dicts by their dotted paths, "" for the top level, and the ordinary one's.

    What belongs to an optimizer is left out. The ordinary one is at the top level, or under one or
    two of the names that trainers use; None if it is nowhere there. Raises InputError for a file
    without any, and for one that is too large to search.
    """
    if not isinstance(top, dict) and not _is_module(top):
        raise InputError(f"it holds {describe(top)} instead of a state dict: {RESAVE}")
    found = dict(_search(top))
    if not found:
        keys = shown_keys(top) if isinstance(top, dict) else []
        raise InputError(
            f"no tensors at its top level (keys: {', '.join(keys) or 'none'}) or under "
            f"{', '.join(_WRAPPERS)}; give a file that holds a state dict"
        )
    return found, _ordinary(found)


def _ordinary(found: Mapping[str, StateDict]) -> str | None:
    own = found.get("", {})
    if 2 * sum(map(is_tensor, own.values())) > len(own):
        return ""
    for first in _WRAPPERS:
        for path in (first, *(f"{first}.{second}" for second in _WRAPPERS)):
            if path in found:
                return path
    return "" if own else None


def _search(top: object) -> Iterator[tuple[str, StateDict]]:
    """Yield (path, state dict), those above before those below."""
    seen: set[int] = set()
    left, held = [_MAX_NODES], 0
    queue: deque[tuple[str, int, object]] = deque([("", 0, top)])
    while queue:
        path, depth, value = queue.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        state = _tensors_of(value, left) if isinstance(value, Placeholder) else value
        _count(left)
        assert isinstance(state, dict)
        if isinstance(value, Placeholder):
            held += len(state)  # made here, unlike a dict of the file
            if held > _MAX_HELD:
                raise InputError(f"its modules hold more than {_MAX_HELD} tensors: {RESAVE}")
        if any(is_weight(k, v) for k, v in state.items()):
            yield path, state
        if depth == _DEPTH or not isinstance(value, dict):
            continue
        for key, below in value.items():
            is_open = isinstance(below, dict) or _is_module(below)
            if is_open and _is_key(key) and "optim" not in key.lower():
                queue.append((f"{path}.{key}" if path else key, depth + 1, below))


def _is_key(key: object) -> TypeGuard[str]:
    return isinstance(key, str) and key.isprintable() and 0 < len(key) <= _MAX_KEY


def _count(left: list[int], steps: int = 1) -> None:
    left[0] -= steps
    if left[0] < 0:
        raise InputError(f"it holds too many dicts and modules to search: {RESAVE}")


def _is_module(value: object) -> TypeGuard[Placeholder]:
    if not isinstance(value, Placeholder) or value.state is None:
        return False
    return is_scripted(value) or all(isinstance(value.state.get(k), dict) for k in _PARTS)


_PARTS = ("_parameters", "_buffers", "_modules")


def is_scripted(value: object) -> bool:
    """Whether a value is an object of a TorchScript archive."""
    return isinstance(value, Placeholder) and str(value.maker).startswith(f"{_SCRIPTED}.")


def _tensors_of(module: Placeholder, left: list[int]) -> dict[str, object]:
    """Return the tensors of a module and all modules below it by their dotted names."""
    found: dict[str, object] = {}
    stack: list[tuple[str, object]] = [("", module)]
    while stack:
        prefix, value = stack.pop()
        if not _is_module(value):
            continue
        state = value.state or {}
        parts: list[Any] = [state] if is_scripted(value) else [state[k] for k in _PARTS]
        # Modules may share their entries, each of which is looked at once for each of them.
        _count(left, 1 + sum(map(len, parts)) // _ENTRIES)
        below = []
        for key, entry in (item for part in parts for item in part.items()):
            if not isinstance(key, str) or not (is_tensor(entry) or _is_module(entry)):
                continue
            name = f"{prefix}{key}"
            if len(name) > MAX_NAME or len(found) > MAX_TENSORS:
                raise InputError(f"its modules lie too deep or hold too much: {RESAVE}")
            if is_tensor(entry):
                found[name] = entry
            else:
                below.append((f"{name}.", entry))
        stack += reversed(below)
    return found


def shown_keys(top: Mapping[Any, object]) -> list[str]:
    """Return the first keys of a dict, for messages and hints."""
    return [shown(k) for k in top if isinstance(k, str)][:_SHOWN]


def shown(key: object) -> str:
    """A key for a message: short, and nothing in it that a terminal would obey."""
    return key if _is_key(key) else ascii(key)[:_MAX_KEY]


def read_hints(top: object, wrapper: str | None, data: bytes) -> dict[str, object]:
    """Return what the file says of itself (see open_torch_file); nothing of it is relied on.

    wrapper: path of the ordinary state dict, None if there is none. data: the pickle.
    """
    meta, hub = _get(top, "meta"), _get(top, "message_hub")
    cfg = text_of(data, _get(meta, "cfg"))
    if cfg is None:
        cfg = text_of(data, _get(_get(hub, "runtime_info"), "cfg"))
    epoch = _get(meta, "epoch")
    epoch = _get(top, "epoch") if epoch is None else epoch
    layout = "wrapped" if wrapper else "flat"
    if wrapper == "state_dict" and isinstance(meta, dict):
        layout = "mmengine" if hub is not None or "mmengine_version" in meta else "mmcv"
    if isinstance(top, Placeholder):
        layout = "torchscript" if is_scripted(top) else "module"
    used = {"meta", "message_hub", (wrapper or "").split(".")[0]}
    others = {k: None for k in top if k not in used} if isinstance(top, dict) else {}
    is_count = isinstance(epoch, int) and not isinstance(epoch, bool) and 0 <= epoch < 1 << 63
    return {
        "layout": layout,
        "wrapper": wrapper or None,
        "cfg": cfg,
        "epoch": epoch if is_count else None,
        "others": shown_keys(others) if wrapper else [],
        **({"nameless": nameless} if (nameless := _nameless(top)) else {}),
    }


def _nameless(top: object) -> tuple[str, ...]:
    """Paths of lists of tensors, at most two keys deep: averages of torch-ema and diffusers."""
    found: list[str] = []
    outer = top if isinstance(top, dict) else {}
    looked_at: dict[int, bool] = {}  # one list may stand under many names
    for first, value in list(outer.items())[:_MAX_KEY]:
        inner = value.items() if isinstance(value, dict) else ()
        for path, entry in ((first, value), *((f"{first}.{k}", v) for k, v in list(inner)[:9])):
            if not isinstance(entry, list | tuple):
                continue
            if id(entry) not in looked_at:
                looked_at[id(entry)] = any(map(is_tensor, entry))
            if looked_at[id(entry)] and _is_key(path) and len(found) < _SHOWN:
                found.append(path)
    return tuple(found)


def _get(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None
