"""Rows of `bench`: write and read them as JSON lines, compare them with an earlier run's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stan_infer.errors import InputError
from stan_infer.system import earlier_result
from stan_infer.system.atomic import Sources, new_file
from stan_infer.system.json_file import json_line, parse_json
from stan_infer.system.outside_file import read_bounded

_MAX_BYTES = 64 * 2**20
_KEY = ("model", "engine", "precision", "device", "batch", "frames", "threads")
# What a doubt of starvation.add_doubts is about, by its first word.
_DOUBTS = {
    "starved": "other work had the CPUs",
    "baseline": "other work had the CPUs of the baseline",
    "rounds": "too few rounds",
    "wide": "the ratio varied too much",
}
why_keep_rows = earlier_result.json_lines(("bench", "bench-stages"), "stan-infer bench")


def write_json_lines(
    path: Path, rows: Iterable[Mapping[str, Any]], *, sources: Sources = ()
) -> None:
    """Write one JSON object per line; NaN and infinity as null.

    An existing file must hold earlier rows of bench. sources: files that are read, see
    atomic.check_file. Raises InputError if `path` cannot be written.
    """
    with new_file(path, why_keep_rows, sources=sources) as temporary:
        temporary.write_text("".join(json_line(row) + "\n" for row in rows), encoding="utf-8")


def read_json_lines(path: Path, schema: str, command: str) -> list[dict[str, Any]]:
    """Read the rows of one schema ("bench" or "eval"); rows of others are skipped.

    command: what writes such a file, for the error. Raises InputError for a file that is missing,
    too large, not JSON lines, or without a row of that schema.
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
    """Compare new rows with old ones; one record for each row that both have.

    A record has `change` (above 1 is faster), `by` and `regression`. `change` compares the ratios
    to the baseline of the same run, which do not depend on how fast or busy the machine is; the
    baseline itself, whose ratio is 1, is compared by its latency. A row is a regression if
    change < 1 - tolerance, or if its engine ran then and is refused now. Where one of the rows has
    doubts, or another processor ran it, whose ratios are others too, it is None: not known. Raises
    InputError if no row matches.
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
        if why := _incomparable(was, row):
            record |= {"change": None, "by": f"not known: {why}"}
        record["regression"] = None if why else change < 1 - tolerance
        records.append(record)
    if not records:
        raise InputError(
            "no new row has the model, engine, precision, device, batch, frames and threads of a "
            "row in the old file: there is nothing to compare"
        )
    return records


def _incomparable(was: Mapping[str, Any], row: Mapping[str, Any]) -> str | None:
    """Why two rows cannot tell whether an engine became slower."""
    machines = (r.get("machine") for r in (was, row))
    then, now = (m if isinstance(m, dict) else {} for m in machines)
    if then.get("cpu") != now.get("cpu"):
        return f"the processor was {then.get('cpu')}, and is {now.get('cpu')}"
    if then.get("instruction_sets") != now.get("instruction_sets"):
        return "the processor offered other instruction sets then"
    doubted = [
        f"{_DOUBTS.get(str(r['doubts'][0]).partition(':')[0], 'in doubt')} in {run}"
        for run, r in (("this run", row), ("the old run", was))
        if r.get("doubts")
    ]
    return ", ".join(doubted) or None


def remarks(row: Mapping[str, Any]) -> list[str]:
    """Lines about a row: why it has no speed or no ratio, or the warnings about its samples.

    Of a starved one only that it is: the other warnings are about times that are not its own.
    """
    name = f"{row['engine']} {row.get('precision') or ''}".strip()
    where = f" at B={row['batch']}, T={row['frames']}" if row.get("batch") else ""
    notes = [*([row["refused"]] if row.get("refused") else []), *row.get("doubts", [])]
    notes += [] if row.get("starved") else row.get("diagnosis", [])
    return [f"{name}{where}: {note}" for note in notes]


def ratio_in_words(row: Mapping[str, Any]) -> str:
    """The ratio of a row with its interval, as 1.31x (1.28 to 1.35), if it can be believed.

    Else what is known of it: "starved" for the row's own starvation, "unknown" for the baseline's
    or too few rounds, or only the interval.
    """
    ratio, low, high = (row.get(f"speedup{end}") for end in ("", "_low", "_high"))
    if row.get("refused") or ratio is None:
        return "-"
    if row.get("starved"):
        return "starved"
    if row.get("doubts"):
        is_wide = all(why.startswith("wide:") for why in row["doubts"])
        return f"{low:.2f}x to {high:.2f}x" if is_wide else "unknown"
    return f"{ratio:.2f}x" if low in (None, high) else f"{ratio:.2f}x ({low:.2f} to {high:.2f})"


def machine_remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What else ran on the machine meanwhile, and what to do if it was too much."""
    judged = [r for r in rows if "others_share" in r]
    if not judged:
        return []
    before, after = (judged[0].get(f"load_{when}") for when in ("before", "after"))
    others = [r["others_share"] for r in judged if r["others_share"] is not None]
    share = f"{100 * max(others):.0f} %" if others else "not known on this system"
    load = "" if before is None else f"; load {before:.1f} before, {after:.1f} after"
    told = [f"CPU time that other work had meanwhile: {share}{load}"]
    if all(r["starved"] is None for r in judged):
        told.append(
            "whether other work starved the engines is not known on this system; with --threads 1 "
            "it is"
        )
    if starved := sum(bool(r.get("starved")) for r in rows):
        told.append(
            f"{starved} of {len(rows)} rows are starved: their times (in brackets) are not "
            "the engines' own. Stop the other work, or take CPUs that it leaves free "
            "(fewer --threads, taskset); then run again"
        )
    return told


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in _KEY)


def shown_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a table. Of a starved one the times are in brackets, rates are left out."""
    if not row.get("starved"):
        return dict(row)
    times = {
        k: f"({v:.4g})" for k, v in row.items() if k.startswith("latency_ms") and v is not None
    }
    return {**row, **times, **dict.fromkeys(("clips_per_s", "gflop_per_s", "share_of_ceiling"))}
