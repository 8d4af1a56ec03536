"""Rows of bench: written and read as JSON lines, and compared with those of an earlier run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stan_infer.errors import InputError
from stan_infer.system import earlier_result
from stan_infer.system.atomic import Sources, new_file
from stan_infer.system.json_file import parse_json
from stan_infer.system.outside_file import read_bounded

_MAX_BYTES = 64 * 2**20
_KEY = ("model", "engine", "precision", "device", "batch", "frames", "threads")
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


def compare_rows(
    old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], tolerance: float
) -> list[dict[str, Any]]:
    """One record per row that both have: ratio now over then, and whether that is a regression.

    Compared is the ratio to the baseline of the same run, which a slower or busier machine leaves
    alone; the baseline itself, whose ratio is 1, by its latency. change: above 1 is faster. A row
    is a regression when change < 1 - tolerance; so is an engine that ran then and is refused now.
    Raises InputError where no row matches.
    """
    before = {_key(r): r for r in old}
    records = []
    for row in new:
        was = before.get(_key(row))
        if was is None or not _number(was.get("latency_ms_p50")):
            continue
        record = {name: row.get(name) for name in _KEY}
        if row.get("refused"):
            records.append({**record, "change": None, "by": "refused now", "regression": True})
            continue
        by_ratio = not (row.get("speedup") == was.get("speedup") == 1.0)
        name = "speedup" if by_ratio else "latency_ms_p50"
        then, now = was.get(name), row.get(name)
        if then is None or now is None or not _number(then) or not _number(now):
            raise InputError(f"a row for {row.get('engine')} has no usable {name}")
        change = now / then if by_ratio else then / now
        record |= {"change": change, "by": "ratio to baseline" if by_ratio else "latency"}
        records.append({**record, "regression": change < 1 - tolerance})
    if not records:
        raise InputError(
            "no row of now has the model, engine, precision, device, batch, frames and threads of "
            "one in the old file: nothing to compare"
        )
    return records


def remarks(row: Mapping[str, Any]) -> list[str]:
    """Lines about a row: why it has no speed, or what makes its samples doubtful."""
    name = f"{row['engine']} {row.get('precision') or ''}".strip()
    where = f" at B={row['batch']}, T={row['frames']}" if row.get("batch") else ""
    notes = [*([row["refused"]] if row.get("refused") else []), *row.get("diagnosis", [])]
    return [f"{name}{where}: {note}" for note in notes]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in _KEY)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
