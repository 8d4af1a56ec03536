"""Arrays from a .npz file that may come from a stranger, and into one; container: stored_zip.

Only the arrays asked for are read. One of another dtype or shape, or one that is compressed, is
refused by its header, before memory is allocated for it. Nothing is unpickled.
"""

from __future__ import annotations

import io
import math
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stan_infer.config import StanConfig
from stan_infer.errors import InputError
from stan_infer.system.outside_file import open_regular, read_at, read_into
from stan_infer.system.stored_zip import Entry, read_directory

MAX_DIMS = 8
_MAX_HEADER = 4096  # numpy writes 118 bytes for any array of ours
# The header as numpy writes it: a dict with these three keys, padded with blanks.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][a-zA-Z]\d{1,9})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,15}, ?)*+(?:\d{1,15})?+)\), \} *+\n"
)


@dataclass(frozen=True)
class Field:
    """The dtype and shape that an array must have.

    dtype: allowed numpy names, separated by blanks ("uint8 float32"), or "str" for text of any
    length. shape: each size is a number, or a letter that must stand for the same size everywhere.
    """

    dtype: str
    shape: tuple[int | str, ...] | None = None  # None: any


def label_fields(config: StanConfig, labels: int) -> dict[str, Field]:
    """The arrays of an exported folder's labels.npz; labels: how many. See export.class_head."""
    if not config.is_mug:
        return {"embeddings": Field("float32", (labels, config.embed_dim))}
    return {
        "token_embeds": Field("float32", (labels, config.context_length, config.embed_dim)),
        "input_ids": Field("int32", (labels, config.context_length)),
    }


def read_npz(
    source: Path | bytes, fields: Mapping[str, Field], *, limit: int | None = None
) -> dict[str, NDArray[Any]]:
    """Return the named arrays of a .npz file, given as its path or its bytes.

    limit: the most bytes that the file may have. Memory: that of the arrays asked for, which are no
    larger than the file.

    Raises only InputError: for a file that is missing, not a regular file, damaged (each array's
    CRC-32 is compared) or not as numpy.savez writes it, and for an array that is missing or of
    another dtype or shape.
    """
    name = "the .npz data" if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, bytes):
            return _read(io.BytesIO(source), len(source), fields)
        file, size = open_regular(source)
        with file:
            if limit is not None and size > limit:
                raise InputError(f"it has {size} bytes; at most {limit} are read")
            return _read(file, size, fields)
    except InputError as e:
        raise InputError(f"{name} cannot be used as a .npz file: {e}") from e
    except OSError as e:
        raise InputError(f"{name} cannot be read: {e.strerror or e}") from e
    except MemoryError as e:
        raise InputError(f"{name} needs more memory than there is") from e


def names_of(path: Path) -> set[str]:
    """The names of a .npz file's arrays; InputError as of read_npz."""
    try:
        file, size = open_regular(path)
        with file:
            return {n.removesuffix(".npy") for n in read_directory(file, size)}
    except InputError as e:
        raise InputError(f"{path} cannot be used as a .npz file: {e}") from e


def write_npz(path: Path, arrays: Iterable[tuple[str, NDArray[Any] | Path]]) -> None:
    """Write arrays, or .npy files, one after the other as numpy.savez would.

    numpy.savez itself prints a traceback where the disk is full. Raises OSError.
    """
    with zipfile.ZipFile(path, "w") as z:
        for name, array in arrays:
            with z.open(f"{name}.npy", "w", force_zip64=True) as entry:
                if isinstance(array, Path):
                    with array.open("rb") as rows:
                        shutil.copyfileobj(rows, entry, 2**20)
                else:
                    np.lib.format.write_array(entry, array, allow_pickle=False)


def _read(f: BinaryIO, size: int, fields: Mapping[str, Field]) -> dict[str, NDArray[Any]]:
    entries = read_directory(f, size)
    sizes: dict[str, int] = {}
    plans = {name: _checked(f, entries, name, field, sizes) for name, field in fields.items()}
    return {name: _load(f, entries[f"{name}.npy"], name, *plan) for name, plan in plans.items()}


def _checked(
    f: BinaryIO, entries: Mapping[str, Entry], name: str, field: Field, sizes: dict[str, int]
) -> tuple[int, np.dtype[Any], tuple[int, ...], bool]:
    """Read and check one header; return its size, dtype, shape, and whether in Fortran's order."""
    entry = entries.get(f"{name}.npy")
    if entry is None:
        raise InputError(f"it has no array '{name}'")
    head = read_at(f, entry.offset, min(entry.size, _MAX_HEADER))
    # Version 1 has two bytes of length, 2 and 3 have four.
    version = head[6:8] if head.startswith(b"\x93NUMPY") else b""
    if version not in (b"\1\0", b"\2\0", b"\3\0"):
        raise InputError(f"array '{name}' is not in numpy's format")
    start = 10 if version == b"\1\0" else 12
    end = start + int.from_bytes(head[8:start], "little")
    match = _HEADER.fullmatch(head[start:end]) if end <= len(head) else None
    if match is None:
        raise InputError(f"array '{name}' has a header that numpy.savez does not write")
    try:
        dtype = np.dtype(match[1].decode())
    except TypeError as e:
        raise InputError(f"array '{name}' has an unknown dtype") from e
    shape = tuple(int(n) for n in match[3].split(b",") if n.strip())
    is_wanted = dtype.kind == "U" if field.dtype == "str" else dtype.name in field.dtype.split()
    if not is_wanted or not dtype.isnative or len(shape) > MAX_DIMS:
        raise InputError(
            f"array '{name}' is {dtype} of {len(shape)} axes; it must be {field.dtype}"
        )
    if field.shape is not None and not _fits(shape, field.shape, sizes):
        known = [sizes.get(n, n) if isinstance(n, str) else n for n in field.shape]
        raise InputError(
            f"array '{name}' has shape {list(shape)}; it must be [{', '.join(map(str, known))}]"
        )
    # numpy multiplies the sizes in int64, and takes a size of 0 as 1 while it looks for overflow.
    whole = math.prod(max(n, 1) for n in shape) * dtype.itemsize
    if not 0 < whole < 1 << 62 or entry.size - end != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"array '{name}' has {entry.size - end} bytes, which is not {dtype} {list(shape)}"
        )
    return end, dtype, shape, match[2] == b"True"


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...], sizes: dict[str, int]) -> bool:
    """Whether the shape is the wanted one. A letter takes its size where it first appears."""
    return len(shape) == len(wanted) and all(
        n == (sizes.setdefault(w, n) if isinstance(w, str) else w)
        for n, w in zip(shape, wanted, strict=True)
    )


def _load(
    f: BinaryIO, entry: Entry, name: str, start: int, dtype: np.dtype[Any], shape: Any, flip: bool
) -> NDArray[Any]:
    head = read_at(f, entry.offset, start)
    flat = np.empty(math.prod(shape), dtype)
    raw = flat.view(np.uint8).data if flat.nbytes else memoryview(b"")
    read_into(f, entry.offset + start, raw)
    if zlib.crc32(raw, zlib.crc32(head)) != entry.crc:
        raise InputError(f"array '{name}' is damaged: its CRC-32 does not match")
    if dtype.kind == "U":
        try:
            flat.tolist()
        except ValueError as e:
            raise InputError(f"array '{name}' holds characters that do not exist") from e
    return flat.reshape(shape, order="F" if flip else "C")
