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
    """A cell that begins with a number, with no-break spaces if it is short; others as they are."""
    if len(cell) <= _LONGEST and cell.lstrip("-+")[:1].isdigit():
        return cell.replace(" ", "\N{NO-BREAK SPACE}")
    return cell


def newest(kind: str, *keys: str) -> list[Row]:
    """The newest recorded row for each combination of values of `keys`."""
    return list({tuple(r[k] for k in keys): r for r in read_rows(kind)}.values())


def percent(share: float) -> str:
    """0.25 -> 25 %."""
    return f"{100 * share:.0f} %"


def machine_line(row: Row) -> str:
    """The machine and the versions that a row was measured with."""
    m, v = row["machine"], row["versions"]
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['system']}, Python {m['python']}, "
        f"torch {v['torch']}, ONNX Runtime {v['onnxruntime']}, {row['date']}:\n\n"
    )
