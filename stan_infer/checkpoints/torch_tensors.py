"""A tensor of a PyTorch checkpoint: from what the pickle says of it to the bytes that hold it.

No number of the pickle is trusted. Source of the format: torch/_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from stan_infer.checkpoints.pickle_values import Call, Global, describe
from stan_infer.checkpoints.torch_names import STORAGE_MODULES
from stan_infer.errors import InputError
from stan_infer.system.stored_zip import Entry

MAX_DIMS = 16
_MAX_EMPTY = 1 << 40  # product of the sizes of a tensor without elements, each 0 counted as 1
ITEM_BYTES = {
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
_TYPED = "_rebuild_from_type_v2"
_WRAPPED = 3  # a Parameter of a Parameter of a typed tensor is the deepest that torch writes
_OTHERS = {  # what other functions of torch make
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_wrapper_subclass": "a tensor of a class that computes its values (DTensor, torchao)",
    "_rebuild_meta_tensor_no_storage": "a tensor on the meta device, without values",
    "_rebuild_device_tensor_from_numpy": "an array of another device (XLA, Ascend)",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device (XLA, Ascend)",
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's key in the state dict, its dtype as torch names it (`float32`), its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Place(NamedTuple):
    """Where the bytes of a tensor lie in the file, and how they are its elements."""

    start: int  # byte in the file of the first element
    size: int  # bytes from there to the end of the last element
    stride: tuple[int, ...]  # elements


def locate(
    name: str, value: object, entries: Mapping[str, Entry], prefix: str
) -> tuple[TensorInfo, Place]:
    """Check one tensor's numbers, none of which is trusted, against the bytes that are there."""
    dtype, key, numel, (offset, shape, stride) = _arguments(name, value)
    item = ITEM_BYTES[dtype]
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
    return TensorInfo(name, dtype, shape), Place(entry.offset + offset * item, size, used)


def _arguments(
    name: str, value: object
) -> tuple[str, str, int, tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Return (dtype, storage key, its elements, (offset, shape, stride)).

    They are of the right types; whether the storage holds them is checked by locate.
    """
    for _ in range(_WRAPPED):
        value = _inner(value)
    if not isinstance(value, Call):
        raise _bad(name, "is a parameter without a tensor")
    if value.function not in _ARGUMENTS:
        what = _OTHERS.get(value.function, f"made by {value.function[:60]}")
        raise InputError(
            f"tensor {name} is {what}, which is not read: save the values as plain dense tensors"
        )
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
        numel //= ITEM_BYTES[dtype]
    return dtype, key, numel, (offset, shape, stride)


def _inner(value: object) -> object:
    """Return the tensor of a parameter, or of a tensor with attributes or a class of its own.

    Such a class and the attributes change nothing in the values, which lie in a plain storage.
    """
    if isinstance(value, Call) and value.function in _PARAMETERS and value.args:
        return value.args[0]
    if isinstance(value, Call) and value.function == _TYPED and len(value.args) == 4:
        maker, _, args, _ = value.args
        if isinstance(maker, Global) and isinstance(args, tuple):
            return Call(maker.name, args)
    return value


def _dtype(name: str, storage: object, declared: object) -> str:
    kind = describe(storage)
    if isinstance(storage, Global) and storage.module in STORAGE_MODULES:
        kind = storage.name
    dtype = _STORAGES.get(kind)
    if kind == "UntypedStorage" and isinstance(declared, Global) and declared.module == "torch":
        dtype = declared.name
    if dtype not in ITEM_BYTES:
        raise _bad(name, f"has storage {kind}; known dtypes are {', '.join(ITEM_BYTES)}")
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
