"""The zip archive of a PyTorch checkpoint: its records and folder; other formats are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

from stan_infer.errors import InputError
from stan_infer.system.file_kind import kind_of
from stan_infer.system.outside_file import read_at
from stan_infer.system.stored_zip import LOCAL, Entry, read_directory

RESAVE = (
    'on a machine where the file is trusted, run torch.save(torch.load(path)["state_dict"], '
    "new_path) with PyTorch 1.6 or newer, or convert the weights to safetensors"
)


def read_records(file: BinaryIO, size: int) -> dict[str, Entry]:
    """Return name -> place of every record of a checkpoint of `size` bytes; see read_directory.

    Raises InputError for another file, and says which format that has if it is known.
    """
    _refuse_other_formats(read_at(file, 0, min(size, 512)))
    return read_directory(file, size, leave_packed=_is_program)


def checkpoint_folder(file: BinaryIO, entries: Mapping[str, Entry]) -> str:
    """Return the name of the archive's one folder, which holds data.pkl and all other records.

    In a TorchScript archive they are those of its tensors. Raises InputError if there is none, and
    for big-endian files.
    """
    found = [n for n in entries if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(found) != 1:
        raise InputError(
            f"it is a zip archive with {len(found)} records <name>/data.pkl, a checkpoint has one; "
            "give a file written by torch.save"
        )
    prefix = found[0].removesuffix("/data.pkl")
    entry = entries.get(f"{prefix}/byteorder")
    if entry is not None:
        order = read_at(file, entry.offset, min(entry.size, 16))
        if order != b"little":
            raise InputError(f"its byte order is {order!r}; only b'little' is read: {RESAVE}")
    return prefix


def _is_program(name: bytes) -> bool:
    """Whether a record is a TorchScript archive's code, which is compressed and never read."""
    return b"/code/" in name


def _refuse_other_formats(head: bytes) -> None:
    if head.startswith(LOCAL):
        return
    if not head:
        raise InputError("the file is empty (0 bytes); give a checkpoint")
    if head[:1] == b"\x80":
        raise InputError(
            "this is a bare pickle, as PyTorch before 1.6 saved checkpoints; only the zip format "
            f"is read, because pickles of strangers can run code: {RESAVE}"
        )
    if head[257:262] == b"ustar":
        raise InputError(
            "this is a tar archive, as PyTorch before 0.1.10 saved checkpoints; only the zip "
            f"format is read: {RESAVE}"
        )
    if head[:1] == b"\x08" and b"stan_infer" in head:
        raise InputError("this is an ONNX graph, not a checkpoint: give its exported folder")
    if (kind := kind_of(head)) is not None:
        unpack = "unpack it" if kind.what == "an archive" else "give a checkpoint, or a folder"
        raise InputError(f"this is {kind.what}, not a checkpoint: {unpack}")
    raise InputError(
        f"this is not a PyTorch checkpoint: it begins with {head[:8]!r} instead of {LOCAL!r}; "
        "give a .pth, .pt or .bin file written by torch.save, or a .safetensors file"
    )
