"""A safetensors file: its header is bounded before the library parses it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError, safe_open

from stan_infer.checkpoints.own import METADATA_KEY
from stan_infer.checkpoints.state_dicts import MAX_NAME, MAX_TENSORS
from stan_infer.checkpoints.torch_tensors import MAX_DIMS, TensorInfo
from stan_infer.errors import InputError
from stan_infer.system.outside_file import openable

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
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


class SafetensorsFile:
    """An open file: names and shapes at once, one tensor's bytes at a time."""

    def __init__(self, path: Path, size: int) -> None:
        """Read the header of a file of `size` bytes; InputError for a damaged one."""
        self._path, self.bytes = path, size
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
        self.sets: dict[str, list[str]] = {"": names}
        self.ordinary: str | None = ""
        self._file: Any = None
        self._held = ExitStack()

    def select(self, path: str | None) -> None:
        """There is one set of tensors."""

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU in its stored dtype."""
        if self._file is None:
            path = self._held.enter_context(openable(self._path))
            self._file = self._held.enter_context(safe_open(path, framework="pt"))
        return self._file.get_tensor(name)

    def close(self) -> None:
        """Close the file."""
        self._held.close()
        self._file = None


def check_header(path: Path, file: BinaryIO, size: int) -> None:
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
