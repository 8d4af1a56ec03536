"""Rows as JSON lines: written whole or not at all, read within bounds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stan_infer.errors import InputError
from stan_infer.system import earlier_result
from stan_infer.system.atomic import Sources, new_file
from stan_infer.system.json_file import parse_json
from stan_infer.system.outside_file import read_bounded

_MAX_BYTES = 64 * 2**20
why_keep_rows = earlier_result.json_lines(("bench", "bench-stages"), "stan-infer bench")


def write_json_lines(
    path: Path, rows: Iterable[Mapping[str, Any]], *, sources: Sources = ()
) -> None:
    """Write one JSON object per line, over nothing but earlier rows of bench.

    NaN and infinity are written as null. sources: see atomic.check_file. InputError where `path`
    cannot be written.
    """
    with new_file(path, why_keep_rows, sources=sources) as temporary:
        lines = (json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)
        temporary.write_text("".join(lines), encoding="utf-8")


def read_json_lines(path: Path, schema: str, command: str) -> list[dict[str, Any]]:
    """Read the rows of one schema ("bench", "eval"), passing over others.

    command: what writes such a file, for the error. Raises InputError for a file that is missing,
    too large, no JSON lines, or without any row of that schema.
    """
    what = f"; give what `stan-infer {command}` wrote"
    start, found = f"stan-infer/{schema}/", []
    for number, line in enumerate(read_bounded(path, _MAX_BYTES, hint=what).split(b"\n"), 1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}, line {number}", what)
        if isinstance(row, dict) and str(row.get("schema")).startswith(start):
            found.append(row)
    if not found:
        raise InputError(f"{path} holds no row of stan-infer {schema}{what}")
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
