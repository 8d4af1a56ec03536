"""Whether a file is an earlier result of the same kind, and so may be replaced: by a short look."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

_MAX_HEADER = 100 * 2**20  # of safetensors, as the format has it
_MAX_LINE = 2**20

WhyKeep = Callable[[Path], str | None]


def arrays(names: Iterable[str], what: str) -> WhyKeep:
    """Say of a file why it is no .npz of just these arrays, or None. what: who writes such."""
    wanted = {f"{name}.npy" for name in names}

    def why_keep(path: Path) -> str | None:
        try:
            with zipfile.ZipFile(path) as z:
                found = set(z.namelist())
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
            found = set()
        return None if found == wanted else f"it was not written by {what}"

    return why_keep


def json_lines(schemas: Iterable[str], what: str) -> WhyKeep:
    """Say of a file why its first line is no row of ours with one of these schemas, or None."""
    starts = tuple(f"stan-infer/{schema}/" for schema in schemas)

    def why_keep(path: Path) -> str | None:
        try:
            with path.open("rb") as f:
                row = json.loads(f.readline(_MAX_LINE))
        except (OSError, ValueError, RecursionError):
            row = None
        is_ours = isinstance(row, dict) and str(row.get("schema")).startswith(starts)
        return None if is_ours else f"it was not written by {what}"

    return why_keep


def safetensors(metadata_key: str, what: str) -> WhyKeep:
    """Say of a file why it is no safetensors file with this key in its metadata, or None."""

    def why_keep(path: Path) -> str | None:
        try:
            with path.open("rb") as f:
                size = int.from_bytes(f.read(8), "little")
                header = json.loads(f.read(size)) if size <= _MAX_HEADER else {}
            found = header.get("__metadata__")
        except (OSError, ValueError, RecursionError, AttributeError):
            found = None
        is_ours = isinstance(found, dict) and metadata_key in found
        return None if is_ours else f"it was not written by {what}"

    return why_keep
