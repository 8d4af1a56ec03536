"""Print results as tables or JSON; no other file formats results."""

from __future__ import annotations

import errno
import itertools
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich.cells import cell_len

from stan_infer.cli.layout import Table, pair_lines, terminal_width, wrapped
from stan_infer.errors import InputError, printable
from stan_infer.system.json_file import json_line


def print_json(schema: str, record: dict[str, Any]) -> None:
    """Print one result as one line of JSON; numbers unrounded, NaN and infinity as null."""
    full = {"schema": f"stan-infer/{schema}/1", **record}
    _write(json_line(full))


def print_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | Mapping[str, str] | None = None,
    keys: int = 1,
) -> None:
    """Print rows as an aligned table with a header line; columns of numbers are right-aligned.

    columns: their names, or names and titles. keys: so many of the first columns are repeated where
    a table is parted because the terminal is narrow. See layout.Table.
    """
    if not rows:
        return
    titles = _titles(columns or list(rows[0]))
    right = {c for c in titles if all(isinstance(r.get(c), (int, float, type(None))) for r in rows)}
    widths = {c: max(cell_len(_cell(r.get(c))) for r in rows) for c in titles}
    RowPrinter(widths, right, titles, keys).print(rows)


class RowPrinter:
    """An aligned table whose rows are printed as they come, the header with the first ones."""

    def __init__(
        self,
        widths: Mapping[str, int],
        right: Collection[str],
        titles: Mapping[str, str] | None = None,
        keys: int = 1,
    ) -> None:
        """widths: in cells, see width_of; wider values move what follows. right: aligned so."""
        self._columns, self._has_head = list(widths), True
        titles = titles or _titles(self._columns)
        self._table = Table(titles, widths, right, terminal_width(), keys)

    def print(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print rows; nothing for none."""
        if not rows:
            return
        cells = [{c: _cell(row.get(c)) for c in self._columns} for row in rows]
        _write("\n".join(self._table.lines(cells, has_head=self._has_head)))
        self._has_head = False


def _titles(columns: Sequence[str] | Mapping[str, str]) -> Mapping[str, str]:
    return columns if isinstance(columns, Mapping) else {c: c for c in columns}


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values, a pair per line."""
    cells = {name: _cell(value) for name, value in facts.items()}
    _write("\n".join(pair_lines(cells, terminal_width())))


def print_lines(text: str) -> None:
    """Print lines of text that belong to a result."""
    width = terminal_width()
    lines = map(_seen, text.split("\n"))
    parts = ([line] if width is None else wrapped(line, width) for line in lines)
    _write("\n".join(itertools.chain.from_iterable(parts)))


def say(text: str) -> None:
    """Print a message on standard error, as standard output carries results only."""
    with suppress(BrokenPipeError):  # nobody reads it, as with 2>&1 | head
        print(printable(text), file=sys.stderr, flush=True)


def width_of(text: str) -> int:
    """Cells of the terminal that a text takes in a table."""
    return cell_len(_seen(text))


def _seen(text: str) -> str:
    """A text as standard output shows it: escaped is what would steer a terminal."""
    return _encodable(printable(text))


def _encodable(text: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"  # in some locales ASCII
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _write(text: str) -> None:
    """Write to standard output; if its reader is gone, end with the exit code of SIGPIPE."""
    try:
        print(_encodable(text), flush=True)
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
    if isinstance(value, Mapping):
        return _seen(", ".join(f"{k} {_cell(v)}" for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return _seen(", ".join(map(str, value)))
    return _seen(str(value))
