"""CSV files that we write (RFC 4180, UTF-8): no cell is a formula, and no text is lost.

Captions and names of files may be strangers', and a spreadsheet runs a cell that begins as a
formula does. Such a text gets an apostrophe before it, as spreadsheets have for "this is text";
`unguarded` takes it away again. Numbers stay as they are.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stan_infer.errors import storable

_GUARD = "'"
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # also as fullwidth characters
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?|[+-]?inf")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a header and rows: numbers unrounded, None empty, texts guarded."""
    with path.open("w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerows([guarded(cell) for cell in row] for row in (columns, *rows))


def guarded(cell: Any) -> Any:
    """The cell as it is written: an apostrophe goes before a text that could be a formula.

    Also before one that is guarded already, so that `unguarded` gives the same text back.
    """
    if not isinstance(cell, str):
        return cell
    text = storable(cell)
    return _GUARD + text if _is_risky(text) else text


def unguarded(cell: str) -> str:
    """The text of a cell that was read: undoes `guarded`."""
    return cell[1:] if cell.startswith(_GUARD) and _is_risky(cell[1:]) else cell


def _is_risky(text: str) -> bool:
    return text.lstrip(_GUARD).startswith(_FORMULA) and not _NUMBER.fullmatch(text)
