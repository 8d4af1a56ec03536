"""Whether a file is an earlier result of the same kind, and so may be replaced: by a short look."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from stan_infer.errors import InputError
from stan_infer.system.html_page import made_by
from stan_infer.system.json_file import read_object

_MAX_HEADER = 100 * 2**20  # bytes of a safetensors header, by its format
_MAX_LINE = 2**20  # bytes
# The files that list everything in a folder of ours: of an export, of a repository for Triton.
_LISTS = ("manifest.json", "stan_infer.json")
_MAX_LIST = 2**22  # bytes

# Returns why a file must be kept, or None where it is an earlier result.
WhyKeep = Callable[[Path], str | None]


def arrays(names: Iterable[str], what: str, further: Iterable[str] = ()) -> WhyKeep:
    """An earlier result is an .npz of these arrays, and maybe `further` ones, and no others.

    what: the command that writes it.
    """
    wanted, allowed = ({f"{name}.npy" for name in group} for group in (names, further))

    def is_ours(path: Path) -> bool:
        with zipfile.ZipFile(path) as z:
            return wanted <= set(z.namelist()) <= wanted | allowed

    return _unless(is_ours, what)


def json_lines(schemas: Iterable[str], what: str) -> WhyKeep:
    """An earlier result begins with a row of one of these schemas. what: see arrays."""
    starts = tuple(f"stan-infer/{schema}/" for schema in schemas)

    def is_ours(path: Path) -> bool:
        with path.open("rb") as f:
            row = json.loads(f.readline(_MAX_LINE))
        return isinstance(row, dict) and str(row.get("schema")).startswith(starts)

    return _unless(is_ours, what)


def csv(headers: Iterable[str], what: str) -> WhyKeep:
    """An earlier result begins with one of these header lines. what: see arrays."""
    known = {header.encode() for header in headers}

    def is_ours(path: Path) -> bool:
        with path.open("rb") as f:
            return f.readline(_MAX_LINE).rstrip(b"\r\n") in known

    return _unless(is_ours, what)


def safetensors(metadata_key: str, what: str) -> WhyKeep:
    """An earlier result is a safetensors file with this key in its metadata. what: see arrays."""

    def is_ours(path: Path) -> bool:
        with path.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size)) if size <= _MAX_HEADER else {}
        metadata = header.get("__metadata__") if isinstance(header, dict) else None
        return isinstance(metadata, dict) and metadata_key in metadata

    return _unless(is_ours, what)


def json_object(schema: str, what: str) -> WhyKeep:
    """An earlier result is a JSON object that begins with this schema. what: see arrays."""
    start = re.compile(rb'\s*\{\s*"schema": ?"stan-infer/%b/' % re.escape(schema).encode())

    def is_ours(path: Path) -> bool:
        with path.open("rb") as f:
            return start.match(f.read(200)) is not None

    return _unless(is_ours, what)


def page(maker: str, what: str) -> WhyKeep:
    """An earlier result is a page of html_page with this maker. what: see arrays."""
    mark = made_by(maker).encode()

    def is_ours(path: Path) -> bool:
        with path.open("rb") as f:
            return mark in f.read(200)

    return _unless(is_ours, what)


def folder(names: Collection[str], record: str, keeps: WhyKeep, what: str) -> WhyKeep:
    """An earlier result is a folder with a record that we wrote, and with files of these names.

    record: the name of that file; keeps: what says whether we wrote it. Names alone tell nothing,
    as a stranger's folder may hold an index.html too. what: the content, as in "a report".
    """

    def why_keep(path: Path) -> str | None:
        other = sorted(p.name for p in path.iterdir() if p.name not in {*names, record})
        if other:
            return f"it holds {other[0]}, which is no part of {what}"
        if keeps(path / record) is not None:
            return f"it has no {record} of an earlier run, which every folder with {what} has"
        return None

    return why_keep


def whole_folder(place: Path) -> Path | None:
    """Return the nearest folder above `place` that lists its own files, or None.

    Such a folder, an export or a repository of ours, is refused once it holds another file.
    """
    for folder in place.parents:
        for name in _LISTS:
            try:
                tool = read_object(folder / name, _MAX_LIST).get("tool")
            except (InputError, OSError):
                continue
            if isinstance(tool, dict) and tool.get("name") == "stan_infer":
                return folder
    return None


def _unless(is_ours: Callable[[Path], bool], what: str) -> WhyKeep:
    """Keep every file of which `is_ours` is not true, or fails because of the file's content."""

    def why_keep(path: Path) -> str | None:
        try:
            ours = is_ours(path)
        except (OSError, ValueError, RecursionError, zipfile.BadZipFile, NotImplementedError):
            ours = False
        return None if ours else f"it was not written by {what}"

    return why_keep
