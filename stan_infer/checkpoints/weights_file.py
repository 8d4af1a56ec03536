"""Open a weights file of either format behind one interface, and read it one tensor at a time."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
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
from stan_infer.system.file_kind import refuse_video
from stan_infer.system.json_file import read_object
from stan_infer.system.outside_file import open_regular, openable, stays_inside

if TYPE_CHECKING:
    from torch import Tensor

# The library takes 16 times as much memory as the header has bytes. A STAN's has 150 KB.
MAX_HEADER = 8 * 2**20
_MAX_INDEX, _MAX_SHARDS = 8 * 2**20, 64
_MAX_CONFIG = 2**16  # characters of our metadata; it has about 1,000
_log = logging.getLogger(__name__)
_FILES = tuple(
    f"{name}{ending}"
    for name in ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin",
                 "open_clip_pytorch_model.bin")
    for ending in ("", ".index.json")
)  # fmt: skip
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
# Names that PyTorch's wrappers put into keys: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


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

    Keys are those of the bare model: names of wrappers are taken out, and "module." if it stands
    before all of them. Entries that are not tensors are logged. Raises InputError when the file is
    missing, not a regular one, or of neither format.
    """
    return _Unwrapped(_open(_in_folder(path) if path.is_dir() else path))


@contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """Open a weights file; every InputError raised inside names it."""
    try:
        with closing(open_weights(path)) as reader:
            yield reader
    except InputError as e:
        raise e if str(path) in str(e) else InputError(f"checkpoint {path}: {e}") from e


def _in_folder(folder: Path) -> Path:
    """The weights in a folder of transformers or open_clip; the first of _FILES that is there."""
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"folder {folder} holds no weights ({', '.join(_FILES)})")


def _open(path: Path) -> Reader:
    return _Shards(path) if path.name.endswith(".index.json") else _open_file(path)


def _open_file(path: Path) -> Reader:
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
            refuse_video(path)
            return open_torch_file(path)
        _check_header(path, file, int.from_bytes(head[:8], "little"))
    return _SafetensorsFile(path)


class _Unwrapped:
    """A file whose keys are those of the bare model."""

    def __init__(self, file: Reader) -> None:
        self._file, self.hints = file, file.hints
        left = file.hints.get("left")
        if isinstance(left, dict):
            entries = ", ".join(f"{name} ({what})" for name, what in list(left.items())[:5])
            _log.warning("what is not a tensor in the state dict is left out: %s", entries)
        try:
            own = {name: _WRAPPERS.sub("", name) for name in file.tensors}
            if own and all(name.startswith("module.") for name in own.values()):
                own = {key: name.removeprefix("module.") for key, name in own.items()}
            self._keys = {name: key for key, name in own.items()}
            if len(self._keys) < len(own):
                twice = next(name for key, name in own.items() if self._keys[name] != key)
                raise InputError(f"two weights are called {twice} without the names of wrappers")
        except InputError:
            file.close()
            raise
        self.tensors = {
            name: TensorInfo(name, file.tensors[key].dtype, file.tensors[key].shape)
            for name, key in self._keys.items()
        }

    def read(self, name: str) -> Tensor:
        return self._file.read(self._keys[name])

    def close(self) -> None:
        self._file.close()


class _Shards:
    """Weights in several files, which an index beside them lists by key."""

    def __init__(self, index: Path) -> None:
        given = read_object(index, _MAX_INDEX).get("weight_map")
        places: dict[str, str] = given if isinstance(given, dict) else {}
        files = {f for f in places.values() if isinstance(f, str) and stays_inside(f)}
        if not places or not all(isinstance(f, str) and f in files for f in places.values()):
            raise InputError(f"{index} has no weight_map of keys to files beside it")
        if len(files) > _MAX_SHARDS:
            raise InputError(f"{index} lists {len(files)} files; at most {_MAX_SHARDS} are opened")
        with ExitStack() as stack:
            self._files = {
                f: stack.enter_context(closing(_open_file(index.parent / f))) for f in files
            }
            self._places = dict(places)
            lost = next((k for k, f in places.items() if k not in self._files[f].tensors), None)
            if lost is not None:
                raise InputError(f"{index}: weight {lost[:80]} is not in {places[lost]}")
            self._held = stack.pop_all()
        self.tensors = {key: self._files[f].tensors[key] for key, f in places.items()}
        self.hints: dict[str, object] = {"layout": f"{len(files)} files"}

    def read(self, name: str) -> Tensor:
        return self._files[self._places[name]].read(name)

    def close(self) -> None:
        self._held.close()


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
        if reader.tensors[key].dtype.startswith("float8"):
            part = part.float()  # torch computes almost nothing in 8 bits
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
