"""Delimited text of strangers: tables with a header whose columns are found by name."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from stan_infer.errors import InputError

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon"}
MAX_COLUMNS = 1000
MAX_ROWS = 1_500_000  # a row takes 0.4 KiB; the longest list, Kinetics 700, has 650,000


@dataclass(frozen=True)
class Table:
    """Rows below a header, which is in lower case. lines: where each row starts, from 1."""

    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def column(self, names: Sequence[str]) -> int | None:
        """The place of the column with the first of these names that the header has."""
        return next((self.header.index(n) for n in names if n in self.header), None)

    def as_dicts(self, names: Sequence[str]) -> Iterator[dict[str, str]]:
        """Each row's cells of the columns with these names."""
        places = [(n, self.header.index(n)) for n in names if n in self.header]
        return ({n: row[i] for n, i in places} for row in self.rows)


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered from 1, cut at line feeds and nowhere else."""
    if text.count("\n") > 2 * MAX_ROWS:
        raise InputError(f"a text has more than {2 * MAX_ROWS} lines; the longest have 650,000")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def header_of(text: str, known: Collection[str]) -> tuple[str, tuple[str, ...]] | None:
    """The delimiter and the column names of a text whose first line has one of the known names.

    Of several delimiters the one that gives most known names.
    """
    first = next((line for _, line in lines_of(text)), "")
    found = []
    for delimiter in DELIMITERS:
        if first.count(delimiter) >= MAX_COLUMNS:
            return None
        cells = tuple(c.strip().lower() for c in _cells(first, delimiter))
        found.append((sum(c in known for c in cells), delimiter, cells))
    count, delimiter, cells = max(found, key=lambda f: f[0])
    return (delimiter, cells) if count else None


def read_table(text: str, name: str, known: Collection[str]) -> Table | None:
    """The table of a text whose header has one of the known names; None for another text.

    Comma, tab or semicolon separate the cells, whichever the header shows. Raises InputError with
    the line of a row that has fewer or more cells than the header.
    """
    found = header_of(text, known)
    if found is None:
        return None
    delimiter, header = found
    twice = [c for c, count in Counter(header).items() if c and count > 1]
    if twice:
        raise InputError(f"{name}: its header has the column {twice[0][:40]!r} twice")
    table = Table(header, [], [])
    for line, row in _rows(text, name, delimiter):
        if len(row) != len(header):
            raise InputError(
                f"{name}, line {line}: {len(row)} cells, where the header has {len(header)} "
                f"(separated by {DELIMITERS[delimiter]}); a cell with one inside needs quotes"
            )
        table.rows.append(row)
        table.lines.append(line)
    del table.rows[:1], table.lines[:1]
    return table


def _rows(text: str, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    if delimiter == "\t":  # quotes are rarely a style there: captions begin with them
        for count, (line, content) in enumerate(lines_of(text)):
            _check_count(count, name)
            yield line, _cells(content, delimiter)
        return
    # Strict: a quote that is not closed would swallow the lines behind it.
    reader, start = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True), 1
    try:
        for count, row in enumerate(reader):
            _check_count(count, name)
            if "".join(row).strip():
                yield start, [cell.strip() for cell in row]
            start = reader.line_num + 1
    except csv.Error as e:
        raise InputError(
            f"{name}, line {start}: a quote at the start of a cell is not closed at its end ({e})"
        ) from e


def _check_count(count: int, name: str) -> None:
    if count > MAX_ROWS:
        raise InputError(f"{name} has more than {MAX_ROWS} rows")


def _cells(line: str, delimiter: str) -> list[str]:
    """The cells of one line, stripped. Between tabs a cell is unquoted where it is quoted whole."""
    if delimiter == "\t":
        return [_unquoted(cell.strip()) for cell in line.split("\t")]
    try:
        row = next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return [line]
    return [cell.strip() for cell in row]


def _unquoted(cell: str) -> str:
    inside = cell[1:-1]
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"' or '"' in inside.replace('""', ""):
        return cell
    return inside.replace('""', '"')
