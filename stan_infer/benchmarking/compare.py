"""Rows of an earlier bench against those of now: which engine has become slower."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stan_infer.errors import InputError

_KEY = ("model", "engine", "precision", "device", "batch", "frames", "threads")


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
