"""Print results as tables or JSON; no other file formats results."""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from stan_infer.errors import InputError, printable
from stan_infer.system.json_file import json_line


def print_json(schema: str, record: dict[str, Any]) -> None:
    """Print one result as one line of JSON; numbers unrounded, NaN and infinity as null."""
    full = {"schema": f"stan-infer/{schema}/1", **record}
    _write(json_line(full))


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Print rows as an aligned table with a header line; columns of numbers are right-aligned."""
    if not rows:
        return
    columns = list(columns or rows[0])
    right = {
        c for c in columns if all(isinstance(r.get(c), (int, float, type(None))) for r in rows)
    }
    RowPrinter({c: max(len(_cell(r.get(c))) for r in rows) for c in columns}, right).print(rows)


class RowPrinter:
    """An aligned table whose rows are printed as they come, the header with the first ones."""

    def __init__(self, widths: Mapping[str, int], right: Collection[str]) -> None:
        """widths: characters of each column; longer cells move what follows. right: aligned so."""
        self._widths = {name: max(width, len(name)) for name, width in widths.items()}
        self._right = right
        self._lines: list[list[str]] = [list(widths)]

    def print(self, rows: Sequence[dict[str, Any]]) -> None:
        """Print rows; nothing for none."""
        if not rows:
            return
        lines = self._lines + [[_cell(row.get(c)) for c in self._widths] for row in rows]
        self._lines = []
        _write("\n".join(map(self._line, lines)))

    def _line(self, cells: list[str]) -> str:
        padded = [
            text.rjust(width) if name in self._right else text.ljust(width)
            for text, (name, width) in zip(cells, self._widths.items(), strict=True)
        ]
        return "  ".join(padded).rstrip()


def print_facts(facts: dict[str, Any]) -> None:
    """Print names and values, a pair per line."""
    width = max(len(k) for k in facts)
    _write("\n".join(f"{name.ljust(width)}  {_cell(value)}" for name, value in facts.items()))


def print_lines(text: str) -> None:
    """Print lines of text that belong to a result."""
    _write("\n".join(map(printable, text.split("\n"))))


def say(text: str) -> None:
    """Print a message on standard error, as standard output carries results only."""
    with suppress(BrokenPipeError):  # nobody reads it, as with 2>&1 | head
        print(printable(text), file=sys.stderr, flush=True)


def _write(text: str) -> None:
    """Write to standard output; if its reader is gone, end with the exit code of SIGPIPE."""
    encoding = sys.stdout.encoding or "utf-8"  # in some locales ASCII
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, flush=True)
    except OSError as e:
        # Python would try to write the rest again at exit, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if e.errno == errno.EPIPE:
            sys.exit(128 + 13)  # as if ended by SIGPIPE
        raise InputError(f"cannot write the results to standard output: {e.strerror}") from e


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "nan"
        if value == 0 or 1e-3 <= abs(value) < 1e5:
            return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
        return f"{value:.1e}"
    return printable(str(value))
