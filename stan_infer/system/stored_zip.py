"""A strict reader of zip archives whose entries are stored uncompressed; no number is trusted.

torch.save and numpy.savez write such archives. Compressed entries are refused, because they may
unpack to any size. The standard `zipfile` reads unbounded directories and tolerates overlapping,
renamed and misplaced entries; this reader refuses them.
Source of the format: PKWARE's APPNOTE.TXT 6.3, sections 4.3 to 4.5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from stan_infer.errors import InputError
from stan_infer.system.outside_file import DAMAGED, read_at

MAX_ENTRIES = 100_000  # one per stored tensor; an optimizer adds some thousands
MAX_DIRECTORY_BYTES = 64 << 20
MAX_NAME_BYTES = 512

LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_LOCATOR, _END64 = b"PK\x06\x07", b"PK\x06\x06"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_END_RECORD = struct.Struct("<4s4H2IH")
_LOCATOR_RECORD = struct.Struct("<4sIQI")
_END64_RECORD = struct.Struct("<4sQ2H2I4Q")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the 64-bit field"
_HAS_DESCRIPTOR = 1 << 3
_FLAGS_ALLOWED = _HAS_DESCRIPTOR | 1 << 11 | 0b110  # UTF-8 names; two hints of compressors


class Entry(NamedTuple):
    """Where the bytes of one stored record lie in the file."""

    offset: int  # bytes
    size: int  # bytes
    crc: int  # CRC-32 of the bytes by the directory; read_directory does not compare it


class _Directory(NamedTuple):
    offset: int
    size: int
    entries: int


class _Listed(NamedTuple):
    header: int  # offset of the local header
    size: int
    name: bytes
    crc: int
    is_left: bool  # a compressed record, which is not read


def read_directory(
    f: BinaryIO, size: int, *, leave_packed: Callable[[bytes], bool] = lambda name: False
) -> dict[str, Entry]:
    """Return name -> place of every record of a zip archive of `size` bytes.

    Reads the directory and the local headers, no record. Raises InputError unless the archive is
    exactly what PyTorch and numpy write: records stored uncompressed and in clear, no two of them
    overlapping, local headers that agree with a directory of bounded size at the end of the file.
    So all records together are smaller than the file. leave_packed: whether a compressed record of
    this name is left out of the result instead of being refused; its place is checked all the same.
    """
    directory = _find_directory(f, size)
    raw = read_at(f, directory.offset, directory.size)
    entries: dict[str, Entry] = {}
    left: set[str] = set()
    previous = 0
    for listed in sorted(_listed(raw, directory, leave_packed)):
        if listed.header < previous:
            raise InputError(f"zip entry {_shown(listed.name)} overlaps another one; {DAMAGED}")
        name = _decoded(listed.name)
        if name in entries:
            raise InputError(f"zip entry {_shown(listed.name)} is there twice; {DAMAGED}")
        offset = _data_offset(f, listed, directory.offset)
        previous = offset + listed.size
        if previous > directory.offset:
            raise InputError(
                f"zip entry {_shown(listed.name)} of {listed.size} bytes runs into the directory "
                f"at byte {directory.offset}; {DAMAGED}"
            )
        entries[name] = Entry(offset, listed.size, listed.crc)
        if listed.is_left:
            left.add(name)
    return {name: entry for name, entry in entries.items() if name not in left}


def _find_directory(f: BinaryIO, size: int) -> _Directory:
    tail_size = min(size, _LOCATOR_RECORD.size + _END_RECORD.size + 0xFFFF)
    start = size - tail_size
    tail = read_at(f, start, tail_size)
    at = tail.rfind(_END)
    while at >= 0:
        if at + _END_RECORD.size <= tail_size:
            fields = _END_RECORD.unpack_from(tail, at)
            if at + _END_RECORD.size + fields[7] == tail_size:
                return _checked(_from_end(f, tail, start, at, fields))
        at = tail.rfind(_END, 0, at + 3)
    raise InputError(f"there is no zip directory at the end of its {size} bytes; {DAMAGED}")


def _from_end(
    f: BinaryIO, tail: bytes, start: int, at: int, fields: tuple[int, ...]
) -> tuple[_Directory, int]:
    """Return the directory that the end record names, and where it must end."""
    _, disk, first_disk, on_disk, count, size, offset, _ = fields
    locator = at - _LOCATOR_RECORD.size
    if locator < 0 or tail[locator : locator + 4] != _LOCATOR:
        if disk or first_disk or on_disk != count:
            raise InputError(f"the zip archive says that it has several parts; {DAMAGED}")
        return _Directory(offset, size, count), start + at
    _, disk64, end64, disks = _LOCATOR_RECORD.unpack_from(tail, locator)
    # The record has an optional trailing field, which nobody writes; so its place is known.
    if disk64 or disks > 1 or end64 != start + locator - _END64_RECORD.size or end64 < 0:
        raise InputError(f"the 64-bit end record is not where the zip archive says; {DAMAGED}")
    big = _END64_RECORD.unpack(read_at(f, end64, _END64_RECORD.size))
    if big[0] != _END64 or big[1] != _END64_RECORD.size - 12 or big[4] or big[5]:
        raise InputError(f"the 64-bit end record of the zip archive is malformed; {DAMAGED}")
    pairs = ((on_disk, big[6]), (count, big[7]), (size, big[8]), (offset, big[9]))
    full = (_FULL16, _FULL16, _FULL32, _FULL32)
    if big[6] != big[7] or any(a not in (b, m) for (a, b), m in zip(pairs, full, strict=True)):
        raise InputError(f"the two end records of the zip archive disagree; {DAMAGED}")
    return _Directory(big[9], big[8], big[7]), end64


def _checked(found: tuple[_Directory, int]) -> _Directory:
    directory, end = found
    if directory.entries > MAX_ENTRIES or directory.size > MAX_DIRECTORY_BYTES:
        raise InputError(
            f"its zip directory has {directory.entries} entries in {directory.size} bytes; at most "
            f"{MAX_ENTRIES} in {MAX_DIRECTORY_BYTES} bytes are read: save less in one file"
        )
    if directory.offset + directory.size != end:
        raise InputError(
            f"its zip directory ends at byte {directory.offset + directory.size} instead of {end}; "
            f"{DAMAGED}"
        )
    if directory.entries * _CENTRAL_HEADER.size > directory.size:
        raise InputError(
            f"its zip directory of {directory.size} bytes cannot hold the {directory.entries} "
            f"entries that it names; {DAMAGED}"
        )
    return directory


def _listed(
    raw: bytes, directory: _Directory, leave_packed: Callable[[bytes], bool]
) -> list[_Listed]:
    found, at = [], 0
    for i in range(directory.entries):
        if at + _CENTRAL_HEADER.size > len(raw):
            raise InputError(f"the zip directory ends within entry {i}; {DAMAGED}")
        fields = _CENTRAL_HEADER.unpack_from(raw, at)
        signature, _, _, flags, method, _, _, crc, packed, size = fields[:10]
        n_name, n_extra, n_comment, disk, _, _, header = fields[10:]
        name_at = at + _CENTRAL_HEADER.size
        extra_at = name_at + n_name
        at = extra_at + n_extra + n_comment
        if signature != _CENTRAL or at > len(raw):
            raise InputError(f"entry {i} of the zip directory is malformed; {DAMAGED}")
        if not 0 < n_name <= MAX_NAME_BYTES:
            raise InputError(
                f"entry {i} of the zip directory has a name of {n_name} bytes; allowed are 1 to "
                f"{MAX_NAME_BYTES}"
            )
        name = raw[name_at:extra_at]
        is_left = method != 0 and leave_packed(name)
        _check_stored(name, flags, 0 if is_left else method)
        extra = raw[extra_at : extra_at + n_extra]
        size, packed, header = _with_64_bit(name, extra, (size, packed, header), disk)
        if is_left:
            size = packed
        if packed != size:
            raise InputError(
                f"zip entry {_shown(name)} is {packed} bytes packed and {size} unpacked; records "
                f"of a checkpoint are stored as they are; {DAMAGED}"
            )
        found.append(_Listed(header, size, name, crc, is_left))
    if at != len(raw):
        raise InputError(f"the zip directory has {len(raw) - at} bytes too many; {DAMAGED}")
    return found


def _check_stored(name: bytes, flags: int, method: int) -> None:
    if method != 0:
        raise InputError(
            f"zip entry {_shown(name)} is compressed (method {method}): a packed entry may "
            "unpack to any size, so only stored ones are read; re-zip it without compression"
        )
    if flags & ~_FLAGS_ALLOWED:
        raise InputError(
            f"zip entry {_shown(name)} has flags {flags:#06x} (encrypted or unknown); allowed are "
            "plain records as torch.save and numpy.savez write them"
        )


def _with_64_bit(
    name: bytes, extra: bytes, values: tuple[int, int, int], disk: int
) -> tuple[int, int, int]:
    """Return (size, packed size, header offset); the 64-bit field has those that are 0xFFFFFFFF."""
    wide: bytes | None = None
    at = 0
    while at < len(extra):
        if at + 4 > len(extra):
            raise InputError(f"zip entry {_shown(name)} has a malformed extra field; {DAMAGED}")
        tag, size = struct.unpack_from("<2H", extra, at)
        at += 4 + size
        if at > len(extra) or (tag == 1 and wide is not None):
            raise InputError(f"zip entry {_shown(name)} has a malformed extra field; {DAMAGED}")
        if tag == 1:
            wide = extra[at - size : at]
    out, used = [], 0
    for value in values:
        if value == _FULL32:
            if wide is None or used + 8 > len(wide):
                raise InputError(f"zip entry {_shown(name)} lacks its 64-bit size; {DAMAGED}")
            value = int.from_bytes(wide[used : used + 8], "little")
            used += 8
        out.append(value)
    if disk not in (0, _FULL16):
        raise InputError(f"zip entry {_shown(name)} lies in another part, {disk}; {DAMAGED}")
    return out[0], out[1], out[2]


def _data_offset(f: BinaryIO, listed: _Listed, limit: int) -> int:
    """Return where the record's bytes begin, after checking its local header."""
    want = _LOCAL_HEADER.size + len(listed.name)
    if listed.header + want > limit:
        raise InputError(
            f"zip entry {_shown(listed.name)} begins at byte {listed.header}, beyond the "
            f"directory at byte {limit}; {DAMAGED}"
        )
    raw = read_at(f, listed.header, want)
    fields = _LOCAL_HEADER.unpack_from(raw)
    signature, _, flags, method, _, _, _, packed, size, n_name, n_extra = fields
    if signature != LOCAL or n_name != len(listed.name) or raw[-n_name:] != listed.name:
        raise InputError(
            f"zip entry {_shown(listed.name)} is not at byte {listed.header}, where the directory "
            f"says; {DAMAGED}"
        )
    if listed.is_left:
        return listed.header + want + n_extra
    _check_stored(listed.name, flags, method)
    known = {listed.size, _FULL32} | ({0} if flags & _HAS_DESCRIPTOR else set())
    if size not in known or packed not in known:
        raise InputError(
            f"zip entry {_shown(listed.name)} has {size} bytes by its header and {listed.size} by "
            f"the directory; {DAMAGED}"
        )
    return listed.header + want + n_extra


def _decoded(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"zip entry {_shown(name)} has a name that is not UTF-8") from e


def _shown(name: bytes) -> str:
    return ascii(name[:80].decode("utf-8", errors="replace"))
