"""Read tensors out of a PyTorch zip checkpoint written by a stranger; nothing in it is executed.

torch_zip reads the archive and torch_pickle the pickle in it; state_dicts says where weights lie,
torch_tensors which bytes belong to which tensor. Source of the format: torch/serialization.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from stan_infer.checkpoints.pickle_values import describe
from stan_infer.checkpoints.state_dicts import (
    MAX_TENSORS,
    find_state_dicts,
    is_weight,
    read_hints,
    shown,
)
from stan_infer.checkpoints.torch_names import may_call, may_name
from stan_infer.checkpoints.torch_pickle import MAX_PICKLE_BYTES, read_pickle
from stan_infer.checkpoints.torch_tensors import ITEM_BYTES, Place, TensorInfo, locate
from stan_infer.checkpoints.torch_zip import checkpoint_folder, read_records
from stan_infer.errors import InputError, nearest
from stan_infer.system.outside_file import open_regular, read_at, read_into

if TYPE_CHECKING:
    from torch import Tensor

_SLACK = 1 << 20  # bytes added to the limits that grow with the file, for small files
_MAX_READ = 16  # reading every tensor once may read so many times the file's size
_SHOWN = 20  # names in hints


class TorchFile(AbstractContextManager["TorchFile"]):
    """An open checkpoint: names and shapes at once, the bytes of one tensor at a time."""

    bytes: int  # of the file
    sets: dict[str, list[str]]  # path of a state dict in the file -> names of its tensors
    ordinary: str | None  # the path of the one that is not an average or another part
    tensors: dict[str, TensorInfo]  # of the state dict that was selected
    hints: dict[str, object]

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        """Read the structure of an open file of `size` bytes; see open_torch_file."""
        self._path, self._file, self.bytes = path, file, size
        self._entries = read_records(file, size)
        self._prefix = checkpoint_folder(file, self._entries)
        record = self._entries[f"{self._prefix}/data.pkl"]
        data = read_at(file, record.offset, min(record.size, MAX_PICKLE_BYTES + 1))
        top = read_pickle(data, may_name, may_call)
        self._states, self.ordinary = find_state_dicts(top)
        self.sets = {
            path: [k for k, v in state.items() if is_weight(k, v)]
            for path, state in self._states.items()
        }
        self.hints = read_hints(top, self.ordinary, data)
        self.select(self.ordinary)

    def select(self, path: str | None) -> None:
        """Make `tensors` those of one of `sets`, after checking that the file holds their bytes.

        None: of none. Raises InputError as open_torch_file does.
        """
        tensors: dict[str, TensorInfo] = {}
        places: dict[str, Place] = {}
        left: dict[str, str] = {}
        for name, value in {} if path is None else self._states[path].items():
            if not is_weight(name, value):
                if len(left) < _SHOWN:
                    left[shown(name)] = describe(value)
                continue
            if len(tensors) >= MAX_TENSORS:
                raise InputError(
                    f"its state dict has more than {MAX_TENSORS} tensors, which no STAN has"
                )
            tensors[name], places[name] = locate(name, value, self._entries, self._prefix)
        _check_sums(tensors, places, self.bytes)
        self.tensors, self._places = tensors, places
        self.hints.pop("left", None)
        if left:
            self.hints["left"] = left

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

    The ordinary state dict is the file's top level, or lies under `state_dict`, `model_state_dict`,
    `model`, `module`, `net` or `params`, possibly twice; it is selected if there is one. `hints` of
    the result: layout (`mmengine`, `mmcv`, `flat`, `wrapped`; `torchscript` and `module` for whole
    modules), wrapper (its dotted path or None), cfg (the trainer's text, never parsed), epoch,
    others (keys of the top level that are ignored), left (entries of the selected state dict that
    are not tensors with a name, and what they are).

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


def _check_sums(
    tensors: Mapping[str, TensorInfo], places: Mapping[str, Place], file_size: int
) -> None:
    """Raise InputError if tensors share so many bytes that they unpack to more than the file."""
    total = sum(math.prod(t.shape) * ITEM_BYTES[t.dtype] for t in tensors.values())
    touched = sum(p.size for p in places.values())
    if total > file_size * 1.05 + _SLACK or touched > file_size * _MAX_READ + _SLACK:
        raise InputError(
            f"its {len(tensors)} tensors share storages and unpack to {total} bytes (reading "
            f"{touched}), more than the file's {file_size}: refused; save the tensors cloned"
        )
