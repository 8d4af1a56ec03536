"""Open a weights file of either format behind one interface, and read it one tensor at a time."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from safetensors import SafetensorError, safe_open

from stan_infer.checkpoints.layout import Origin
from stan_infer.checkpoints.own import METADATA_KEY
from stan_infer.checkpoints.torch_file import (
    MAX_DIMS,
    MAX_NAME,
    MAX_TENSORS,
    TensorInfo,
    open_torch_file,
)
from stan_infer.errors import InputError
from stan_infer.system.outside_file import open_regular, openable

if TYPE_CHECKING:
    from torch import Tensor

# The library takes 16 times as much memory as the header has bytes. A STAN's has 150 KB.
MAX_HEADER = 8 * 2**20
_MAX_CONFIG = 2**16  # characters of our metadata; it has about 1,000
_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class Reader(Protocol):
    """An open weights file: names and shapes at once, one tensor's bytes at a time."""

    tensors: dict[str, TensorInfo]
    hints: dict[str, object]

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU in its stored dtype."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def open_weights(path: Path) -> Reader:
    """Open a weights file by its content, never by its name: safetensors or PyTorch's zip.

    Raises InputError when it is missing, not a regular file, or neither format.
    """
    try:
        file, _ = open_regular(path)
    except InputError as e:
        raise InputError(
            f"checkpoint {path} is not a regular file; give the weights file itself"
        ) from e
    except OSError as e:
        raise InputError(f"cannot read checkpoint {path}: {e.strerror or e}") from e
    with file:
        head = file.read(9)
        # safetensors: 8 bytes of header length, then a JSON object.
        if len(head) < 9 or head[8:] != b"{" or head.startswith(b"PK"):
            return open_torch_file(path)
        _check_header(path, file, int.from_bytes(head[:8], "little"))
    return _SafetensorsFile(path)


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with openable(path) as name, safe_open(name, framework="np") as f:
                metadata = f.metadata() or {}
                names = list(f.keys())
                if len(names) > MAX_TENSORS:
                    raise InputError(
                        f"{path} has {len(names)} tensors; no STAN has more than {MAX_TENSORS}"
                    )
                self.tensors = {k: _tensor_info(k, f.get_slice(k)) for k in names}
        except (SafetensorError, OSError, ValueError) as e:
            raise InputError(f"{path} is a damaged safetensors file: {str(e)[:200]}") from e
        self.hints: dict[str, object] = {"layout": "safetensors"}
        if METADATA_KEY in metadata:
            if len(metadata[METADATA_KEY]) > _MAX_CONFIG:
                raise InputError(f"{path} has a config of more than {_MAX_CONFIG} characters")
            self.hints["config"] = metadata[METADATA_KEY]
        self._file: Any = None
        self._held = ExitStack()

    def read(self, name: str) -> Tensor:
        if self._file is None:
            path = self._held.enter_context(openable(self._path))
            self._file = self._held.enter_context(safe_open(path, framework="pt"))
        return self._file.get_tensor(name)

    def close(self) -> None:
        self._held.close()
        self._file = None


def read_weight(reader: Reader, origin: Origin) -> Tensor:
    """Read one of our parameters in its stored dtype; InputError unless all values are finite."""
    import torch

    parts = []
    for key in origin.keys:
        if not reader.tensors[key].dtype.startswith(("float", "bfloat")):
            raise InputError(f"weight {key} is {reader.tensors[key].dtype}; weights are floats")
        part = reader.read(key)
        # A NaN or an infinity stays in the sum: one pass, without a second array.
        if not torch.isfinite(part.sum(dtype=torch.float64)):
            bad = int((~torch.isfinite(part)).sum())
            if bad:
                raise InputError(f"weight {key} holds {bad} values that are NaN or infinite")
        parts.append(part)
    if origin.how == "rows":
        return torch.cat(parts)
    if origin.how == "transpose":
        return parts[0].T.contiguous()
    if origin.how == "squeeze":
        return parts[0].squeeze(2)
    return parts[0]


def _check_header(path: Path, file: BinaryIO, size: int) -> None:
    """Refuse a safetensors header that would take the library too much memory.

    Every tensor is an object in the header's JSON, so there are at most as many as braces.
    """
    if size > MAX_HEADER:
        raise InputError(
            f"{path} is a safetensors file whose header has {size} bytes; at most {MAX_HEADER} are "
            "read: give the weights of a STAN alone"
        )
    file.seek(8)
    objects = file.read(size).count(b"{")
    if objects > 2 * MAX_TENSORS:  # metadata may hold some in texts
        raise InputError(
            f"{path} is a safetensors file with {objects} objects in its header; no STAN has more "
            f"than {MAX_TENSORS} tensors"
        )


def _tensor_info(key: str, part: Any) -> TensorInfo:
    if not key.isprintable() or not 0 < len(key) <= MAX_NAME:
        raise InputError(f"a tensor is called {ascii(key)[:80]}, which is not the name of a weight")
    code, shape = part.get_dtype(), part.get_shape()
    if code not in _SAFETENSORS_DTYPES:
        raise InputError(f"tensor {key} has dtype {str(code)[:20]}, which is not supported")
    if len(shape) > MAX_DIMS:
        raise InputError(f"tensor {key} has {len(shape)} axes; at most {MAX_DIMS} are read")
    return TensorInfo(key, _SAFETENSORS_DTYPES[code], tuple(shape))
