"""Open a weights file of any format behind one interface, and read it one tensor at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from stan_infer.checkpoints.clip_names import is_clip
from stan_infer.checkpoints.layout import Origin
from stan_infer.checkpoints.safetensors_file import SafetensorsFile, check_header
from stan_infer.checkpoints.torch_file import open_torch_file
from stan_infer.checkpoints.torch_tensors import TensorInfo
from stan_infer.checkpoints.weight_sets import WeightSet, choose, find_sets
from stan_infer.checkpoints.weights_folder import CONFIGS, INDEX, NAMES, shard_names, weights_in
from stan_infer.errors import InputError
from stan_infer.system.json_file import read_object
from stan_infer.system.outside_file import open_regular, refuse_video

if TYPE_CHECKING:
    from torch import Tensor

_MAX_CONFIG = 2**20  # bytes of transformers' config.json, which has about 5,000
_log = logging.getLogger(__name__)


class File(Protocol):
    """An open weights file as it is stored: state dicts, one of which can be selected to read."""

    bytes: int  # of the file, or of all files
    sets: dict[str, list[str]]  # path of a state dict -> keys of its tensors
    ordinary: str | None  # the path of the one that is read by default
    tensors: dict[str, TensorInfo]  # of the state dict that is selected
    hints: dict[str, object]

    def select(self, path: str | None) -> None:
        """Select one of `sets`."""
        ...

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU in its stored dtype."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class Reader:
    """An open weights file, one set of weights in it: names and shapes at once, bytes singly."""

    def __init__(self, file: File, weights: str | None) -> None:
        """Choose among the sets of an open file, which is the reader's from now on."""
        self._file, self.bytes, self.hints = file, file.bytes, file.hints
        try:
            self.sets: list[WeightSet] = find_sets(file.sets, file.ordinary, file.hints)
            nameless = file.hints.pop("nameless", ())
            assert isinstance(nameless, tuple)
            self.chosen, told = choose(self.sets, weights, nameless)
            self._keys = self.chosen.keys()
            file.select(self.chosen.place)
        except BaseException:
            file.close()
            raise
        left = file.hints.get("left")
        if isinstance(left, dict):
            entries = ", ".join(f"{name} ({what})" for name, what in list(left.items())[:5])
            _log.warning("what is not a tensor in the state dict is left out: %s", entries)
        self.notes = (f"weights: {told}",) if told else ()
        self.tensors = {
            name: TensorInfo(name, file.tensors[key].dtype, file.tensors[key].shape)
            for name, key in self._keys.items()
        }

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU in its stored dtype."""
        return self._file.read(self._keys[name])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_weights(path: Path, weights: str | None = None) -> Reader:
    """Open a weights file by its content, never by its name: safetensors or PyTorch's zip.

    path: a file, an index of several, or a folder of transformers or open_clip with one of these.
    weights: which of several sets, see weight_sets.choose. Keys are those of the bare model: names
    of wrappers are taken out, and "module." if it stands before all of them. Entries that are not
    tensors are logged; other sets are told in `notes`. Raises InputError when the file is missing,
    not a regular one, of neither format, or without such a set.
    """
    place = weights_in(path) if path.is_dir() else path
    file: File = _Shards(place) if place.name.endswith(INDEX) else _open_file(place)
    reader = Reader(file, weights)
    # Our own format and trainers' files say themselves what they are.
    if (
        place.name in NAMES
        and "config" not in reader.hints
        and is_clip({k: t.shape for k, t in reader.tensors.items()})
    ):
        try:
            reader.hints |= _configs(place.parent)
        except BaseException:
            reader.close()
            raise
    return reader


@contextmanager
def opened(path: Path, weights: str | None = None) -> Iterator[Reader]:
    """Open a weights file; every InputError raised inside names it."""
    try:
        with closing(open_weights(path, weights)) as reader:
            yield reader
    except InputError as e:
        raise e if str(path) in str(e) else InputError(f"checkpoint {path}: {e}") from e


def _configs(folder: Path) -> dict[str, object]:
    """What the configs beside the weights say, by the names of these files."""
    return {
        name: read_object(folder / name, _MAX_CONFIG)
        for name in CONFIGS
        if (folder / name).is_file()
    }


def _open_file(path: Path) -> File:
    try:
        file, size = open_regular(path)
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
        check_header(path, file, int.from_bytes(head[:8], "little"))
    return SafetensorsFile(path, size)


class _Shards:
    """Weights in several files, which an index beside them lists by key."""

    def __init__(self, index: Path) -> None:
        self._places = places = shard_names(index)
        with ExitStack() as stack:
            self._files = {
                f: stack.enter_context(closing(_open_file(index.parent / f)))
                for f in sorted(set(places.values()))
            }
            lost = next((k for k, f in places.items() if k not in self._files[f].tensors), None)
            if lost is not None:
                raise InputError(f"{index}: weight {lost[:80]} is not in {places[lost]}")
            self._held = stack.pop_all()
        self.bytes = sum(f.bytes for f in self._files.values())
        self.tensors = {key: self._files[f].tensors[key] for key, f in places.items()}
        self.sets = {"": list(places)}
        self.ordinary: str | None = ""
        self.hints: dict[str, object] = {"layout": f"{len(self._files)} files"}

    def select(self, path: str | None) -> None:
        """There is one set."""

    def read(self, name: str) -> Tensor:
        return self._files[self._places[name]].read(name)

    def close(self) -> None:
        self._held.close()


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
