"""Read tensors out of a PyTorch zip checkpoint written by a stranger; nothing in it is executed.

torch_zip reads the archive and torch_pickle the pickle in it. This file says what they mean: which
classes may be named, where the state dict lies, which bytes belong to which tensor. Source of the
format: torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeGuard

from stan_infer.checkpoints.pickle_values import Call, Global, describe
from stan_infer.checkpoints.torch_names import STORAGE_MODULES, may_call, may_name
from stan_infer.checkpoints.torch_pickle import MAX_PICKLE_BYTES, read_pickle, text_of
from stan_infer.checkpoints.torch_zip import RESAVE, checkpoint_folder, read_records
from stan_infer.errors import InputError, nearest
from stan_infer.system.outside_file import open_regular, read_at, read_into
from stan_infer.system.stored_zip import Entry

if TYPE_CHECKING:
    from torch import Tensor

MAX_TENSORS = 20_000
MAX_DIMS = 16
MAX_NAME = 512
_MAX_EMPTY = 1 << 40  # product of the sizes of a tensor without elements, each 0 counted as 1
_SLACK = 1 << 20  # bytes added to the limits that grow with the file, for small files
_MAX_READ = 16  # reading every tensor once may read so many times the file's size
_SHOWN = 20  # names in hints
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "params")
_ITEM_BYTES = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2"), 1),
    "complex128": 16,
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_ARGUMENTS = {"_rebuild_tensor": (4, 4), "_rebuild_tensor_v2": (6, 7), "_rebuild_tensor_v3": (7, 8)}
_PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's key in the state dict, its dtype as torch names it (`float32`), its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class _Place(NamedTuple):
    start: int  # byte in the file of the first element
    size: int  # bytes from there to the end of the last element
    stride: tuple[int, ...]  # elements


class TorchFile(AbstractContextManager["TorchFile"]):
    """An open checkpoint: names and shapes at once, the bytes of one tensor at a time."""

    tensors: dict[str, TensorInfo]
    hints: dict[str, object]

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        """Read the structure of an open file of `size` bytes; see open_torch_file."""
        self._path, self._file = path, file
        entries = read_records(file, size)
        prefix = checkpoint_folder(file, entries)
        record = entries[f"{prefix}/data.pkl"]
        data = read_at(file, record.offset, min(record.size, MAX_PICKLE_BYTES + 1))
        top = read_pickle(data, may_name, may_call)
        state, wrapper = _state_dict(top)
        self.tensors, self._places = {}, {}
        left = {}
        for name, value in state.items():
            if not _is_tensor(value) or not _is_name(name):
                left[_shown(name)] = describe(value)
                continue
            if len(self.tensors) >= MAX_TENSORS:
                raise InputError(
                    f"its state dict has more than {MAX_TENSORS} tensors, which no STAN has"
                )
            self.tensors[name], self._places[name] = _locate(name, value, entries, prefix)
        _check_sums(self.tensors, self._places, size)
        self.hints = _hints(top, wrapper, data)
        if left:
            self.hints["left"] = dict(list(left.items())[:_SHOWN])

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU: contiguous, in its stored dtype, its memory its own.

        Only its bytes are read. Raises InputError for a name that is not in `tensors`, and when the
        file changed or the memory does not suffice.
        """
        import torch

        info, place = self.tensors.get(name), self._places.get(name)
        if info is None or place is None:
            known = tuple(self.tensors)
            raise InputError(f"{self._path} has no tensor {ascii(name)}{nearest(name, known)}")
        dtype = getattr(torch, info.dtype)
        if not place.size:
            return torch.empty(info.shape, dtype=dtype)
        with _named(self._path):
            try:
                raw = torch.empty(place.size, dtype=torch.uint8)
            except RuntimeError as e:
                raise InputError(f"no memory for the {place.size} bytes of {name}") from e
            read_into(self._file, place.start, raw.numpy().data)
        # Any byte but 0 is true; a bool of another value than 0 and 1 is undefined in torch.
        flat = raw != 0 if dtype == torch.bool else raw.view(dtype)
        view = flat.as_strided(info.shape, place.stride)
        return flat.reshape(info.shape) if view.is_contiguous() else view.contiguous()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


def open_torch_file(path: Path) -> TorchFile:
    """Open a `.pth`, `.pt` or `.bin` file of PyTorch 1.6 or newer without running anything in it.

    The state dict is the file's top level, or lies under `state_dict`, `model_state_dict`, `model`,
    `module`, `net` or `params`, possibly twice. `hints` of the result: layout (`mmengine`, `mmcv`,
    `flat`, `wrapped`), wrapper (its dotted path or None), cfg (the trainer's text, never parsed),
    epoch, others (keys of the top level that are ignored), left (entries of the state dict that are
    not tensors with a name, and what they are).

    Raises InputError, and nothing else, for any file that is missing, not a regular one, damaged,
    of another format, hostile (names code, declares sizes that its bytes do not back, shares bytes
    to unpack to more than its size), or without a state dict.
    """
    path = Path(path)
    with _named(path):
        file, size = open_regular(path)
        try:
            return TorchFile(path, file, size)
        except BaseException:
            file.close()
            raise


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError as e:
        raise InputError(f"checkpoint {path}: {e}") from e
    except OSError as e:
        raise InputError(f"cannot read checkpoint {path}: {e.strerror or e}") from e
    except MemoryError as e:
        raise InputError(f"checkpoint {path} needs more memory than there is") from e


def _is_tensor(value: object) -> bool:
    return isinstance(value, Call) and value.function != "storage"


def _state_dict(top: object) -> tuple[dict[Any, object], str | None]:
    """Return the state dict and the dotted path to it, None for the top level."""
    if not isinstance(top, dict):
        raise InputError(f"it holds {describe(top)} instead of a state dict: {RESAVE}")
    if 2 * sum(map(_is_tensor, top.values())) > len(top):
        return top, None
    for first in _WRAPPERS:
        outer = top.get(first)
        if not isinstance(outer, dict):
            continue
        if any(map(_is_tensor, outer.values())):
            return outer, first
        for second in _WRAPPERS:
            inner = outer.get(second)
            if isinstance(inner, dict) and any(map(_is_tensor, inner.values())):
                return inner, f"{first}.{second}"
    if any(map(_is_tensor, top.values())):
        return top, None
    raise InputError(
        f"no tensors at its top level (keys: {', '.join(_keys(top)) or 'none'}) or under "
        f"{', '.join(_WRAPPERS)}; give a file that holds a state dict"
    )


def _keys(top: Mapping[Any, object]) -> list[str]:
    return [_shown(k) for k in top if isinstance(k, str)][:_SHOWN]


def _shown(key: object) -> str:
    """A key for a message: short, and nothing in it that a terminal would obey."""
    if isinstance(key, str) and key.isprintable() and len(key) <= 80:
        return key
    return ascii(key)[:80]


def _is_name(name: object) -> TypeGuard[str]:
    return isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_NAME


def _locate(
    name: str, value: object, entries: Mapping[str, Entry], prefix: str
) -> tuple[TensorInfo, _Place]:
    """Check one tensor's numbers, none of which is trusted, against the bytes that are there."""
    dtype, key, numel, (offset, shape, stride) = _arguments(name, value)
    item = _ITEM_BYTES[dtype]
    entry = entries.get(f"{prefix}/data/{key}")
    if entry is None or entry.size != numel * item:
        has = "is missing" if entry is None else f"has {entry.size} bytes"
        raise _bad(name, f"needs the record data/{key} with {numel} {dtype}, which {has}")
    if not _is_plain(shape, stride):
        raise _bad(name, f"has shape {shape} and strides {stride}: it repeats its own elements")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    elements = math.prod(max(n, 1) for n in shape)  # torch multiplies these even of no elements
    if elements > max(numel, _MAX_EMPTY) or offset > numel or (count and last >= numel):
        raise _bad(
            name,
            f"has shape {shape}, strides {stride} and offset {offset}: more than the {numel} "
            "elements of its storage",
        )
    size = (last - offset + 1) * item if count else 0
    # The stride along an axis of one element means nothing, and may be any number.
    used = tuple(s if n > 1 else 1 for n, s in zip(shape, stride, strict=True))
    return TensorInfo(name, dtype, shape), _Place(entry.offset + offset * item, size, used)


def _arguments(
    name: str, value: object
) -> tuple[str, str, int, tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Return (dtype, storage key, its elements, (offset, shape, stride)).

    They are of the right types; whether the storage holds them is checked by _locate.
    """
    for _ in range(2):  # a Parameter of a Parameter is the deepest that torch writes
        if isinstance(value, Call) and value.function in _PARAMETERS and value.args:
            value = value.args[0]
    if not isinstance(value, Call) or value.function not in _ARGUMENTS:
        raise _bad(name, "is a parameter without a tensor")
    args = value.args
    least, most = _ARGUMENTS[value.function]
    if not least <= len(args) <= most:
        raise _bad(name, f"is made by {value.function} with {len(args)} arguments")
    if len(args) == most > 4 and args[-1]:
        raise _bad(name, "is a lazily conjugated or negated view")
    storage, offset, shape, stride = args[:4]
    if not isinstance(storage, Call) or storage.function != "storage":
        raise _bad(name, f"lies in {describe(storage)} instead of a storage")
    kind, key, _, numel = storage.args
    if not isinstance(key, str) or not (key.isascii() and key.isalnum() and len(key) <= 64):
        shown = ascii(key[:80]) if isinstance(key, str) else describe(key)
        raise _bad(name, f"has a storage with key {shown}; keys are plain numbers")
    if not (_is_size(numel) and _is_size(offset) and _are_sizes(shape) and _are_sizes(stride)):
        raise _bad(name, "has a shape, stride, offset or storage size that is not made of sizes")
    if len(shape) != len(stride):
        raise _bad(name, f"has {len(shape)} axes and {len(stride)} strides")
    dtype = _dtype(name, kind, args[6] if value.function == "_rebuild_tensor_v3" else None)
    if isinstance(kind, Global) and kind.name == "UntypedStorage":
        numel //= _ITEM_BYTES[dtype]
    return dtype, key, numel, (offset, shape, stride)


def _dtype(name: str, storage: object, declared: object) -> str:
    kind = describe(storage)
    if isinstance(storage, Global) and storage.module in STORAGE_MODULES:
        kind = storage.name
    dtype = _STORAGES.get(kind)
    if kind == "UntypedStorage" and isinstance(declared, Global) and declared.module == "torch":
        dtype = declared.name
    if dtype not in _ITEM_BYTES:
        raise _bad(name, f"has storage {kind}; known dtypes are {', '.join(_ITEM_BYTES)}")
    return dtype


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and len(value) <= MAX_DIMS and all(map(_is_size, value))


def _is_plain(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether no two indices reach one element: each axis steps beyond all finer ones together."""
    if 0 in shape:
        return True
    reach = 0
    for step, n in sorted((s, n) for n, s in zip(shape, stride, strict=True) if n > 1):
        if step <= reach:
            return False
        reach += step * (n - 1)
    return True


def _bad(name: str, what: str) -> InputError:
    return InputError(f"tensor {name} {what}; the file is damaged or was made to mislead, refused")


def _check_sums(
    tensors: Mapping[str, TensorInfo], places: Mapping[str, _Place], file_size: int
) -> None:
    """Raise InputError if tensors share so many bytes that they unpack to more than the file."""
    total = sum(math.prod(t.shape) * _ITEM_BYTES[t.dtype] for t in tensors.values())
    touched = sum(p.size for p in places.values())
    if total > file_size * 1.05 + _SLACK or touched > file_size * _MAX_READ + _SLACK:
        raise InputError(
            f"its {len(tensors)} tensors share storages and unpack to {total} bytes (reading "
            f"{touched}), more than the file's {file_size}: refused; save the tensors cloned"
        )


def _hints(top: object, wrapper: str | None, data: bytes) -> dict[str, object]:
    """Return what the file says of itself; nothing of it is relied on."""
    meta, hub = _get(top, "meta"), _get(top, "message_hub")
    cfg = text_of(data, _get(meta, "cfg"))
    if cfg is None:
        cfg = text_of(data, _get(_get(hub, "runtime_info"), "cfg"))
    epoch = _get(meta, "epoch")
    epoch = _get(top, "epoch") if epoch is None else epoch
    layout = "flat" if wrapper is None else "wrapped"
    if wrapper == "state_dict" and isinstance(meta, dict):
        layout = "mmengine" if hub is not None or "mmengine_version" in meta else "mmcv"
    used = {"meta", "message_hub", (wrapper or "").split(".")[0]}
    others = {k: None for k in top if k not in used} if isinstance(top, dict) else {}
    return {
        "layout": layout,
        "wrapper": wrapper,
        "cfg": cfg,
        "epoch": epoch if _is_size(epoch) and epoch < 1 << 63 else None,
        "others": _keys(others) if wrapper else [],
    }


def _get(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None
