"""Recorded rows as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.record import read_rows

Row = dict[str, Any]
NOT_MEASURED = "not measured"
_LONGEST = 26  # characters of a value that is kept in one line


def markdown(head: str, rows: Iterable[str]) -> str:
    """A table; cells of head and rows are separated by " | ". Without rows: "not measured"."""
    # An empty cell is written as one blank.
    lines = [f"| {line} |".replace("|  |", "| |") for line in (head, *map(_unbroken, rows))]
    lines.insert(1, "|---" * (head.count("|") + 1) + "|")
    return "\n".join(lines) if len(lines) > 2 else NOT_MEASURED


def _unbroken(row: str) -> str:
    """The row with no-break spaces in its values, so that a narrow page does not part them."""
    name, *cells = row.split(" | ")
    return " | ".join([name, *map(value, cells)])


def value(cell: str) -> str:
    """A cell that begins with a number, with no-break spaces; others as they are.

    A long one may be parted behind its commas.
    """
    if not cell.lstrip("-+")[:1].isdigit():
        return cell
    parts = [cell] if len(cell) <= _LONGEST else cell.split(", ")
    return ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)


def by_machine(kind: str, **only: Any) -> list[list[Row]]:
    """Recorded rows, oldest first, of each machine; the machine that was measured last is first.

    Figures of two machines belong in no common table. only: values that the rows have.
    """
    machines: dict[str, list[Row]] = {}
    for r in read_rows(kind):
        if all(r[k] == v for k, v in only.items()):
            machines.setdefault(r["machine"]["cpu"], []).append(r)
    return sorted(machines.values(), key=lambda rows: rows[-1]["date"], reverse=True)


def newest(kind: str, *keys: str, **only: Any) -> list[Row]:
    """The newest row for each combination of values of `keys`, of the machine measured last."""
    return next((last_of(rows, *keys) for rows in by_machine(kind, **only)), [])


def last_of(rows: Iterable[Row], *keys: str) -> list[Row]:
    """The last row for each combination of values of `keys`."""
    return list({tuple(r.get(k) for k in keys): r for r in rows}.values())


def percent(share: float) -> str:
    """0.25 -> 25 %."""
    return f"{100 * share:.0f} %"


def machine_line(row: Row) -> str:
    """The machine and the versions that a row was measured with."""
    m, v = row["machine"], row["versions"]
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI"}
    fast = [word for name, word in known.items() if name in m.get("instruction_sets", [])]
    sets = f" with {', '.join(fast)}" if fast else ""
    return (
        f"{m['cpu']}{sets}, {m['cores']} cores, {m['system']}, Python {m['python']}, "
        f"torch {v['torch']}, ONNX Runtime {v['onnxruntime']}, {row['date'][:10]}:\n\n"
    )
