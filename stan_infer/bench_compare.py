"""Rows of an earlier bench against those of now: which engine has become slower."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stan_infer.errors import InputError

_KEY = ("model", "engine", "precision", "device", "batch", "frames", "threads")
_MAX_BYTES = 256 * 2**20


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read rows that `bench --json` or `bench --out` wrote; InputError for anything else."""
    what = "give the rows that `stan-infer bench --out FILE` wrote"
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > _MAX_BYTES:
            raise InputError(f"{path}: no such file, or larger than {_MAX_BYTES} bytes; {what}")
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{path} cannot be read as JSON lines: {e}; {what}") from e
    found = [
        r
        for r in rows
        if isinstance(r, dict) and str(r.get("schema", "")).startswith("stan-infer/bench/")
    ]
    if not found:
        raise InputError(f"{path} holds no row of stan-infer bench; {what}")
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


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in _KEY)
