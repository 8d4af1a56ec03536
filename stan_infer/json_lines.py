"""Rows as JSON lines: written whole or not at all, read within bounds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stan_infer import earlier_result
from stan_infer.atomic import Sources, new_file
from stan_infer.errors import InputError

_MAX_BYTES = 256 * 2**20
why_keep_rows = earlier_result.json_lines(("bench", "bench-stages"), "stan-infer bench")


def write_json_lines(
    path: Path, rows: Iterable[Mapping[str, Any]], *, sources: Sources = ()
) -> None:
    """Write one JSON object per line, over nothing but earlier rows of bench.

    sources: see atomic.check_file. InputError where `path` cannot be written.
    """
    with new_file(path, why_keep_rows, sources=sources) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_json_lines(path: Path, schema: str, command: str) -> list[dict[str, Any]]:
    """Read the rows of one schema ("bench", "eval"), passing over others.

    command: what writes such a file, for the error. Raises InputError for a file that is missing,
    too large, no JSON lines, or without any row of that schema.
    """
    what = f"give what `stan-infer {command}` wrote"
    try:
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such file; {what}")
        if (size := os.path.getsize(path)) > _MAX_BYTES:
            raise InputError(f"{path} has {size} bytes, more than {_MAX_BYTES}; {what}")
        text = path.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{path} cannot be read as JSON lines: {e}; {what}") from e
    start = f"stan-infer/{schema}/"
    found = [r for r in rows if isinstance(r, dict) and str(r.get("schema")).startswith(start)]
    if not found:
        raise InputError(f"{path} holds no row of stan-infer {schema}; {what}")
    return found
